"""How long nobody has used keyboard or mouse, asked of an X server by its screen saver extension.

Decides nothing. Speaks the X11 protocol itself, by one connection over the display's local socket: Xlib ends the whole
process when its server goes away, and a worker outlives a log-out. IdleSource: X Window System Protocol, X Version 11,
Release 7, sections 8 to 10; MIT-SCREEN-SAVER extension, version 1.1 (QueryInfo). Reads DISPLAY and the X authority.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from worker.senses.sense import Senseless

TIMEOUT_S: Final = 1.0
_COOKIE: Final = b"MIT-MAGIC-COOKIE-1"
_LOCAL: Final = re.compile(r"(?:unix|)(?:/unix)?:(\d+)(?:\.\d+)?", re.ASCII)
_MOST_BYTES: Final = 1 << 20
"""Of one answer."""


class X11Idle:
    """One connection, made when it is needed and again when it is lost."""

    def __init__(self, environment: Mapping[str, str] | None = None, sockets: Path = Path("/tmp/.X11-unix")) -> None:  # noqa: S108
        self._environment = os.environ if environment is None else environment
        self._sockets = sockets
        self._link: socket.socket | None = None
        self._opcode, self._root = 0, 0

    def idle_s(self) -> float:
        """Since the last input; Senseless where there is no X server, or none that tells."""
        try:
            if self._link is None:
                self._link = self._connected()
            self._link.sendall(struct.pack("<BBHI", self._opcode, 1, 2, self._root))
            answer = self._answer(self._link)
        except Senseless:
            self.close()
            raise
        except (OSError, struct.error) as error:
            self.close()
            raise Senseless("the X server does not answer") from error
        (idle_ms,) = struct.unpack_from("<I", answer, 16)
        return float(idle_ms) / 1000.0

    def close(self) -> None:
        """Hang up; the next question connects again."""
        if self._link is not None:
            self._link.close()
        self._link = None

    def _connected(self) -> socket.socket:
        display = _LOCAL.fullmatch(self._environment.get("DISPLAY", ""))
        if display is None:
            raise Senseless("there is no X display")
        number = display[1]
        link = socket.socket(socket.AF_UNIX)
        try:
            link.settimeout(TIMEOUT_S)
            link.connect(str(self._sockets / f"X{number}"))
            self._greet(link, number)
            self._opcode = self._extension(link)
        except BaseException:
            link.close()
            raise
        return link

    def _greet(self, link: socket.socket, number: str) -> None:
        cookie = next(_cookies(self._authority(), number.encode()), b"")
        name = _COOKIE if cookie else b""
        link.sendall(struct.pack("<BxHHHHxx", 0x6C, 11, 0, len(name), len(cookie)) + _padded(name) + _padded(cookie))
        status, _, _, _, words = struct.unpack("<BBHHH", _exactly(link, 8))
        rest = _exactly(link, 4 * words)
        if status != 1:
            raise Senseless("the X server does not let this worker in")
        vendor_bytes, formats = struct.unpack_from("<H", rest, 16)[0], rest[21]
        (self._root,) = struct.unpack_from("<I", rest, 32 + vendor_bytes + (-vendor_bytes % 4) + 8 * formats)

    def _authority(self) -> bytes:
        home = self._environment.get("HOME", "")
        path = self._environment.get("XAUTHORITY") or (f"{home}/.Xauthority" if home else "")
        try:
            return Path(path).read_bytes()[:_MOST_BYTES] if path else b""
        except OSError:
            return b""

    def _extension(self, link: socket.socket) -> int:
        name = b"MIT-SCREEN-SAVER"
        link.sendall(struct.pack("<BxHHxx", 98, 2 + len(_padded(name)) // 4, len(name)) + _padded(name))
        answer = self._answer(link)
        if not answer[8]:
            raise Senseless("the X server does not tell when keyboard and mouse were used")
        return answer[9]

    def _answer(self, link: socket.socket) -> bytes:
        """The reply to what was asked last; events that come before it are nobody's."""
        while True:
            head = _exactly(link, 32)
            if head[0] == 0:
                raise Senseless("the X server refuses to tell when keyboard and mouse were used")
            if head[0] == 1:
                (more,) = struct.unpack_from("<I", head, 4)
                return head + _exactly(link, 4 * more)


def _exactly(link: socket.socket, count: int) -> bytes:
    if count > _MOST_BYTES:
        raise Senseless("the X server says more than can be")
    got = b""
    while len(got) < count:
        piece = link.recv(count - len(got))
        if not piece:
            raise ConnectionError("hung up")
        got += piece
    return got


def _padded(text: bytes) -> bytes:
    return text + bytes(-len(text) % 4)


def _cookies(authority: bytes, number: bytes) -> Iterator[bytes]:
    """Of an X authority file: those for the display, each field with its length, most significant byte first."""
    at = 0
    while at + 2 <= len(authority):
        at += 2  # the family: a local display's is this machine's, or any
        fields = []
        for _ in range(4):
            if at + 2 > len(authority):
                return
            (length,) = struct.unpack_from(">H", authority, at)
            fields.append(authority[at + 2 : at + 2 + length])
            at += 2 + length
        _, display, name, cookie = fields
        if name == _COOKIE and display in (number, b""):
            yield cookie
