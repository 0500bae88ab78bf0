"""What norms are held against: medians over people of the norms that the state remembers, found once for each round.

Decides whose norms say what is normal, so that a pair of colluders cannot: those of trusted workers, where there are
any; else those of at least `MIN_PERSONS` people, each with one value, and between the two middle ones whatever speaks
for the worker; else the worker's own past. Columns have the other columns besides. Holds always: a median is that of
the very history asked about; nobody's many submissions, or many machines, count for more than one. What is kept
belongs to one object, recognised by its identity; asked about another, it is made from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median, median_high, median_low

from coordinator.engine.rows import SeenNorm
from protocol.ids import TRUNK, BlockId

NormHistory = Mapping[BlockId, tuple[SeenNorm, ...]]
"""The last norms of each block, at common steps and rates."""

MIN_NORMS = 3
"""Norms of a trusted worker, or of its own, before the median of them says anything."""
MIN_PERSONS = 4
"""Of three people two may collude: whichever of them is in the middle, it is one of the pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Middle:
    """A median over people; of an even number of them the lower and the higher of the two in the middle."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NormMedians:
    """What norms are held against."""

    history: NormHistory
    blocks: Mapping[BlockId, Middle]
    """Of those blocks of which enough is known of enough people, or of trusted ones."""
    columns: Middle | None
    """Of all columns together, in the same way."""

    def of(self, block: BlockId, person: int) -> Middle | None:
        """What a norm of the block from `person` is held against; None where there is nothing yet.

        At the upper end a column may be as any other: an expert that few tokens reach has small norms until it has
        large ones.
        """
        found = self.blocks.get(block) or self._own(block, person)
        if block == TRUNK or self.columns is None:
            return found
        return self.columns if found is None else Middle(low=found.low, high=max(found.high, self.columns.high))

    def least_of(self, column: BlockId) -> float | None:
        """The smallest that others than a worker itself say of a column: its own past, and other columns'."""
        lows = [middle.low for middle in (self.blocks.get(column), self.columns) if middle is not None]
        return min(lows, default=None)

    def _own(self, block: BlockId, person: int) -> Middle | None:
        own = [seen.norm_l2 for seen in self.history.get(block, ()) if seen.person == person]
        return Middle(low=median(own), high=median(own)) if len(own) >= MIN_NORMS else None


def medians_of(history: NormHistory) -> NormMedians:
    """Of all that is remembered."""
    found = {block: _middle(seen) for block, seen in history.items()}
    every = (one for block, seen in history.items() if block != TRUNK for one in seen)
    return NormMedians(
        history=history,
        blocks={block: middle for block, middle in found.items() if middle is not None},
        columns=_middle(every),
    )


def _middle(seen: Iterable[SeenNorm]) -> Middle | None:
    values: dict[int, list[float]] = {}
    trusted: dict[int, list[float]] = {}
    for one in seen:
        (trusted if one.trusted else values).setdefault(one.person, []).append(one.norm_l2)
    if sum(map(len, trusted.values())) >= MIN_NORMS:
        values = trusted
    elif len(values := {**trusted, **values}) < MIN_PERSONS:
        return None
    medians = [median(own) for own in values.values()]
    return Middle(low=median_low(medians), high=median_high(medians))


class NormMedian:
    """Of remembered norms, which change when a round closes."""

    __slots__ = ("_found", "_of")

    def __init__(self) -> None:
        self._of: NormHistory | None = None
        self._found = medians_of({})

    def medians(self, history: NormHistory) -> NormMedians:
        """Of `history`."""
        if self._of is not history:
            self._of, self._found = history, medians_of(history)
        return self._found
