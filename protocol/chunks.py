"""Digests of a large block's chunks, so that a lie costs a chunk and not the block.

Decides which blocks have them and what of a coordinator's list is believed: one that fits the block's size, and no
other. The coordinator tells them beside who holds the block (`SourcesReply`), over the session's own line; the
manifest stays as it is, and the block is believed under its digest as ever. Touches nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 8 << 20
"""A holder that lies costs so much at most; four at once are 32 MiB of memory on whoever takes them."""
CHUNKED_ABOVE_BYTES: Final = 16 << 20
"""Smaller blocks cost no more than a few chunks do."""
MOST_CHUNKS: Final = 2048
"""Of one block: 16 GiB, and 64 KiB of digests."""
LEAST_CHUNK_BYTES: Final = 1 << 20
MOST_CHUNK_BYTES: Final = 16 << 20
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """One block's: SHA-256 of each `chunk_bytes` of it, the last of what is left."""

    chunk_bytes: int
    digests: bytes
    """One after the other."""

    def holds(self, number: int, content: bytes | bytearray | memoryview) -> bool:
        """Whether `content` is chunk `number`, counted from 0."""
        at = number * _DIGEST_BYTES
        return hashlib.sha256(content).digest() == self.digests[at : at + _DIGEST_BYTES]


def has_chunks(payload_bytes: int) -> bool:
    """Whether a block of this size has them."""
    return CHUNKED_ABOVE_BYTES < payload_bytes <= MOST_CHUNKS * CHUNK_BYTES


def chunk_digests(read: Callable[[int], bytes], payload_bytes: int) -> Chunks:
    """Of the content that `read` gives on and on."""
    count = -(-payload_bytes // CHUNK_BYTES)
    digests = b"".join(hashlib.sha256(read(CHUNK_BYTES)).digest() for _ in range(count))
    return Chunks(chunk_bytes=CHUNK_BYTES, digests=digests)


def believable(chunk_bytes: int, digests: bytes, payload_bytes: int) -> Chunks | None:
    """What a coordinator told of a block, where it can be of that block; otherwise it counts as not told."""
    if not LEAST_CHUNK_BYTES <= chunk_bytes <= MOST_CHUNK_BYTES:
        return None
    count = -(-payload_bytes // chunk_bytes)
    if count > MOST_CHUNKS or len(digests) != count * _DIGEST_BYTES:
        return None
    return Chunks(chunk_bytes=chunk_bytes, digests=digests)
