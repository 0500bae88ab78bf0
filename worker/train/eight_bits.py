"""Moments in 8 bits: blocks of 256 values, each as a code of a table and the block's largest magnitude.

Decides the tables and the rounding. The table is a dynamic one (Dettmers et al. 2021, "8-bit Optimizers via Block-wise
Quantization", arXiv:2110.02861, section 2.1): each decade below the largest has half as many levels as the one above,
because a block's values lie orders of magnitude apart, and levels at even distances would make zeros of most of them.
Other than there, values are rounded at random: a moment moves by 1 % a step, and the next level is up to 10 % away, so
what is rounded to the nearest never moves (docs/decisions/0047). Holds always: zero stays zero, and of what may not be
negative nothing else becomes it: it is divided by.

Shapes: N elements, a multiple of 256; B blocks.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import torch
from torch import Tensor

from moe.weighing import CODED_BLOCK, CODED_BYTES

BLOCK: Final = CODED_BLOCK
"""Values that share a scale. The paper has 2048; its library went to 256, as one outlier then spoils less."""
BYTES: Final = CODED_BYTES
"""Of an element."""


class CodedMoment(NamedTuple):
    """N values as they are kept."""

    codes: Tensor
    """[N] uint8."""
    scale: Tensor
    """[B] fp32."""


def zeros(elements: int, device: torch.device) -> CodedMoment:
    """As many zeros, up to the end of a block."""
    blocks = -(-elements // BLOCK)
    codes_N = torch.zeros(blocks * BLOCK, dtype=torch.uint8, device=device)
    return CodedMoment(codes_N, torch.zeros(blocks, dtype=torch.float32, device=device))


@functools.cache
def levels(*, signed: bool) -> Tensor:
    """What each code stands for, ascending, in shares of the largest magnitude: fp32."""
    decades = 7 if signed else 8
    positive = [torch.zeros(1, dtype=torch.float64)]
    for decade in range(decades):
        count = 1 << decade
        steps = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)[1:]
        positive.append(steps * 10.0 ** (decade + 1 - decades))
    rising = torch.cat(positive)
    both = torch.cat([-rising[1:].flip(0), rising]) if signed else rising
    return both.to(torch.float32)


def decoded(kept: CodedMoment, *, signed: bool) -> Tensor:
    """[N] fp32."""
    table = _on(kept.codes.device, signed)
    values_BK = table[kept.codes.to(torch.int32)].view(-1, BLOCK)
    return values_BK.mul_(kept.scale[:, None]).view(-1)


def code_into(kept: CodedMoment, values_N: Tensor, chance_N: Tensor, *, signed: bool) -> None:
    """Replace what `kept` holds; `chance_N` in [0, 1) decides between the two levels beside a value."""
    table = _on(values_N.device, signed)
    values_BK = values_N.view(-1, BLOCK)
    scale_B = values_BK.abs().amax(dim=1)
    shares_N = (values_BK / scale_B.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).view(-1)
    above_N = torch.bucketize(shares_N, table, out_int32=True).clamp_(1, len(table) - 1)
    below_N = above_N - 1
    low_N, high_N = table[below_N], table[above_N]
    codes_N = below_N + (chance_N * (high_N - low_N) < shares_N - low_N)
    if not signed:
        codes_N = torch.maximum(codes_N, (shares_N > 0).to(codes_N.dtype))
    kept.codes.copy_(codes_N)
    kept.scale.copy_(scale_B)


@functools.cache
def _on(device: torch.device, signed: bool) -> Tensor:
    return levels(signed=signed).to(device)
