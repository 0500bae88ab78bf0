"""Integers of 8 and 4 bits, block-wise, without state: for workers whose residuals nobody vouches for.

A group's step is its largest magnitude by the largest level, rounded up to bf16, so every value lies within the
levels. As in Dettmers et al., 8-bit Optimizers via Block-wise Quantization (2021), https://arxiv.org/abs/2110.02861,
with even steps.

Bound: a value is off by at most 0.501 of a step, and a step is at most the larger of 2**-126 and 1.008 of the group's
largest magnitude by the largest level (127, 7). Values up to the largest of fp32 come back finite.

Four bits are one format for the wire and for memory (`moe.frozen`), and one that others read: codes plus 8, the first
of two in the low half of a byte, are `weight_packed` of compressed-tensors' `pack-quantized` (little-endian int32 of
eight codes), and scales its `weight_scale`, symmetric, in groups of 64 along rows whose length 64 divides.
https://github.com/neuralmagic/compressed-tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.codecs_grouped import SMALLEST_NORMAL, GroupedCodec, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class IntCodec(GroupedCodec):
    """Levels of -`highest` to `highest`, in bytes or two to a byte."""

    bits: int
    largest_step: float
    """The largest bf16 whose product with `highest` fp32 still holds."""

    @property
    def highest(self) -> int:
        """The largest level."""
        return (1 << (self.bits - 1)) - 1

    @property
    def bits_per_parameter(self) -> float:
        """A code's, and a share of the scale."""
        return self.bits + 16 / self.group

    def code_bytes(self, elements: int) -> int:
        """Groups are filled up."""
        return self._groups(elements) * self.group * self.bits // 8

    def _pack(self, wanted_GN: Tensor, elements: int, scales_G: Tensor, codes: Tensor) -> None:
        import torch

        del elements
        # Numbers above 0 rank as their bits do, and those are compared twice as fast; `amin` sees what is below.
        positive_G = wanted_GN.view(torch.int32).amax(-1).view(torch.float32)
        largest_G = torch.maximum(positive_G, wanted_GN.amin(-1).neg_())
        require_finite(largest_G)
        step_G = largest_G.div_(self.highest)
        step_G.view(torch.int32).add_(0xFFFF).bitwise_and_(~0xFFFF)  # up to the next bf16
        step_G.clamp_(SMALLEST_NORMAL, self.largest_step)
        scales_G.copy_(step_G)
        levels_GN = torch.mul(wanted_GN, step_G.reciprocal_().unsqueeze(-1)).round_()
        if self.bits == 8:
            codes.view(torch.int8).view(levels_GN.shape).copy_(levels_GN)
        else:
            pairs = levels_GN.to(torch.int8).add_(8).view(torch.int16)  # 1 to 15, the second of two in the high byte
            codes.view(pairs.shape).copy_((pairs | pairs >> 4).bitwise_and_(0xFF))

    def _unpack(self, codes: Tensor, levels: Tensor) -> None:
        import torch

        if self.bits == 8:
            levels.copy_(codes.view(torch.int8))
        else:
            pairs = codes.to(torch.int16)
            halves = pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F).view(torch.int8)
            levels.copy_(halves.sub_(8))


INT8 = IntCodec(name="int8", group=256, has_state=False, bits=8, largest_step=(1 + 2.0**-7) * 2.0**121)
INT4 = IntCodec(name="int4", group=64, has_state=False, bits=4, largest_step=(1 + 18 / 128) * 2.0**125)
