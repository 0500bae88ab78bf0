"""Takes a block from another worker a chunk at a time, each checked before it is kept.

Decides that nothing of a chunk is passed on before all of it has come and is what the coordinator told of it; that a
transfer which goes on in the middle of a chunk takes that one from its beginning; and that whoever gave another chunk
is left, while what came before stays. Always: one chunk at most is in memory. Touches nothing but its source.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from protocol.chunks import Chunks
from protocol.errors import Unavailable
from protocol.ids import Digest
from worker.ports import BlockSource


class ChunkedSource:
    """A source of one block, whose chunks are known."""

    def __init__(self, source: BlockSource, chunks: Chunks) -> None:
        self._source, self._chunks = source, chunks

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As a `BlockSource`. Unavailable where a chunk is another: nothing of it has been passed on."""
        size = self._chunks.chunk_bytes
        number, passed_over = divmod(offset, size)
        chunk = bytearray()
        async with aclosing(self._source.block(digest, payload_bytes, number * size)) as pieces:
            async for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    wanted = min(size, payload_bytes - number * size) - len(chunk)
                    chunk += rest[:wanted]
                    rest = rest[wanted:]
                    if len(chunk) < min(size, payload_bytes - number * size):
                        break
                    if not self._chunks.holds(number, chunk):
                        raise Unavailable(f"another worker gave something else than chunk {number} of {digest[:12]}…")
                    yield memoryview(chunk)[passed_over:]
                    number, passed_over, chunk = number + 1, 0, bytearray()
