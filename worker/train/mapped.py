"""A fetched block where it lies: read when it is asked for, and again when it is needed again, never kept.

Decides nothing. A lease's start values are needed twice, to build the shard and to subtract what it became, and frozen
columns once: between, they are in the page cache at most, which the system takes back, and not in this process. Always:
the file is one that the block cache has checked by its digest, and that stays for as long as the lease needs it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from protocol.codecs import Codec
from protocol.specs import TensorSpec
from protocol.tensors import EncodedTensor, encoded_tensors


class MappedBlock(Mapping[str, Tensor]):
    """fp32 tensors by name; in fp32 they are views of the file, else decoded anew each time they are asked for."""

    def __init__(self, found: Mapping[str, EncodedTensor]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def mapped_block(path: Path, specs: Sequence[TensorSpec], codec: Codec) -> MappedBlock:
    """The block at `path`; MalformedMessage unless the file is exactly `specs` in `codec`."""
    with path.open("rb") as file:
        if not file.seek(0, 2):  # nothing cannot be mapped
            return MappedBlock(encoded_tensors(memoryview(bytearray()), specs, codec))
        # private: torch wants memory that it may write to, and nothing that it wrote would reach the file
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return MappedBlock(encoded_tensors(view, specs, codec))
