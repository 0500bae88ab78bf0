"""How far what a worker sent lies from what comes of its lease when it is computed again.

Decides the measure that an audit compares with its tolerance: relative L2, trunk and expert columns apart, since a
column is a small share of a shard and a lie in it alone would drown in the whole. Both must have been through the same
codec: what coding costs is no lie. Relative to the replay and never to what was sent, which the sender chooses.

Holds always: distances are finite (a journal's JSON has no infinity), whatever was sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from aggregation.norms import block_norm
from aggregation.pieces import Piece, granules, span_of
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId

PieceBlocks = Mapping[BlockId, Mapping[str, Piece]]
"""A pseudo-gradient by block and parameter, in memory or where it lies."""

COLUMN_FLOOR: Final = 0.01
"""A column counts as at least this share of the longest one: where a lease hardly used an expert, what is left is
rounding, and rounding over rounding would be any number. Who lies within it moves a hundredth of a tolerance."""

LARGEST_DISTANCE: Final = 1e9
"""Said of anything farther, and of what is not a number at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayDistance:
    """Relative L2 distances, at most `LARGEST_DISTANCE`; a lease that was not computed at all is at 1."""

    trunk: float
    columns: float
    """The largest among the columns; 0 where there are none."""

    @property
    def largest(self) -> float:
        """What has to stay within the tolerance."""
        return max(self.trunk, self.columns)


def replay_distance(sent: PieceBlocks, again: PieceBlocks) -> ReplayDistance:
    """How far `sent` is from `again`, the honest computation, both after the codec; any values, of the same shapes.

    LocalError where names or shapes differ, or the replay is not finite: decoding and training have excluded both.

    >>> again = {TRUNK: {"w": torch.tensor([3.0, 4.0])}}
    >>> replay_distance({TRUNK: {"w": torch.tensor([3.0, 4.5])}}, again)
    ReplayDistance(trunk=0.1, columns=0.0)
    """
    if sent.keys() != again.keys():
        raise LocalError(f"replay: expected blocks {', '.join(sorted(again))}, got {', '.join(sorted(sent))}")
    lengths = {block: block_norm(tensors) for block, tensors in again.items()}
    if odd := [block for block, length in lengths.items() if not math.isfinite(length)]:
        raise LocalError(f"replay: block {odd[0]} came out with values that are not finite")
    floor = COLUMN_FLOOR * max((length for block, length in lengths.items() if block != TRUNK), default=0.0)
    apart = {block: _difference(block, sent[block], again[block]) for block in again}
    columns = [_ratio(apart[block], max(length, floor)) for block, length in lengths.items() if block != TRUNK]
    trunk = _ratio(apart[TRUNK], lengths[TRUNK]) if TRUNK in again else 0.0
    return ReplayDistance(trunk=trunk, columns=max(columns, default=0.0))


def _ratio(apart: float, length: float) -> float:
    if not math.isfinite(apart):
        return LARGEST_DISTANCE
    if length == 0.0:
        return 0.0 if apart == 0.0 else LARGEST_DISTANCE
    return min(apart / length, LARGEST_DISTANCE)


def _difference(block: str, sent: Mapping[str, Piece], again: Mapping[str, Piece]) -> float:
    """L2 norm of the difference, in fp64, decoded as it goes; not finite exactly where something sent is not."""
    if sent.keys() != again.keys():
        raise LocalError(f"replay: block {block} differs in names: {', '.join(sorted(sent.keys() ^ again.keys())[:4])}")
    total = 0.0
    for name, expected in again.items():
        if tuple(sent[name].shape) != tuple(expected.shape):
            got, wanted = tuple(sent[name].shape), tuple(expected.shape)
            raise LocalError(f"replay: block {block}, {name!r}: expected shape {wanted}, got {got}")
        for start, stop in granules(math.prod(expected.shape)):
            wide_P = span_of(sent[name], start, stop).double() - span_of(expected, start, stop).double()
            total += float(torch.dot(wide_P, wide_P))
    return math.sqrt(total) if total >= 0.0 else math.nan
