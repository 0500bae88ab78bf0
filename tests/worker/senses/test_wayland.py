"""Idleness by ext-idle-notify, against a stand-in for a compositor that speaks the protocol's bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.senses.sense import Senseless
from worker.senses.wayland import WaylandIdle

Event = tuple[int, int, bytes]


def event(thing: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack("=II", thing, (8 + len(body)) << 16 | number) + body


def offered(number: int, name: bytes, version: int) -> bytes:
    text = name + b"\0"
    padded = text + bytes(-len(text) % 4)
    return event(2, 0, struct.pack("=II", number, len(text)) + padded + struct.pack("=I", version))


SYNCED = event(3, 0, bytes(4))
USUAL = offered(1, b"wl_compositor", 5) + offered(7, b"wl_seat", 9) + offered(9, b"ext_idle_notifier_v1", 2) + SYNCED


class Compositor:
    """Listens, and says what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(folder / "wayland-1"))
        self.server.listen(4)
        self.server.settimeout(5.0)
        self.now_s = 50.0
        environment = {"WAYLAND_DISPLAY": "wayland-1", "XDG_RUNTIME_DIR": str(folder)}
        self.sense = WaylandIdle(environment, lambda: self.now_s)
        self.link: socket.socket | None = None

    def greets(self, words: bytes) -> float:
        """The first look at a compositor that answers so: both sides are this thread, so the answer is there before."""
        real = self.sense._greet

        def greet(link: socket.socket) -> None:
            self.link, _ = self.server.accept()
            self.link.settimeout(5.0)
            self.link.sendall(words)
            real(link)

        self.sense._greet = greet  # type: ignore[method-assign]
        try:
            return self.sense.idle_s()
        finally:
            self.sense._greet = real  # type: ignore[method-assign]

    def says(self, words: bytes) -> None:
        assert self.link is not None
        self.link.sendall(words)

    def heard(self) -> list[Event]:
        assert self.link is not None
        content, found = self.link.recv(65536), []
        while content:
            thing, word = struct.unpack_from("=II", content)
            found.append((thing, word & 0xFFFF, content[8 : word >> 16]))
            content = content[word >> 16 :]
        return found


@pytest.fixture
def compositor(tmp_path: Path) -> Iterator[Compositor]:
    made = Compositor(tmp_path)
    yield made
    made.sense.close()
    made.server.close()
    if made.link is not None:
        made.link.close()


def test_active_until_the_compositor_says_otherwise_and_again_with_the_next_input(compositor: Compositor) -> None:
    assert compositor.greets(USUAL) == 0.0
    asked = compositor.heard()
    assert [(thing, opcode) for thing, opcode, _ in asked] == [(1, 1), (1, 0), (2, 0), (2, 0), (5, 2)]
    assert struct.unpack("=III", asked[-1][2]) == (6, 1000, 4), "a notification, after a second, of the seat"
    compositor.says(event(4, 0, bytes(4)) + event(6, 0)[:3])
    assert compositor.sense.idle_s() == 0.0, "half of an event is none"
    compositor.says(event(6, 0)[3:])
    assert compositor.sense.idle_s() == 1.0
    compositor.now_s += 600.0
    assert compositor.sense.idle_s() == 601.0
    compositor.says(event(6, 1))
    assert compositor.sense.idle_s() == 0.0


def test_the_first_version_is_asked_for_what_it_knows(compositor: Compositor) -> None:
    compositor.greets(USUAL.replace(struct.pack("=I", 2) + SYNCED, struct.pack("=I", 1) + SYNCED))
    assert compositor.heard()[-1][:2] == (5, 1)


@pytest.mark.parametrize(
    "words",
    [offered(7, b"wl_seat", 9) + SYNCED, SYNCED, event(1, 0, bytes(16)), struct.pack("=II", 2, 4 << 16), b""],
    ids=["no notifier", "nothing", "an error", "a size that cannot be", "silence"],
)
def test_one_that_does_not_tell_makes_no_sense(compositor: Compositor, words: bytes) -> None:
    with pytest.raises(Senseless):
        compositor.greets(words)


def test_one_that_goes_away_is_asked_again_and_nothing_of_before_counts(compositor: Compositor) -> None:
    compositor.greets(USUAL)
    compositor.says(event(6, 0))
    compositor.now_s += 100.0
    compositor.sense.idle_s()
    assert compositor.link is not None
    compositor.link.close()
    with pytest.raises(Senseless, match="does not answer"):
        compositor.sense.idle_s()
    assert compositor.greets(USUAL) == 0.0


@pytest.mark.parametrize("environment", [{}, {"WAYLAND_DISPLAY": "wayland-1"}, {"WAYLAND_DISPLAY": "/nowhere/at/all"}])
def test_without_a_display_it_says_so(environment: dict[str, str]) -> None:
    with pytest.raises(Senseless):
        WaylandIdle(environment).idle_s()
