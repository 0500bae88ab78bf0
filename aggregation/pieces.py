"""W vectors that lie in pieces (the tensors of one block), walked in chunks of coordinates and never stacked whole.

Decides how the walk is cut. Holds always: all rows have the same pieces, of one dtype; each value is multiplied by its
row's scale on the way out; what is loaded is finite (LocalError names row and place); nothing passed in is changed.

Legend: W workers (rows), C columns (coordinates) of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.errors import LocalError


@dataclass(frozen=True, slots=True)
class Span:
    """Coordinates `start` to `stop` of one piece."""

    piece: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Coordinates in it."""
        return self.stop - self.start


class Rows:
    """Rows as given, flat views of their pieces, and their scales."""

    def __init__(self, rows: Sequence[Sequence[Tensor]], scales: Sequence[float]) -> None:
        self._rows = [[piece.reshape(-1) for piece in row] for row in rows]
        self.scales = tuple(scales)
        self.dtype = self._rows[0][0].dtype

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest_piece(self) -> int:
        """Elements of the longest piece: no chunk need be wider."""
        return max(piece.numel() for piece in self._rows[0])

    def spans(self, width: int) -> Iterator[Span]:
        """All coordinates once, at most `width` at a time."""
        for index, piece in enumerate(self._rows[0]):
            for start in range(0, piece.numel(), width):
                yield Span(index, start, min(start + width, piece.numel()))

    def views(self, span: Span) -> list[Tensor]:
        """The rows' values there, [C] each, not scaled, not checked, not to be written to."""
        return [row[span.piece][span.start : span.stop] for row in self._rows]

    def load(self, span: Span, chunk_WC: Tensor) -> None:
        """The rows' values there, scaled and known to be finite, into a chunk of the rows' own dtype."""
        for row_C, view_C, scale in zip(chunk_WC.unbind(0), self.views(span), self.scales, strict=True):
            torch.mul(view_C, scale, out=row_C)
        if not math.isfinite(float(chunk_WC.sum())):
            refuse_non_finite(chunk_WC.unbind(0), span)

    def load_wide(self, span: Span, wide_WC: Tensor) -> Tensor:
        """As `load`, in fp64, from which the rows' norms there follow, [W]: finite exactly when the values are."""
        for row_C, view_C, scale in zip(wide_WC.unbind(0), self.views(span), self.scales, strict=True):
            row_C.copy_(view_C)
            if scale != 1.0:
                row_C.mul_(scale)
        norms_W: Tensor = torch.linalg.vector_norm(wide_WC, dim=1)
        if not math.isfinite(float(norms_W.sum())):
            refuse_non_finite(wide_WC.unbind(0), span)
        return norms_W


def checked_rows(rows: Sequence[Sequence[Tensor]], scales: Sequence[float] | None) -> Rows:
    """Rows that fit each other, fp32 or fp64, or LocalError that names the one that does not."""
    if not rows or not rows[0]:
        raise LocalError("aggregation: expected at least one worker's row of at least one piece, got none")
    expected = rows[0]
    dtype = expected[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise LocalError(f"aggregation: expected fp32 or fp64 rows, got {dtype}")
    for index, row in enumerate(rows):
        if len(row) != len(expected):
            raise LocalError(f"aggregation: row {index}: expected {len(expected)} pieces, got {len(row)}")
        for piece, like in zip(row, expected, strict=True):
            if piece.shape != like.shape or piece.dtype != dtype:
                raise LocalError(
                    f"aggregation: row {index}: expected {dtype} {list(like.shape)}, "
                    f"got {piece.dtype} {list(piece.shape)}"
                )
    scales = [1.0] * len(rows) if scales is None else scales
    _check_factors("scale", "of 0 or more", scales, len(rows), lambda scale: 0.0 <= scale < math.inf)
    return Rows(rows, scales)


def check_weights(weights: Sequence[float], rows: int) -> None:
    """One finite weight above 0 for each row. A scale may be 0 (a row clipped to nothing), a weight may not."""
    _check_factors("weight", "above 0", weights, rows, lambda weight: 0.0 < weight < math.inf)


def _check_factors(
    what: str, bound: str, factors: Sequence[float], rows: int, is_fine: Callable[[float], bool]
) -> None:
    if len(factors) != rows:
        raise LocalError(f"aggregation: expected {rows} {what}s, got {len(factors)}")
    for index, factor in enumerate(factors):
        if not is_fine(factor):
            raise LocalError(f"aggregation: row {index}: expected a finite {what} {bound}, got {factor}")


def refuse_non_finite(rows_C: Sequence[Tensor], span: Span) -> None:
    """Called when a sum was not finite, which finite values near the largest of their type can do, too."""
    for index, row_C in enumerate(rows_C):
        if not bool(torch.isfinite(row_C).all()):
            raise LocalError(
                f"aggregation: row {index} is not finite in piece {span.piece} "
                f"between coordinates {span.start} and {span.stop}"
            )
