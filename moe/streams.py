"""A checkpoint's tensors as blocks, without the memory to hold it: each is made a span at a time, where it is written.

Decides how each tensor of a block is read. Reads only. Holds always: the values are those of `from_pretrained` in fp32,
bit for bit, and what cannot be so is refused before anything is read; what is in memory at a time is a span of
`moe.stored.SPAN` values, or one expert's row of one tensor where weights are dequantised or turned around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe.blocks import part_of
from moe.layout import Layout
from moe.mapping import LaidOut, Made
from moe.stored import SPAN
from protocol.errors import ConfigError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.text import human_bytes

Told = Callable[[int], object]
"""Hears of bytes that were read."""


@dataclass(frozen=True, slots=True)
class PiecedTensor:
    """Values [start, stop) of a tensor that is made of others, one after the other."""

    shape: tuple[int, ...]
    source: LaidOut
    start: int
    told: Told

    def spans(self) -> Iterator[Tensor]:
        """Its values in order, fp32, some at a time; ConfigError where a file cannot be read."""
        for piece in self.source.pieces(self.start, self.start + math.prod(self.shape)):
            for span in piece.stored.spans(piece.start, piece.stop):
                yield span
                self.told(span.numel() * piece.stored.value_bytes)

    def fill(self, values: Tensor) -> None:
        """Its values into `values`, of its shape and in one piece: nothing of it is in memory but there."""
        flat, at = values.view(-1), 0
        for piece in self.source.pieces(self.start, self.start + flat.numel()):
            count = piece.stop - piece.start
            piece.stored.fill(flat[at : at + count], piece.start)
            at += count
            self.told(count * piece.stored.value_bytes)


@dataclass(frozen=True, slots=True)
class PartOfSmall:
    """What one expert has of a small tensor (a bias) whose experts are not counted by its first dimension."""

    shape: tuple[int, ...]
    name: str
    source: PiecedTensor
    layout: Layout
    expert: int

    def spans(self) -> Iterator[Tensor]:
        """Its values at once, fp32; ConfigError where a file cannot be read."""
        yield part_of(read_whole(self.source), self.name, self.layout, self.expert).reshape(-1).contiguous()


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor, or one expert's row of it, that the operations of `transformers` make of stored ones."""

    shape: tuple[int, ...]
    made: Made
    expert: int | None
    model: PreTrainedModel
    told: Told

    def spans(self) -> Iterator[Tensor]:
        """Its values in order, fp32, some at a time; ConfigError where they cannot be made."""
        try:
            tensor = self.made.converted(self.expert, self.model)
        except (ValueError, RuntimeError, AssertionError, KeyError, IndexError) as error:
            raise ConfigError(f"{self.made.name} cannot be made of what the checkpoint holds: {error}") from error
        if tuple(tensor.shape) != self.shape:
            raise ConfigError(
                f"{self.made.name} is of another shape: {list(tensor.shape)} instead of {list(self.shape)}"
            )
        flat = tensor.reshape(-1)
        yield from (flat[start : start + SPAN] for start in range(0, flat.numel(), SPAN))
        self.told(self.made.payload_bytes // (1 if self.expert is None else self.made.shape[0]))


StreamedTensor = PiecedTensor | PartOfSmall | Computed
StreamedBlock = dict[str, StreamedTensor]


def streamed_blocks(
    made: Mapping[str, Made], layout: Layout, model: PreTrainedModel, told: Told = lambda _: None
) -> Iterator[tuple[BlockId, StreamedBlock]]:
    """Every block of the model, one at a time; nothing is read before its spans are asked for.

    `made` has no problems, and `model` is the one it was mapped for. `told` hears of bytes that were read.
    """
    laid_out = {name: one.laid_out() for name, one in made.items() if one.is_pieces}

    def streamed(name: str, shape: tuple[int, ...], expert: int | None) -> StreamedTensor:
        part = None if expert is None else layout.family.per_expert(name)
        if name in laid_out and part is not None and part.dim and expert is not None:
            return PartOfSmall(shape, name, PiecedTensor(made[name].shape, laid_out[name], 0, told), layout, expert)
        if name in laid_out:
            return PiecedTensor(shape, laid_out[name], (expert or 0) * math.prod(shape), told)
        return Computed(shape, made[name], expert, model, told)

    yield TRUNK, {spec.name: streamed(spec.name, spec.shape, None) for spec in layout.trunk}
    for column in range(layout.columns):
        expert, specs = layout.expert_of(column), layout.specs_of(column)
        yield column_block(column), {spec.name: streamed(spec.name, spec.shape, expert) for spec in specs}


def summed_up(total_bytes: int, told: Callable[[str], object]) -> Told:
    """What `streamed_blocks` tells, in words for a person."""
    done = 0

    def add(read_bytes: int) -> None:
        nonlocal done
        done += read_bytes
        told(f"reading the checkpoint: {human_bytes(done)} of {human_bytes(total_bytes)}")

    return add


def read_whole(tensor: StreamedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor in memory."""
    whole = torch.empty(tensor.shape, dtype=dtype)
    read_into(tensor, whole)
    return whole


def read_into(tensor: StreamedTensor, values: Tensor) -> None:
    """The tensor's values into memory that is there, of its shape and in one piece."""
    if isinstance(tensor, PiecedTensor):
        tensor.fill(values)
        return
    flat, start = values.view(-1), 0
    for span in tensor.spans():
        flat[start : start + span.numel()] = span
        start += span.numel()


def same_values(one: Made, other: Made) -> bool:
    """Whether two tensors hold the same, read a span at a time; unknown ones do not."""
    if not (one.is_pieces and other.is_pieces and one.problem() is None and other.problem() is None):
        return False
    tensors = [PiecedTensor(made.shape, made.laid_out(), 0, lambda _: None) for made in (one, other)]
    pairs = zip(tensors[0].spans(), tensors[1].spans(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)
