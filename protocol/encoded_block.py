"""A block where its payload lies: tensors are decoded when they are asked for, and again when they are needed again.

Decides nothing. Whoever wants values asks by name, as of any block; whoever can compute from codes asks for what lies
there (`encoded`), so that a block which came in 4 bits stays the very bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from protocol.tensors import EncodedTensor


class EncodedBlock(Mapping[str, Tensor]):
    """fp32 tensors by name; in fp32 they are views of the payload, else decoded anew each time they are asked for."""

    def __init__(self, found: Mapping[str, EncodedTensor]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def encoded(self, name: str) -> EncodedTensor:
        """The tensor in its codec's pieces."""
        return self._found[name]


def lying_in(block: Mapping[str, Tensor], name: str) -> EncodedTensor | None:
    """The tensor as it lies in its payload, where the block is such a one."""
    return block.encoded(name) if isinstance(block, EncodedBlock) else None
