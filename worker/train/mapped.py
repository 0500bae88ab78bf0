"""A fetched block where it lies: read when it is asked for, and again when it is needed again, never kept.

Decides nothing. A lease's start values are needed twice, to build the shard and to subtract what it became, and frozen
columns once, or in every pass where they are computed from what lies here: between, they are in the page cache at most,
which the system takes back, and not in this process. Always: the file is one that the block cache has checked by its
digest, and that stays for as long as the lease needs it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

from protocol.codecs import Codec
from protocol.encoded_block import EncodedBlock
from protocol.specs import TensorSpec
from protocol.tensors import encoded_tensors


def mapped_block(path: Path, specs: Sequence[TensorSpec], codec: Codec) -> EncodedBlock:
    """The block at `path`; MalformedMessage unless the file is exactly `specs` in `codec`."""
    with path.open("rb") as file:
        if not file.seek(0, 2):  # nothing cannot be mapped
            return EncodedBlock(encoded_tensors(memoryview(bytearray()), specs, codec))
        # private: torch wants memory that it may write to, and nothing that it wrote would reach the file
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return EncodedBlock(encoded_tensors(view, specs, codec))
