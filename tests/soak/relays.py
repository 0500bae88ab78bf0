"""A line between two processes that can stop passing bytes on, one way or both, and go on where it stopped.

Whoever dials reaches the relay's port, which stays; whom it leads to may change. Nothing that was sent is lost, it is
held: as on a network that a cable was pulled from, and where whoever sends does not hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum

PIECE_BYTES = 64 * 1024


class Way(StrEnum):
    """Seen from whoever dials."""

    THERE = "there"
    BACK = "back"


BOTH = (Way.THERE, Way.BACK)


class Relay:
    """`start` once, `close` once."""

    def __init__(self) -> None:
        self.port = self.target = 0
        """Where it is dialled, and whom it reaches there; 0: nobody."""
        self._open = {way: asyncio.Event() for way in BOTH}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._dialled, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, *ways: Way) -> None:
        """Nothing passes these ways any more, on whatever connection."""
        for way in ways:
            self._open[way].clear()

    def heal(self) -> None:
        """Everything passes, what was held first."""
        for way in BOTH:
            self._open[way].set()

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _dialled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        for way, source, sink in ((Way.THERE, reader, far_writer), (Way.BACK, far_reader, writer)):
            task = asyncio.create_task(self._pass_on(way, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while True:
                    piece = await source.read(PIECE_BYTES)
                    await self._open[way].wait()  # an end is not heard of either
                    if not piece:
                        return
                    sink.write(piece)
                    await sink.drain()
        finally:
            sink.close()
