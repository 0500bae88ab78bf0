"""Moments that belong to keys, and the earliest of them: a heap whose overtaken entries are skipped.

Decides nothing. Holds always: each key has one moment at most; the heap is never more than twice as long as there are
keys (and a few), however often moments are moved.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SLACK = 64
"""Overtaken entries that are not worth a clean-up."""


class Timetable(Generic[K]):
    """When each key's time comes. Among equal moments, the key that was set first comes first."""

    __slots__ = ("_heap", "_order", "_slots")

    def __init__(self) -> None:
        self._slots: dict[K, tuple[float, int, K]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: K) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[K]:
        return iter(self._slots)

    def set(self, key: K, moment_s: float) -> None:
        """`key`'s time is `moment_s` from now on."""
        known = self._slots.get(key)
        if known is not None and known[0] == moment_s:
            return
        self._order += 1
        slot = (moment_s, self._order, key)
        self._slots[key] = slot
        heapq.heappush(self._heap, slot)
        if len(self._heap) > 2 * len(self._slots) + _SLACK:
            self._heap = list(self._slots.values())
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """`key` waits for nothing any more."""
        self._slots.pop(key, None)

    def moment_s(self, key: K) -> float:
        """When `key`'s time comes."""
        return self._slots[key][0]

    def earliest(self) -> tuple[float, K] | None:
        """The first moment and its key; None where there is none."""
        while self._heap:
            slot = self._heap[0]
            if self._slots.get(slot[2]) is slot:
                return slot[0], slot[2]
            heapq.heappop(self._heap)
        return None

    def first_after(self, now_s: float) -> float | None:
        """The first moment that is later than `now_s`."""
        first = self.earliest()
        if first is None or first[0] > now_s:
            return None if first is None else first[0]
        return min((slot[0] for slot in self._slots.values() if slot[0] > now_s), default=None)

    def due(self, now_s: float) -> list[K]:
        """Keys whose time has come, in no order; they stay."""
        found: list[tuple[float, int, K]] = []
        while (first := self.earliest()) is not None and first[0] <= now_s:
            found.append(heapq.heappop(self._heap))
        for slot in found:
            heapq.heappush(self._heap, slot)
        return [slot[2] for slot in found]
