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

CHUNK_ELEMENTS = 1 << 16
"""fp64 of one chunk is 512 KiB and stays in the second-level cache."""


def block_norm(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> float:
    """L2 norm over all entries of a block; NaN or infinite exactly when some entry is not finite.

    >>> block_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    return math.sqrt(math.fsum(sum_of_squares(tensor) for tensor in values))


def sum_of_squares(tensor: Tensor) -> float:
    """Sum of squares in fp64, by chunks; NaN or infinite exactly when some entry is not finite."""
    total = 0.0
    flat_P = tensor.detach().reshape(-1)
    for start in range(0, flat_P.numel(), CHUNK_ELEMENTS):
        wide_P = flat_P[start : start + CHUNK_ELEMENTS].to(torch.float64)
        total += float(torch.dot(wide_P, wide_P))
    return total


def clip_scale(norm_l2: float, max_norm_l2: float) -> float:
    """What to multiply by so that a norm of `norm_l2` is at most `max_norm_l2`; 1 when it already is.

    >>> clip_scale(4.0, 1.0), clip_scale(1.0, 4.0), clip_scale(0.0, math.inf)
    (0.25, 1.0, 1.0)
    """
    return max_norm_l2 / norm_l2 if norm_l2 > max_norm_l2 else 1.0
