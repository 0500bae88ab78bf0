"""Running medians of the norms that the state remembers, found once for each round and not for each submission.

Decides from how many norms on a median says anything. Holds always: a median is that of the very history asked about.
What is kept belongs to one object, recognised by its identity; asked about another, it is made from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from protocol.ids import TRUNK, BlockId

NormHistory = Mapping[BlockId, tuple[float, ...]]
"""The last norms of each block, at common steps."""

MIN_NORMS = 3
"""Norms to compare with before the median of them says anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormMedians:
    """What norms are held against."""

    trunk: float | None
    """Running median of its norms; None where there were fewer than `MIN_NORMS`."""
    columns: Mapping[BlockId, float]
    """Of each column that was seen so often, the larger of its own running median and that of all columns."""
    other_columns: float | None
    """Of all columns together, for those that were seen less often."""

    def of(self, block: BlockId) -> float | None:
        """What a norm of `block` is held against; None where there is nothing yet."""
        return self.trunk if block == TRUNK else self.columns.get(block, self.other_columns)


def medians_of(history: NormHistory) -> NormMedians:
    """Of all that is remembered."""
    own = {block: median(norms) for block, norms in history.items() if len(norms) >= MIN_NORMS}
    trunk = own.pop(TRUNK, None)
    every = [value for block, norms in history.items() if block != TRUNK for value in norms]
    middle = median(every) if len(every) >= MIN_NORMS else None
    larger = own if middle is None else {block: max(norm, middle) for block, norm in own.items()}
    return NormMedians(trunk=trunk, columns=larger, other_columns=middle)


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
