"""Digests of large blocks' chunks, as workers are told them that take the blocks from one another.

Decides that a block is read for it once, when the first worker asks, one block at a time. Always: what cannot be read
at present is not told, and is then taken as small blocks are. Reads blocks; in memory alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from coordinator.store.ports import BlobStore
from protocol.chunks import Chunks, chunk_digests, has_chunks
from protocol.errors import BarnraiseError
from protocol.ids import Digest

PATIENCE_S: Final = 3.0
"""An answer waits no longer for the disk: some gigabytes. Whoever asks again is told then."""


class ChunkBook:
    """One run's."""

    def __init__(self, blocks: BlobStore) -> None:
        self._blocks = blocks
        self._readings: dict[Digest, asyncio.Task[Chunks | None]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def of(self, digest: Digest) -> Chunks | None:
        """Of a block that is served; None where it is none that has them, or where it takes too long to say now."""
        reading = self._readings.get(digest)
        if reading is None:
            reading = self._readings[digest] = asyncio.create_task(self._in_turn(digest))
        await asyncio.wait({reading}, timeout=PATIENCE_S)
        found = reading.result() if reading.done() else None
        if reading.done() and found is None:  # a disk that failed may not the next time
            self._readings.pop(digest, None)
        return found

    def keep(self, served: frozenset[Digest]) -> None:
        """Forget blocks that nobody may fetch any more."""
        self._readings = {digest: one for digest, one in self._readings.items() if digest in served or not one.done()}

    async def _in_turn(self, digest: Digest) -> Chunks | None:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._read, digest)

    def _read(self, digest: Digest) -> Chunks | None:
        try:
            size = self._blocks.stat(digest)
            if size is None or not has_chunks(size):
                return None
            with self._blocks.open(digest) as content:
                return chunk_digests(content.read, size)
        except (OSError, BarnraiseError):
            return None
