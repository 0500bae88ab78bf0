"""Frames of a file: at once while the page cache has them, in a thread only where the disk must be waited for.

Decides where a frame is read. Always: `at_once` never waits for a disk, so the event loop may call it; `next` may. The
same bytes either way. Touches the file that it is given, which it closes.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from protocol.errors import MalformedMessage
from protocol.framing import frame_header, frames_of
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES

READ_AHEAD_BYTES = 16 * FRAME_BYTES
"""Asked of a disk when it was waited for, so that what comes next is at once."""

_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""A read that would wait fails in place of waiting: Linux. Elsewhere every frame is read in a thread."""

Frames = TypeVar("Frames", bound=Iterator[bytes])


class FileFrames(Iterator[bytes]):
    """Frames of a file's bytes from `offset` on."""

    def __init__(self, file: BinaryIO, offset: int, scratch: bytearray) -> None:
        """MalformedMessage where `offset` lies outside.

        `scratch` has room for a frame, and may be shared by all that one thread asks for frames `at_once`.
        """
        self._file, self._scratch = file, memoryview(scratch)
        self._offset, self._size = offset, file.seek(0, os.SEEK_END)
        self._descriptor = _descriptor_of(file)
        try:
            self._rest()
        except MalformedMessage:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether the last frame was given: nobody need ask a thread to learn that."""
        return self._offset >= self._size

    def at_once(self) -> bytes | None:
        """The next frame, where no disk is waited for; None: ask `next`, in a thread."""
        length = min(FRAME_BYTES, self._size - self._offset)
        if self._descriptor is None or length <= 0:
            return None
        frame = self._scratch[: FRAME_HEADER_BYTES + length]
        try:
            count = os.preadv(self._descriptor, [frame[FRAME_HEADER_BYTES:]], self._offset, _NOWAIT or 0)
        except BlockingIOError:
            return None
        except OSError:  # a file system that does not tell
            self._descriptor = None
            return None
        if count < length:
            return None
        frame[:FRAME_HEADER_BYTES] = frame_header(self._offset, length)
        self._offset += length
        return bytes(frame)

    def __next__(self) -> bytes:
        """The next frame, however long it takes."""
        if self.ended:
            raise StopIteration
        frame = next(self._rest())
        self._offset += len(frame) - FRAME_HEADER_BYTES
        return frame

    async def read(self) -> bytes:
        """The next frame, for the event loop: from a thread where it takes long."""
        at_once = self.at_once()
        return await asyncio.to_thread(self.__next__) if at_once is None else at_once

    def close(self) -> None:
        """Let go of the file; again is fine."""
        self._descriptor = None
        self._file.close()

    def _rest(self) -> Iterator[bytes]:
        return frames_of(self._read, self._size, self._offset)

    def _read(self, start: int, length: int) -> bytes:
        if self._descriptor is not None and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        self._file.seek(start)
        return self._file.read(length)


async def opened(opening: Callable[[], Frames]) -> Frames:
    """A file's frames, as a thread opened them; what it opens for a call that has ended meanwhile is closed."""
    waiting = asyncio.ensure_future(asyncio.to_thread(opening))
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        waiting.add_done_callback(_close_opened)
        raise


def _close_opened(opening: asyncio.Future[Frames]) -> None:
    if not opening.cancelled() and opening.exception() is None and isinstance(frames := opening.result(), FileFrames):
        frames.close()


def _descriptor_of(file: BinaryIO) -> int | None:
    """Of a file that can be read without waiting."""
    if _NOWAIT is None:
        return None
    try:
        return file.fileno()
    except io.UnsupportedOperation:  # in memory
        return None
