"""Running medians of what the state remembers as tuples, looked up in a sorted list and not computed anew each time.

Decides nothing. Holds always: the median is that of the very tuples asked about. What is sorted here belongs to one
object, recognised by its identity; asked about another, it is sorted from there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from protocol.ids import TRUNK, BlockId

NormHistory = Mapping[BlockId, tuple[float, ...]]


class SortedValues:
    """Values in order."""

    __slots__ = ("_values",)

    def __init__(self, values: list[float]) -> None:
        self._values = sorted(values)

    def add(self, value: float) -> None:
        """One more."""
        insort(self._values, value)

    def remove(self, value: float) -> None:
        """One less; it is there."""
        del self._values[bisect_left(self._values, value)]

    def median(self, least: int) -> float | None:
        """The middle, as `statistics.median` has it; None with fewer than `least` values."""
        values, middle = self._values, len(self._values) // 2
        if len(values) < least:
            return None
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


class GainMedian:
    """Of one round's accepted gains, to which gains are only ever added."""

    __slots__ = ("_of", "_sorted")

    def __init__(self) -> None:
        self._of: tuple[float, ...] = ()
        self._sorted = SortedValues([])

    def follow(self, before: tuple[float, ...], after: tuple[float, ...]) -> None:
        """`after` is `before` and one gain more."""
        if self._of is before:
            self._sorted.add(after[-1])
            self._of = after

    def median(self, gains: tuple[float, ...], least: int) -> float | None:
        """Of `gains`."""
        if self._of is not gains:
            self._of, self._sorted = gains, SortedValues(list(gains))
        return self._sorted.median(least)


class ColumnNormMedian:
    """Of the remembered norms of all expert columns together."""

    __slots__ = ("_of", "_sorted")

    def __init__(self) -> None:
        self._of: NormHistory | None = None
        self._sorted = SortedValues([])

    def follow(self, before: NormHistory, after: NormHistory) -> None:
        """`after` is `before` with one norm added to some blocks, and the oldest gone where there were too many."""
        if self._of is not before:
            return
        for block, values in after.items():
            old = before.get(block, ())
            if block != TRUNK and values is not old:
                for value in old[: len(old) + 1 - len(values)]:
                    self._sorted.remove(value)
                self._sorted.add(values[-1])
        self._of = after

    def median(self, history: NormHistory, least: int) -> float | None:
        """Over the columns in `history`."""
        if self._of is not history:
            values = [value for block, norms in history.items() if block != TRUNK for value in norms]
            self._of, self._sorted = history, SortedValues(values)
        return self._sorted.median(least)
