"""A trunk matrix that is trained at low rank: W + B·A, of which A is fixed and B, which begins at 0, is trained.

Decides A's bits: each value is + or - c by an integer hash of seed, tensor and element, so that whoever draws it has
the same, on every device and in every dtype: c is the power of two nearest to rank^-1/2, which any float has exactly.
With that c a gradient keeps its length on the way from W to B, and a step of B moves W's values as far, in the mean, as
the same step of W would (Achlioptas 2003, "Database-friendly random projections": signs are as good as Gaussians).
And how what was sent of B is read: as the product, a span at a time, so that whoever screens and aggregates sees
ordinary tensors of the trunk: averaged factors are not the averaged product (docs/decisions/0055). Always: of what is
read nothing is in memory but B, A and the span.

Shapes: T tokens in any number of dimensions, H hidden, N outputs, R rank.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn

from moe.hashed import hashed_bits
from moe.layout import Layout
from moe.trunk import trunk_sort
from protocol.ids import TRUNK, BlockId
from protocol.lease import TrunkPart
from protocol.tensors import EncodedTensor

FACTOR: Final = "lora_b"
"""What a module calls B."""
_FIXED: Final = "lora_a"
_Sent = TypeVar("_Sent", Tensor, EncodedTensor)
CPU: Final = torch.device("cpu")


def fixed_factor(part: TrunkPart, name: str, width: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A of the matrix `name`, whose rows are `width` long: [R, H]."""
    named = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    bits_P = hashed_bits((part.seed, named), 0, part.rank * width, device)
    size = 2.0 ** round(-0.5 * math.log2(part.rank))
    signs_P = torch.where(bits_P < 0, -size, size)
    return signs_P.to(dtype).view(part.rank, width)


@functools.lru_cache(maxsize=4)
def _kept_factor(part: TrunkPart, name: str, width: int) -> Tensor:
    """Of the tensors that are read one after the other from many submissions."""
    return fixed_factor(part, name, width, device=CPU, dtype=torch.float32)


class Product:
    """B·A where B lies: what reads tensors in spans reads it as one of W's shape (`aggregation.pieces.LazyPiece`)."""

    __slots__ = ("_name", "_part", "_rows_NR", "_sent", "dtype", "shape")

    def __init__(self, sent: Tensor | EncodedTensor, part: TrunkPart, name: str, shape: tuple[int, ...]) -> None:
        """`sent` is B, of as many rows as `shape`, W's, has."""
        self.shape, self.dtype = shape, torch.float32
        self._sent, self._part, self._name = sent, part, name
        self._rows_NR: Tensor | None = None

    def span(self, start: int, stop: int) -> Tensor:
        """[stop - start] of the flattened product. B stays decoded until its last span is read: walks go on to another
        tensor then, and of many submissions one tensor each is in memory."""
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        values_P = (self._rows()[first:last] @ _kept_factor(self._part, self._name, width)).view(-1)
        if stop == self.shape[0] * width:
            self._rows_NR = None
        return values_P[start - first * width : stop - first * width]

    def whole(self) -> Tensor:
        """[N, H]: all of it."""
        return self._rows() @ _kept_factor(self._part, self._name, self.shape[1])

    def _rows(self) -> Tensor:
        if self._rows_NR is None:
            self._rows_NR = self._sent if isinstance(self._sent, Tensor) else self._sent.whole()
        return self._rows_NR


def as_products(
    layout: Layout, part: TrunkPart, block: BlockId, sent: Mapping[str, _Sent]
) -> dict[str, _Sent | Product]:
    """What was sent of a block, its factors as the products that they stand for; in the block's own order."""
    found = trunk_sort(layout.config_json, part) if block == TRUNK else None
    factored = frozenset[str]() if found is None else found.factored
    return {
        spec.name: Product(sent[spec.name], part, spec.name, spec.shape) if spec.name in factored else sent[spec.name]
        for spec in layout.block_specs(block)
        if spec.name in sent
    }


def attach_factor(linear: nn.Linear, fixed_RH: Tensor) -> nn.Parameter:
    """Let the layer multiply by W + B·A from now on, without ever making their sum; B, which is 0 and fp32: [N, R]."""
    made = torch.zeros((linear.out_features, fixed_RH.shape[0]), dtype=torch.float32, device=fixed_RH.device)
    factor_NR = nn.Parameter(made)
    linear.register_parameter(FACTOR, factor_NR)
    linear.register_buffer(_FIXED, fixed_RH, persistent=False)
    cast(Any, linear).forward = partial(_adapted, linear, linear.forward)
    return factor_NR


def _adapted(linear: Any, plain: Any, x_TH: Tensor) -> Tensor:
    through_TR = nn.functional.linear(x_TH, linear.lora_a)
    return cast(Tensor, plain(x_TH) + nn.functional.linear(through_TR, linear.lora_b))
