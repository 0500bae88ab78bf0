"""For how long the simulated coordinator has really been there: what deadlines and silence may be counted by.

Decides nothing about the run. It knows true virtual time, which no simulated clock shows, and when a process was up and
its machine awake; promises about waiting are held against that.
"""

from __future__ import annotations

from collections.abc import Callable


class Attendance:
    """One coordinator's."""

    def __init__(self, true_s: Callable[[], float]) -> None:
        self._true_s = true_s
        self._before_s = 0.0
        self._since_s: float | None = None

    def begin(self) -> None:
        """It is there from now on."""
        if self._since_s is None:
            self._since_s = self._true_s()

    def end(self) -> None:
        """It is gone, or asleep."""
        self._before_s, self._since_s = self.present_s, None

    @property
    def present_s(self) -> float:
        """Seconds in which it was there, so far."""
        return self._before_s + (0.0 if self._since_s is None else self._true_s() - self._since_s)
