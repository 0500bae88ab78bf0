"""Products of rows with experts of which some are held and the others are decoded a piece at a time.

Decides the pieces: the held experts, which lie in one tensor, then the frozen ones in the order of their slots, as many
together as `moe.frozen` decodes; those that no row goes to are left out. Of experts on another device rows are copied
there, and what comes out is copied back. Holds always: what comes out is what one
grouped product over all experts gives, on a CPU to the bit; gradients flow through all and to the held ones alone; no
piece is kept for the backward pass, which has it decoded again.

Shapes: S sorted rows, D held experts, G frozen ones of a piece, H and N widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm


class FrozenMatrix(Protocol):
    """One matrix of all frozen experts of a layer: `moe.frozen.StoredMatrix`."""

    @property
    def count(self) -> int:
        """How many experts."""

    @property
    def at_once(self) -> int:
        """How many are decoded together."""

    def expect(self, pieces: Sequence[tuple[int, int]]) -> None:
        """These experts [first, last) are asked for next, in this order."""

    def values(self, first: int, last: int) -> Tensor:
        """[last - first, N, H], at most `at_once` of them, as they are multiplied; good until the next call."""


class _Piece(NamedTuple):
    """Rows [start, stop) are those of frozen experts [first, last)."""

    first: int
    last: int
    start: int
    stop: int


def _pieces(bounds: tuple[int, ...], held: int, frozen: FrozenMatrix) -> Iterator[_Piece]:
    """`bounds`: where each slot's rows end."""
    for first in range(0, frozen.count, frozen.at_once):
        last = min(first + frozen.at_once, frozen.count)
        start = bounds[held + first - 1] if held + first else 0
        stop = bounds[held + last - 1]
        if stop > start:
            yield _Piece(first, last, start, stop)


class PiecewiseProduct(torch.autograd.Function):
    """y_SN = x_SH · W_NHᵀ of each row's expert; where `transposed`, of W_HN as it is."""

    @staticmethod
    def forward(
        ctx: Any,
        x_SH: Tensor,
        held_DNH: Tensor,
        all_DNH: Tensor,
        frozen: FrozenMatrix,
        ends_E: Tensor,
        bounds: tuple[int, ...],
        transposed: bool,
    ) -> Tensor:
        """`all_DNH` are the held ones as they are multiplied."""
        ctx.save_for_backward(x_SH, all_DNH, ends_E)
        ctx.frozen, ctx.bounds, ctx.transposed = frozen, bounds, transposed
        return _product(x_SH, all_DNH, frozen, ends_E, bounds, turned=not transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """To the rows, and to the held experts, in fp32."""
        x_SH, all_DNH, ends_E = ctx.saved_tensors
        grad_SN = grads[0].contiguous()
        grad_x_SH = grad_held_DNH = None
        if ctx.needs_input_grad[0]:
            grad_x_SH = _product(grad_SN, all_DNH, ctx.frozen, ends_E, ctx.bounds, turned=ctx.transposed)
        if ctx.needs_input_grad[1]:
            left, right = (x_SH, grad_SN) if ctx.transposed else (grad_SN, x_SH)
            # Rows of frozen experts lie behind the last end and are not read.
            grad_held_DNH = grouped_mm(left.t(), right, offs=ends_E[: all_DNH.shape[0]]).to(torch.float32)
        return grad_x_SH, grad_held_DNH, None, None, None, None, None


def _product(
    rows_SH: Tensor, all_DNH: Tensor, frozen: FrozenMatrix, ends_E: Tensor, bounds: tuple[int, ...], *, turned: bool
) -> Tensor:
    """Each row times its expert's matrix, or, `turned`, times that matrix's transpose."""
    held = all_DNH.shape[0]
    out_SN = rows_SH.new_empty((rows_SH.shape[0], all_DNH.shape[-2 if turned else -1]))

    def take(start: int, stop: int, matrices: Tensor, ends: Tensor) -> None:
        right, there = matrices.transpose(-2, -1) if turned else matrices, matrices.device
        out_SN[start:stop] = grouped_mm(rows_SH[start:stop].to(there), right, offs=ends.to(there))

    if held and bounds[held - 1]:
        take(0, bounds[held - 1], all_DNH, ends_E[:held])
    pieces = list(_pieces(bounds, held, frozen))
    frozen.expect([(piece.first, piece.last) for piece in pieces])
    for first, last, start, stop in pieces:
        ends = ends_E[held + first : held + last]
        take(start, stop, frozen.values(first, last), ends - start if start else ends)
    return out_SN
