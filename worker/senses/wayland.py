"""How long nobody has used keyboard or mouse, as a Wayland compositor tells by ext-idle-notify.

Decides that whoever sits there counts as active until the compositor has said otherwise: what was before this worker
connected is not known. Speaks the Wayland protocol itself, over the compositor's local socket: a client library would
bring a loop of its own. Sources: the Wayland protocol, chapter "Wire Format"; ext-idle-notify-v1, versions 1 and 2 (in
which input alone counts, whatever a film player asks). Reads WAYLAND_DISPLAY and XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from worker.senses.sense import Senseless

TIMEOUT_S: Final = 1.0
IDLE_AFTER_MS: Final = 1000
"""After so long without input the compositor says so; from then on this counts."""
_MOST_BYTES: Final = 1 << 20
_DISPLAY, _REGISTRY, _SYNC, _SEAT, _NOTIFIER, _NOTIFICATION = range(1, 7)
_SEAT_NAME, _NOTIFIER_NAME = b"wl_seat", b"ext_idle_notifier_v1"


class WaylandIdle:
    """One connection, made when it is needed and again when it is lost."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._environment = os.environ if environment is None else environment
        self._clock = clock
        self._link: socket.socket | None = None
        self._rest = b""
        self._idle_since_s: float | None = None

    def idle_s(self) -> float:
        """Since the last input, 0 while somebody is active; Senseless where no compositor tells."""
        try:
            if self._link is None:
                self._link = self._connected()
            for thing, event, _ in self._pending(self._link):
                self._heard(thing, event)
        except Senseless:
            self.close()
            raise
        except (OSError, struct.error) as error:
            self.close()
            raise Senseless("the Wayland compositor does not answer") from error
        return 0.0 if self._idle_since_s is None else self._clock() - self._idle_since_s + IDLE_AFTER_MS / 1000.0

    def close(self) -> None:
        """Hang up; the next question connects again, and knows nothing of before."""
        if self._link is not None:
            self._link.close()
        self._link, self._rest, self._idle_since_s = None, b"", None

    def _connected(self) -> socket.socket:
        display = self._environment.get("WAYLAND_DISPLAY", "")
        folder = self._environment.get("XDG_RUNTIME_DIR", "")
        if not display or not (folder or display.startswith("/")):
            raise Senseless("there is no Wayland display")
        link = socket.socket(socket.AF_UNIX)
        try:
            link.settimeout(TIMEOUT_S)
            link.connect(str(Path(folder) / display))
            self._greet(link)
        except BaseException:
            link.close()
            raise
        return link

    def _greet(self, link: socket.socket) -> None:
        link.sendall(_request(_DISPLAY, 1, _REGISTRY) + _request(_DISPLAY, 0, _SYNC))
        offered: dict[bytes, tuple[int, int]] = {}
        for thing, event, body in self._until_synced(link):
            if (thing, event) == (_REGISTRY, 0):
                number, length = struct.unpack_from("=II", body)
                name = body[8 : 8 + max(0, length - 1)]
                (version,) = struct.unpack_from("=I", body, 8 + _padded(length))
                offered.setdefault(name, (number, version))
        if _SEAT_NAME not in offered or _NOTIFIER_NAME not in offered:
            raise Senseless("this Wayland compositor does not tell when keyboard and mouse were used")
        seat, _ = offered[_SEAT_NAME]
        notifier, version = offered[_NOTIFIER_NAME]
        version = min(version, 2)
        link.sendall(
            _bind(seat, _SEAT_NAME, 1, _SEAT)
            + _bind(notifier, _NOTIFIER_NAME, version, _NOTIFIER)
            + _request(_NOTIFIER, version, _NOTIFICATION, IDLE_AFTER_MS, _SEAT)  # 1: idle, 2: of input alone
        )

    def _until_synced(self, link: socket.socket) -> Iterator[tuple[int, int, bytes]]:
        while True:
            for thing, event, body in self._split():
                if thing == _SYNC:
                    return
                yield thing, event, body
            piece = link.recv(65536)
            if not piece:
                raise ConnectionError("hung up")
            self._rest += piece

    def _pending(self, link: socket.socket) -> Iterator[tuple[int, int, bytes]]:
        """What has come since the last look; nothing is waited for."""
        link.setblocking(False)
        try:
            while True:
                piece = link.recv(65536)
                if not piece:
                    raise ConnectionError("hung up")
                self._rest += piece
                yield from self._split()
        except BlockingIOError:
            yield from self._split()

    def _split(self) -> Iterator[tuple[int, int, bytes]]:
        while len(self._rest) >= 8:
            thing, word = struct.unpack_from("=II", self._rest)
            size, event = word >> 16, word & 0xFFFF
            if size < 8 or len(self._rest) > _MOST_BYTES:
                raise Senseless("the Wayland compositor says what cannot be")
            if len(self._rest) < size:
                return
            body, self._rest = self._rest[8:size], self._rest[size:]
            if (thing, event) == (_DISPLAY, 0):
                raise Senseless("the Wayland compositor refuses to tell when keyboard and mouse were used")
            yield thing, event, body

    def _heard(self, thing: int, event: int) -> None:
        if thing == _NOTIFICATION:
            self._idle_since_s = self._clock() if event == 0 else None


def _request(thing: int, opcode: int, *words: int) -> bytes:
    return struct.pack(f"=II{len(words)}I", thing, (8 + 4 * len(words)) << 16 | opcode, *words)


def _bind(number: int, interface: bytes, version: int, new: int) -> bytes:
    name = interface + bytes(1)
    body = (
        struct.pack("=II", number, len(name)) + name.ljust(_padded(len(name)), b"\0") + struct.pack("=II", version, new)
    )
    return struct.pack("=II", _REGISTRY, (8 + len(body)) << 16) + body


def _padded(length: int) -> int:
    return length + (-length % 4)
