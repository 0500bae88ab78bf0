"""How much progress may be written to the disk a day: disks wear out by what is written to them.

Decides when the next write may be: one of N bytes is followed by as long a pause as N bytes are a share of a day's. So
a lease's state of 10 GB is written every hour and a quarter at 200 GB a day, and a small one whenever it is due: an
hour's worth may be written ahead. Holds over leases, for one process; touches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

A_DAY_S: Final = 86_400.0
AHEAD_S: Final = 3600.0
DEFAULT_BYTES: Final = 200_000_000_000
"""A day: three fifths of what makers of usual consumer disks warrant (600 TB written in five years: 329 GB)."""


class DailyWrites:
    """One process's."""

    def __init__(self, bytes_a_day: int | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._bytes_a_day = bytes_a_day or DEFAULT_BYTES
        self._clock = clock
        self._paid_until_s = 0.0
        self._is_told = False

    @property
    def bytes_a_day(self) -> int:
        """The cap."""
        return self._bytes_a_day

    def may(self) -> bool:
        """Whether what was written is paid for, or nearly."""
        return self._clock() >= self._paid_until_s - AHEAD_S

    def wrote(self, size_bytes: int) -> float:
        """How long such writes are apart, in seconds, once an hour's worth is written ahead."""
        pause_s = size_bytes * A_DAY_S / self._bytes_a_day
        self._paid_until_s = max(self._paid_until_s, self._clock()) + pause_s
        return pause_s

    def tell_once(self) -> bool:
        """True the first time."""
        first, self._is_told = not self._is_told, True
        return first
