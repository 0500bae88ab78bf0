"""One thread's work for all uploads: frames are hashed and written as many at a time as have come.

Decides how often the event loop calls on a thread: while frames are written, others gather, of whichever upload, and
go together. Always: frames of one upload are written in order, a frame that fails fails alone, and an upload has at
most one frame here, so that what is held is bounded by the uploads that are under way. Touches what it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.store.ports import Upload
from protocol.framing import FrameReader


@dataclass(frozen=True, slots=True)
class _Frame:
    upload: Upload
    reader: FrameReader
    frame: bytes
    written: asyncio.Future[None]


class UploadWriter:
    """Writes frames, away from the event loop."""

    def __init__(self) -> None:
        self._waiting: list[_Frame] = []
        self._busy = False

    async def write(self, upload: Upload, reader: FrameReader, frame: bytes) -> None:
        """`frame` through `reader` into `upload`; raises what either raises."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Frame(upload, reader, frame, written))
        if not self._busy:
            self._go_on()
        await written

    def _go_on(self) -> None:
        frames, self._waiting = self._waiting, []
        self._busy = bool(frames)
        if frames:
            done = asyncio.get_running_loop().run_in_executor(None, _write_all, frames)
            done.add_done_callback(lambda done: self._settle(frames, done))

    def _settle(self, frames: Sequence[_Frame], done: asyncio.Future[list[Exception | None]]) -> None:
        self._go_on()  # first: the thread need not wait for us
        for frame, error in zip(frames, done.result(), strict=True):
            if frame.written.done():
                continue  # its upload was broken off
            if error is None:
                frame.written.set_result(None)
            else:
                frame.written.set_exception(error)


def _write_all(frames: Sequence[_Frame]) -> list[Exception | None]:
    return [_write(frame) for frame in frames]


def _write(frame: _Frame) -> Exception | None:
    try:
        frame.upload.write(frame.reader.feed(frame.frame))
    except Exception as error:
        return error
    return None
