"""W vectors that lie in pieces (the tensors of one block), walked in chunks of coordinates and never stacked whole.

Decides how the walk is cut. A piece is a tensor, or whatever gives the values of a span of coordinates when it is asked
(a payload on disk, decoded as the walk comes by): of each such row one granule is in memory. Holds always: all rows
have the same pieces, of one dtype; each value is multiplied by its row's scale on the way out; what is loaded is finite
(LocalError names row and place); nothing passed in is changed.

Legend: W workers (rows), C columns (coordinates) of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

from protocol.codecs import GRANULE
from protocol.errors import LocalError
from protocol.tensors import EncodedTensor


class LazyPiece(Protocol):
    """A tensor that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what `span` gives."""

    def span(self, start: int, stop: int) -> Tensor:
        """[stop - start]: values of the flattened tensor; both are multiples of `GRANULE`, `stop` may be the end."""


Piece = Tensor | LazyPiece


def span_of(piece: Piece, start: int, stop: int) -> Tensor:
    """[stop - start]: values of the flattened piece; a view where it is in memory."""
    return piece.detach().reshape(-1)[start:stop] if isinstance(piece, Tensor) else piece.span(start, stop)


def uncast(piece: Piece) -> Tensor | None:
    """[P]: all values of the flattened piece, in memory or where they lie, in whatever dtype that is; None where they
    must be decoded. For whoever converts them anyway: what `span_of` gives is these, cast, so the result is the same.
    """
    if isinstance(piece, EncodedTensor):
        return piece.uncast
    return piece.detach().reshape(-1) if isinstance(piece, Tensor) else None


def granules(elements: int) -> Iterator[tuple[int, int]]:
    """Where spans of `GRANULE` coordinates begin and end.

    >>> list(granules(70_000))
    [(0, 65536), (65536, 70000)]
    """
    for start in range(0, elements, GRANULE):
        yield start, min(start + GRANULE, elements)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A piece times a number, in fp64 on the way: for factors so small that fp32 has no digits left for them."""

    piece: Piece
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """See `LazyPiece`."""
        return tuple(self.piece.shape)

    @property
    def dtype(self) -> torch.dtype:
        """See `LazyPiece`."""
        return self.piece.dtype

    def span(self, start: int, stop: int) -> Tensor:
        """See `LazyPiece`."""
        return (span_of(self.piece, start, stop).double() * self.scale).to(self.dtype)


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
    """Rows as given, and their scales."""

    def __init__(self, rows: Sequence[Sequence[Piece]], scales: Sequence[float]) -> None:
        # flat once, and not at each chunk: a reshape costs as much as a small chunk does
        self._rows = [[p.detach().reshape(-1) if isinstance(p, Tensor) else p for p in row] for row in rows]
        self._uncast = [[uncast(piece) for piece in row] for row in rows]
        self._is_lazy = any(not isinstance(piece, Tensor) for row in rows for piece in row)
        self._elements = [math.prod(piece.shape) for piece in rows[0]]
        self._decoded: dict[int, tuple[int, int, Tensor]] = {}
        """A row's granule that was decoded last: piece, start, values."""
        self.scales = tuple(scales)
        self.dtype = self._rows[0][0].dtype

    def __len__(self) -> int:
        return len(self._rows)

    def width(self, wanted: int) -> int:
        """Coordinates of the widest chunk: `wanted`, but no more than the longest piece has. Where pieces are decoded,
        the power of two below that, since chunks must not lie across granules.
        """
        width = max(1, min(wanted, max(self._elements)))
        return min(GRANULE, 1 << width.bit_length() - 1) if self._is_lazy else width

    def spans(self, width: int) -> Iterator[Span]:
        """All coordinates once, at most `width` at a time."""
        for index, elements in enumerate(self._elements):
            for start in range(0, elements, width):
                yield Span(index, start, min(start + width, elements))

    def views(self, span: Span) -> Sequence[Tensor]:
        """The rows' values there, [C] each, not scaled, not checked, not to be written to; what is not asked for is not
        decoded.
        """
        return _Values(self, span)

    def view(self, row: int, span: Span) -> Tensor:
        """[C]: one row's values there, of a granule that stays decoded until the row is asked for another."""
        piece = self._rows[row][span.piece]
        if isinstance(piece, Tensor):
            return piece[span.start : span.stop]
        begin = span.start - span.start % GRANULE
        of, at, values = self._decoded.get(row, (-1, -1, None))
        if values is None or (of, at) != (span.piece, begin):
            self._decoded.pop(row, None)  # before the next is made
            values = piece.span(begin, min(begin + GRANULE, self._elements[span.piece]))
            self._decoded[row] = span.piece, begin, values
        return values[span.start - begin : span.stop - begin]

    def load(self, span: Span, chunk_WC: Tensor) -> None:
        """The rows' values there, scaled and known to be finite, into a chunk of the rows' own dtype."""
        self.load_unchecked(span, chunk_WC)
        if not math.isfinite(float(chunk_WC.sum())):
            refuse_non_finite(chunk_WC.unbind(0), span)

    def load_unchecked(self, span: Span, chunk_WC: Tensor) -> None:
        """As `load`, for rows that are known to be finite, or a pass whose result shows what is not."""
        self._load(span, chunk_WC)

    def load_wide(self, span: Span, wide_WC: Tensor) -> Tensor:
        """As `load`, in fp64, from which the rows' norms there follow, [W]: finite exactly when the values are."""
        self._load(span, wide_WC)
        norms_W: Tensor = torch.linalg.vector_norm(wide_WC, dim=1)
        if not math.isfinite(float(norms_W.sum())):
            refuse_non_finite(wide_WC.unbind(0), span)
        return norms_W

    def _load(self, span: Span, chunk_WC: Tensor) -> None:
        """Converted on the way, without a copy between."""
        for row, (row_C, scale) in enumerate(zip(chunk_WC.unbind(0), self.scales, strict=True)):
            flat = self._uncast[row][span.piece]
            row_C.copy_(self.view(row, span) if flat is None else flat[span.start : span.stop])
            if scale != 1.0:
                row_C.mul_(scale)


class _Values(Sequence[Tensor]):
    """The rows' values in one span."""

    def __init__(self, rows: Rows, span: Span) -> None:
        self._rows, self._span = rows, span

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        return self._rows.view(index, self._span)


def checked_rows(rows: Sequence[Sequence[Piece]], scales: Sequence[float] | None) -> Rows:
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
            if tuple(piece.shape) != tuple(like.shape) or piece.dtype != dtype:
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
