"""Names of things, as types, so that a lease id can never be passed where a worker id is meant.

Decides nothing and touches nothing. Block ids are the only ones with structure: the trunk, or one expert column.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO, NewType

RunId = NewType("RunId", str)
WorkerId = NewType("WorkerId", str)
LeaseId = NewType("LeaseId", str)
BlockId = NewType("BlockId", str)
Digest = NewType("Digest", str)
"""SHA-256 of the content, 64 lower-case hexadecimal characters."""
Version = NewType("Version", int)
RoundNumber = NewType("RoundNumber", int)

TRUNK = BlockId("trunk")
_COLUMN_PREFIX = "column."
_PIECE_BYTES = 1 << 20


def column_block(column: int) -> BlockId:
    """The block of expert column `column` (expert `column` of every MoE layer)."""
    if column < 0:
        raise ValueError(f"expert column must be 0 or more, got {column}")
    return BlockId(f"{_COLUMN_PREFIX}{column}")


def column_of(block: BlockId) -> int | None:
    """The expert column that `block` holds; None for the trunk. Raises ValueError on any other text."""
    if block == TRUNK:
        return None
    digits = block.removeprefix(_COLUMN_PREFIX)
    if digits == block or not digits.isascii() or not digits.isdigit() or str(int(digits)) != digits:
        raise ValueError(f"not a block id: {block!r}")
    return int(digits)


def digest_of(payload: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 of `payload` as a content address."""
    return Digest(hashlib.sha256(payload).hexdigest())


def stream_digest(file: BinaryIO) -> Digest:
    """SHA-256 of what is left to read of an open file, whatever its size."""
    hasher = hashlib.sha256()
    while piece := file.read(_PIECE_BYTES):
        hasher.update(piece)
    return Digest(hasher.hexdigest())


def worker_id_of(public_key: bytes) -> WorkerId:
    """The worker id that an Ed25519 public key (32 bytes) stands for: 128 bits of its SHA-256, in hexadecimal."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, got {len(public_key)}")
    return WorkerId(hashlib.sha256(public_key).hexdigest()[:32])
