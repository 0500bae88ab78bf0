"""How much memory each of the swarm's processes has taken at most, as the system tells. Decides nothing.

Linux keeps every process's high-water mark (`VmHWM`, proc_pid_status(5)), so looking now and then misses only what a
process took after the last look. Elsewhere the present size stands in for it: a peak between two looks is missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.5
"""A look costs some 50 µs a process."""


def peak_rss_bytes(pid: int) -> int:
    """The most memory that process `pid` has held resident, in bytes; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class PeakMemory:
    """The peaks of named processes; several processes of one name, one after another, count as one."""

    def __init__(
        self, look: Callable[[int], int] = peak_rss_bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._next_s = clock()
        self._peaks: dict[str, int] = {}

    def note(self, pids: Mapping[str, int]) -> None:
        """Look at the processes `pids` (by name), if the last look is long enough ago."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_EVERY_S
        for name, pid in pids.items():
            self._peaks[name] = max(self._peaks.get(name, 0), self._look(pid))

    def of(self, *names: str) -> int | None:
        """The largest peak among `names`, in bytes; None where none of them was seen."""
        return max((self._peaks[name] for name in names if self._peaks.get(name)), default=None)
