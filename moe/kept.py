"""Frozen experts in memory: as what they are kept, and the two stores that nothing has to be brought from.

Decides the bytes of a layer: every matrix's pieces, of all its experts, one after the other in one piece of memory, so
that a layer is brought by one copy (`moe.brought`). Holds always: every store decodes the same codes by the same rule,
so where experts lie changes no bit.

Shapes: F frozen experts of a layer, N and H rows and columns of a matrix as its class has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from moe.stand_ins import coded_parts
from protocol.codecs_grouped import GroupedCodec
from protocol.codecs_int import IntCodec
from protocol.encoded_block import lying_in
from protocol.specs import TensorSpec

_ALIGNED: Final = 256
"""Bytes at whose multiples pieces begin: what devices like best."""

Pieces = Mapping[str, tuple[Tensor, ...]]
"""Of one layer: each tensor's name in a column's block to what its codec makes of all F experts: [F, scales] and
[F, bytes]; or to its values, [F, N, H]."""
ColumnBlocks = Sequence[Mapping[str, Tensor]]
"""One for each frozen expert of a layer, in the order of slots."""
LayerBlocks = Sequence[ColumnBlocks]
"""Those of each layer; none at all: nothing is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSpec:
    """The matrix that every frozen expert of a layer has under this name."""

    name: str
    """In a column's block."""
    shape: tuple[int, int]
    count: int
    """F."""

    @property
    def elements(self) -> int:
        """Of one expert's."""
        return math.prod(self.shape)


Layers = Sequence[Sequence[FrozenSpec]]
"""Each layer's matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptForm:
    """What frozen experts are kept as."""

    codec: IntCodec | None
    """None: numbers, in `dtype`."""
    dtype: torch.dtype
    """What is multiplied."""

    def layer_bytes(self, specs: Sequence[FrozenSpec]) -> int:
        """Of all experts of a layer."""
        return sum(_aligned(size) for spec in specs for _, _, size in self._pieces(spec))

    def pieces_in(self, memory: Tensor, specs: Sequence[FrozenSpec]) -> Pieces:
        """A layer's, as they lie in `memory`, uint8."""
        found: dict[str, tuple[Tensor, ...]] = {}
        offset = 0
        for spec in specs:
            views = []
            for dtype, shape, size in self._pieces(spec):
                views.append(memory[offset : offset + size].view(dtype).view(spec.count, *shape))
                offset += _aligned(size)
            found[spec.name] = tuple(views)
        return found

    def _pieces(self, spec: FrozenSpec) -> Iterator[tuple[torch.dtype, tuple[int, ...], int]]:
        """Dtype, shape of one expert's, and bytes of all of them."""
        if self.codec is None:
            yield self.dtype, spec.shape, spec.count * spec.elements * self.dtype.itemsize
            return
        for wire, dtype in zip(self.codec.wire_specs(TensorSpec(spec.name, spec.shape)), _CODED, strict=True):
            yield dtype, wire.shape, spec.count * wire.elements * dtype.itemsize

    def fill(self, pieces: Pieces, blocks: ColumnBlocks) -> None:
        """Put there what `blocks` have."""
        for name, targets in pieces.items():
            for slot, block in enumerate(blocks):
                found = (block[name],) if self.codec is None else coded_parts(block, name, self.codec)
                for target, part in zip(targets, found, strict=True):
                    target[slot].copy_(part)

    def decoded(self, pieces: Pieces, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """[last - first, N, H] of a layer's: a view where they are numbers, else in the workspace's memory."""
        if self.codec is None:
            return pieces[spec.name][0][first:last]
        scales, codes = (piece[first:last] for piece in pieces[spec.name])
        values = workspace[: (last - first) * spec.elements]
        if spec.elements % self.codec.group == 0:  # then codes of several experts are those of one longer tensor
            self.codec.decode_into((scales.flatten(), codes.flatten()), values)
        else:
            for one, *parts in zip(values.view(last - first, -1), scales, codes, strict=True):
                self.codec.decode_into((parts[0], parts[1]), one)
        return values.view(last - first, *spec.shape)


_CODED: Final = (torch.bfloat16, torch.uint8)
"""Dtypes of a codec's scales and codes."""


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class FrozenStore(Protocol):
    """Where the frozen experts of one shard lie."""

    def take(self, blocks: LayerBlocks) -> None:
        """Hold what these blocks have, in place of what it held."""

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """[last - first, N, H] of experts, in the workspace's dtype and on its device: in its memory, or where they
        lie. Good until the next call."""

    def let_go(self) -> None:
        """Forget what was taken, where it is others' memory."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A store that gains by knowing what comes."""

    def expect(self, layer: int, spec: FrozenSpec, pieces: Sequence[tuple[int, int]], workspace: Tensor) -> None:
        """`values` is asked for these experts [first, last) next, in this order, with the same workspace."""


class ResidentStore:
    """All of them on one device."""

    def __init__(self, layers: Layers, form: KeptForm, device: torch.device) -> None:
        self._form = form
        self._layers = [
            form.pieces_in(torch.empty(form.layer_bytes(specs), dtype=torch.uint8, device=device), specs)
            for specs in layers
        ]

    def take(self, blocks: LayerBlocks) -> None:
        """Copied."""
        for pieces, found in zip(self._layers, blocks, strict=True):
            self._form.fill(pieces, found)

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """Decoded."""
        return self._form.decoded(self._layers[layer], spec, first, last, workspace)

    def let_go(self) -> None:
        """It has memory of its own."""


class SplitStore:
    """The first layers in one store, on a second device, and those behind them in another."""

    def __init__(self, first: FrozenStore, count: int, rest: FrozenStore | None) -> None:
        self._first, self._count, self._rest = first, count, rest

    def take(self, blocks: LayerBlocks) -> None:
        """Each its own."""
        self._first.take(blocks[: self._count])
        if self._rest is not None:
            self._rest.take(blocks[self._count :])

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """On the device of the store that has them."""
        if layer < self._count:
            return self._first.values(layer, spec, first, last, workspace)
        assert self._rest is not None
        return self._rest.values(layer - self._count, spec, first, last, workspace)

    def let_go(self) -> None:
        """Both."""
        for store in (self._first, self._rest):
            if store is not None:
                store.let_go()


class LyingStore:
    """Nowhere but in their blocks, which are read whenever they are computed with: of mapped files that is no memory of
    the process at all. For a device that computes in main memory."""

    def __init__(self, form: KeptForm) -> None:
        self._form = form
        self._blocks: LayerBlocks = ()

    def take(self, blocks: LayerBlocks) -> None:
        """Kept as they are."""
        self._blocks = tuple(blocks)

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """Decoded from the blocks; encoded first, where they came in something else."""
        values = workspace[: (last - first) * spec.elements].view(last - first, *spec.shape)
        for one, block in zip(values, self._blocks[layer][first:last], strict=True):
            self._decode(block, spec.name, one)
        return values

    def _decode(self, block: Mapping[str, Tensor], name: str, values: Tensor) -> None:
        codec, lying = self._form.codec, lying_in(block, name)
        if codec is not None:
            codec.decode_into(coded_parts(block, name, codec), values)
        elif lying is not None and isinstance(lying.codec, GroupedCodec):
            lying.codec.decode_into(lying.parts, values)
        else:
            values.copy_(block[name])

    def let_go(self) -> None:
        """Their files may go."""
        self._blocks = ()
