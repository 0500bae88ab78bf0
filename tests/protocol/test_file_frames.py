"""Frames of files: at once from the page cache, in a thread where a disk is waited for, the same bytes either way."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.transfers import Transfers
from protocol.errors import MalformedMessage
from protocol.file_frames import FileFrames
from protocol.framing import frames_of
from protocol.ids import Digest
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES

CONTENT = os.urandom(2 * FRAME_BYTES + 77)

tells_what_is_cached = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs Linux")


@pytest.fixture
def frames(tmp_path: Path) -> Callable[..., FileFrames]:
    path = tmp_path / "block"
    path.write_bytes(CONTENT)
    return lambda offset=0: FileFrames(path.open("rb"), offset, bytearray(FRAME_HEADER_BYTES + FRAME_BYTES))


def expected(offset: int = 0) -> list[bytes]:
    return list(frames_of(lambda start, length: CONTENT[start : start + length], len(CONTENT), offset))


@tells_what_is_cached
@pytest.mark.parametrize("offset", [0, 5, FRAME_BYTES, len(CONTENT)])
def test_what_is_cached_comes_at_once(frames: Callable[..., FileFrames], offset: int) -> None:
    some = frames(offset)
    assert list(iter(some.at_once, None)) == expected(offset)
    assert next(some, None) is None
    some.close()


@tells_what_is_cached
@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, "not cached"), OSError(errno.EOPNOTSUPP, "never")])
def test_what_must_be_waited_for_comes_the_other_way(
    frames: Callable[..., FileFrames], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    some = frames()
    got = [some.at_once()]

    def refuse(*_: Any) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        assert some.at_once() is None
        got.append(next(some))
    got += list(some)
    some.close()
    assert got == expected()


@tells_what_is_cached
def test_half_a_frame_that_is_cached_is_none(
    frames: Callable[..., FileFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    some, whole = frames(), os.preadv
    monkeypatch.setattr(os, "preadv", lambda where, views, *rest: whole(where, [views[0][:1000]], *rest))
    assert some.at_once() is None
    assert list(some) == expected()
    some.close()


def test_a_file_in_memory_is_read_too() -> None:
    some = FileFrames(io.BytesIO(CONTENT), 3, bytearray(FRAME_HEADER_BYTES + FRAME_BYTES))
    assert some.at_once() is None
    assert list(some) == expected(3)


def test_an_offset_outside_lets_go_of_the_file() -> None:
    file = io.BytesIO(CONTENT)
    with pytest.raises(MalformedMessage):
        FileFrames(file, len(CONTENT) + 1, bytearray(FRAME_HEADER_BYTES + FRAME_BYTES))
    assert file.closed


async def test_a_file_that_is_opened_for_a_call_that_has_ended_is_closed(tmp_path: Path) -> None:
    """The thread that opens it cannot be stopped: the call is cancelled while it is at it."""
    (tmp_path / "block").write_bytes(b"12345678")
    begun, go_on, opened = threading.Event(), threading.Event(), list[FileFrames]()

    class Slow(Transfers):
        def __init__(self) -> None:
            """Nothing of a run is needed to open a file."""

        def _block_frames(self, digest: Digest, offset: int) -> FileFrames:
            begun.set()
            go_on.wait(10.0)
            opened.append(FileFrames((tmp_path / "block").open("rb"), offset, bytearray(64)))
            return opened[0]

    call = asyncio.ensure_future(Slow()._opened(Digest("0" * 64), 0))
    await asyncio.to_thread(begun.wait, 10.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    async with asyncio.timeout(10.0):
        while not opened or not opened[0]._file.closed:
            await asyncio.to_thread(lambda: None)
