"""Run time: the time that a run's events carry, which no wall clock can move.

Decides what `at_s` is. Run time goes on from the journal's last record; it advances by a clock of the machine that
nobody sets and that counts suspend; at a start it adds the calendar time that passed since the last record, between
nothing and a day. Always: it never goes back, and each event's time is one that this clock showed. Time in which this
process stood still, suspended with its machine or stopped, is told as a gap, so that it counts against nobody; calendar
time is compared with run time for people alone. Touches nothing but the clocks that it is given.

Sources: clock_gettime(2) of Linux (CLOCK_BOOTTIME counts suspend, CLOCK_MONOTONIC does not); clock_gettime(3) of macOS
(CLOCK_MONOTONIC goes on while the system sleeps; Python's `time.monotonic` is `mach_absolute_time`, which does not).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.events import ClockStepped, CoordinatorResumed, Event

MOST_AWAY_S = 24 * 3600.0
"""A start adds at most so much: a wall clock that is years ahead must not end every wait there is."""
LOOK_EVERY_S = 5.0
"""How often the pump looks at this clock at least."""
STOOD_STILL_S = LOOK_EVERY_S + 10.0
"""Not looked at for so long, the process did not run: longer than a busy one is kept waiting, shorter than silence."""
STEP_S = 2.0
"""Calendar time that is off by more is told: it was set, or slewed and drifted apart by so much in the end."""


def machine_s() -> float:
    """Seconds since some fixed moment, by the machine's clock that nobody sets and that counts suspend."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()  # which counts suspend on Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The clocks of a machine, in seconds; tests wind their own."""

    machine: Callable[[], float] = machine_s
    """Never set, counts suspend; from no particular moment."""
    wall: Callable[[], float] = time.time
    """Calendar time since the epoch; may be set at any moment, to anything."""


class RunClock:
    """One process's run time. Safe for several threads."""

    def __init__(self, clocks: Clocks, *, last_s: float, last_wall_s: float | None) -> None:
        """Go on from run time `last_s`, the last record's, at calendar time `last_wall_s`; None: not known."""
        self._clocks = clocks
        wall_s = clocks.wall()
        away_s = 0.0 if last_wall_s is None else min(max(0.0, wall_s - last_wall_s), MOST_AWAY_S)
        self._looked_s = clocks.machine()
        # added to the machine's clock, not summed up reading by reading: that would lose what a float rounds away
        self._base_s = last_s + away_s - self._looked_s
        self._gap_s = 0.0
        self._offset_s = None if last_wall_s is None else last_wall_s - last_s
        """Calendar minus run time, as the journal has it."""
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """Run time."""
        with self._lock:
            machine_s = max(self._looked_s, self._clocks.machine())
            if machine_s - self._looked_s > STOOD_STILL_S:
                self._gap_s += machine_s - self._looked_s
            self._looked_s = machine_s
            return self._base_s + machine_s

    def wall_s(self) -> float:
        """Calendar time, as the machine has it: for people, invites and manifests."""
        return self._clocks.wall()

    def news(self) -> list[Event]:
        """What this clock has to tell, each thing once: to be journalled before any event that came after it."""
        now_s, events = self.now_s(), list[Event]()
        with self._lock:
            gap_s, self._gap_s = self._gap_s, 0.0
        if gap_s > 0.0:
            events.append(CoordinatorResumed(at_s=now_s, gap_s=gap_s))
        wall_s = self._clocks.wall()
        offset_s = wall_s - now_s
        if self._offset_s is None or abs(offset_s - self._offset_s) > STEP_S:
            step_s = 0.0 if self._offset_s is None else offset_s - self._offset_s
            events.append(ClockStepped(at_s=now_s, wall_s=wall_s, step_s=step_s))
            self._offset_s = offset_s
        return events
