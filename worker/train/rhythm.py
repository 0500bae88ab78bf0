"""Training for a share of the time: after each piece of work a rest, as long as the share asks for.

Decides when to rest: where a lease can be stopped, so that a lease computes the same bit by bit at whatever share. The
device is waited for first, since a GPU has work queued when the processor is through. Touches nothing but time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

LOOK_EVERY_S: Final = 1.0
"""A rest that a new share makes shorter ends so soon."""

SHORTEST_S: Final = 1e-3


class Rhythm:
    """One device's."""

    def __init__(
        self, settle: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`settle` waits for what the device has been given."""
        self._settle, self._clock = settle, clock
        self.share = 1.0
        self._since_s: float | None = None

    def begin(self) -> None:
        """What follows is the first piece of a lease."""
        self._since_s = None

    def rest(self, stopped: threading.Event) -> bool:
        """After a piece of work; whether the lease was stopped."""
        if self._since_s is not None and self.share < 1.0:
            self._settle()
            worked_s, ended_s = self._clock() - self._since_s, self._clock()
            while (left_s := worked_s * (1.0 / self.share - 1.0) - (self._clock() - ended_s)) > SHORTEST_S:
                if stopped.wait(min(left_s, LOOK_EVERY_S)):
                    break
        self._since_s = self._clock()
        return stopped.is_set()
