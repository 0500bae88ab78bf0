"""Rounding at random: which way a value is rounded follows from the lease's seed, the step, the tensor and the element.

Decides the bits (`moe.hashed`), so that they are the same on every device, however a batch is cut and wherever a lease
is taken up again (docs/decisions/0047). Holds always: what is rounded is unbiased, a value that needs no rounding
stays, and what is not finite stays so. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from moe.hashed import SPAN, cut, hashed_bits

__all__ = ["SPAN", "StepBits", "round_to_bf16", "spans"]

_LOW_HALF: Final = 0xFFFF


class StepBits(NamedTuple):
    """The random bits of one tensor in one step."""

    seed: int
    step: int
    tensor: int

    def bits(self, start: int, stop: int, device: torch.device) -> Tensor:
        """32 bits for each of the elements [start, stop): int32."""
        return hashed_bits((self.seed, self.step, self.tensor), start, stop, device)


def spans(elements: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each span of a tensor of so many elements."""
    return cut(0, elements)


def round_to_bf16(values_N: Tensor, bits_N: Tensor) -> Tensor:
    """fp32 values become, in place, one of the two bf16 values beside them, each as often as it is near.

    Of `bits_N` the lower 16 are used: as many as are cut off.
    """
    lost_N = values_N.isnan()
    pattern_N = values_N.view(torch.int32)
    pattern_N.add_(bits_N & _LOW_HALF).bitwise_and_(~_LOW_HALF)
    return values_N.masked_fill_(lost_N, torch.nan)
