"""Sorting networks, cut down to what a coordinate-wise rule looks at.

A network is a fixed list of comparators (i, j), i < j: put the smaller of two wires on i, the larger on j. Because it
never branches on data, one comparator is two vectorised passes (minimum, maximum) over a whole chunk of coordinates.
Construction: Batcher's merge exchange for any number of wires (Knuth, TAOCP vol. 3, section 5.2.2, algorithm M).

Pruning goes backwards from the outputs. Each output carries a label; wires with the same label may be exchanged freely
(all that is dropped; all that is summed), so a comparator whose two outputs share a label that no later comparator
looks at does nothing and is left out. Of a comparator of which only one output is needed, only that half is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

DROPPED: Final = "dropped"
KEPT: Final = "kept"
_USED: Final = "used by a later comparator"


@dataclass(frozen=True, slots=True)
class Comparator:
    """Smaller value to wire `low`, larger to wire `high`; only the halves that are needed."""

    low: int
    high: int
    needs_min: bool
    needs_max: bool


@lru_cache(maxsize=256)
def sorting_network(wires: int) -> tuple[tuple[int, int], ...]:
    """Comparators that sort any `wires` values; about wires x log2(wires)^2 / 4 of them.

    >>> sorting_network(3)
    ((0, 2), (0, 1), (1, 2))
    """
    comparators: list[tuple[int, int]] = []
    top = 1 << max(0, (wires - 1).bit_length() - 1)
    p = top
    while p > 0 and wires > 1:
        q, r, d = top, 0, p
        while True:
            comparators += [(i, i + d) for i in range(wires - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(comparators)


@lru_cache(maxsize=256)
def selection_network(wires: int, kept: tuple[int, ...], *, ordered: bool = False) -> tuple[Comparator, ...]:
    """Comparators after which the outputs `kept` hold the values of those ranks.

    Unless `ordered`, only as a set: wire kept[0] need not be the smallest of them.
    """
    labels: list[object] = [DROPPED] * wires
    for rank in kept:
        labels[rank] = rank if ordered else KEPT
    chosen: list[Comparator] = []
    for low, high in reversed(sorting_network(wires)):
        if labels[low] == labels[high] and labels[low] != _USED:
            continue
        chosen.append(Comparator(low, high, labels[low] != DROPPED, labels[high] != DROPPED))
        labels[low] = labels[high] = _USED
    return tuple(reversed(chosen))
