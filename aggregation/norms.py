"""Norms of blocks, and what clipping to a norm multiplies by.

Sums of squares are taken in fp64: the square of any finite fp32 number is finite there (3.4e38 squared is 1.2e77), so a
norm is finite exactly when every entry is. One pass therefore measures and detects NaN and infinity at once; the fp32
norm would cry wolf at 1e30, and `torch.isfinite(X).all()` costs an extra gigabyte at 16 x 1e7.

Legend: P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from aggregation.pieces import Piece, granules, span_of, uncast


def block_norm(tensors: Mapping[str, Piece] | Iterable[Piece]) -> float:
    """L2 norm over all entries of a block; NaN or infinite exactly when some entry is not finite.

    >>> block_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    return math.sqrt(math.fsum(sum_of_squares(tensor) for tensor in values))


def sum_of_squares(piece: Piece) -> float:
    """Sum of squares in fp64, by granules, whose 512 KiB stay in the cache; decoded as it goes, once.

    NaN or infinite exactly when some entry is not finite.
    """
    total, flat = 0.0, uncast(piece)
    for start, stop in granules(math.prod(piece.shape)):
        wide_P = (span_of(piece, start, stop) if flat is None else flat[start:stop]).to(torch.float64)
        total += float(torch.dot(wide_P, wide_P))
    return total


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is. In one pass: only where finite entries sum to what is not are they looked at again."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def squared_distance(one: Tensor, other: Tensor, *, wide: bool = False) -> float:
    """Sum of squares of the difference, taken in fp32 (in fp64 if `wide`) and squared in fp64, by granules."""
    one_P, other_P = one.detach().reshape(-1), other.detach().reshape(-1)
    total = 0.0
    for start, stop in granules(one_P.numel()):
        first_P, second_P = one_P[start:stop], other_P[start:stop]
        apart_P = (first_P.double() - second_P.double()) if wide else (first_P - second_P).double()
        total += float(torch.dot(apart_P, apart_P))
    return total


def clip_scale(norm_l2: float, max_norm_l2: float) -> float:
    """What to multiply by so that a norm of `norm_l2` is at most `max_norm_l2`; 1 when it already is.

    >>> clip_scale(4.0, 1.0), clip_scale(1.0, 4.0), clip_scale(0.0, math.inf)
    (0.25, 1.0, 1.0)
    """
    return max_norm_l2 / norm_l2 if norm_l2 > max_norm_l2 else 1.0
