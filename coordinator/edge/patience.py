"""How slowly a transfer may go: a stall, a minimum rate, and a deadline for the whole.

Decides when the coordinator stops waiting for the other side. Only time spent waiting for it counts, so that a disk of
our own that is slow blames nobody. Touches nothing; the clock is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.edge.throttle import EdgeLimits
from protocol.errors import TooSlow

Value = TypeVar("Value")

_SHORTEST_WAIT_S = 1e-3


class Patience:
    """One transfer's."""

    def __init__(self, what: str, limits: EdgeLimits, clock: Callable[[], float]) -> None:
        self._what = what
        self._limits = limits
        self._clock = clock
        self._waited_s = 0.0
        self._moved_bytes = 0

    def moved(self, count: int) -> None:
        """So many bytes came or went."""
        self._moved_bytes += count

    async def wait(self, step: Awaitable[Value]) -> Value:
        """The result of `step`, which the other side keeps us waiting for; TooSlow when that takes too long."""
        limits, began_s = self._limits, self._clock()
        left_s = self._left_s()
        try:
            result = await asyncio.wait_for(step, max(_SHORTEST_WAIT_S, min(left_s, limits.stall_s)))
        except TimeoutError:
            self._waited_s += max(0.0, self._clock() - began_s)
            raise TooSlow(self._why(stalled=left_s > limits.stall_s)) from None
        self._waited_s += max(0.0, self._clock() - began_s)
        if self._left_s() < 0.0:
            raise TooSlow(self._why(stalled=False))
        return result

    def _left_s(self) -> float:
        """How much longer the other side may take, all in all."""
        limits = self._limits
        by_rate_s = limits.grace_s + self._moved_bytes / limits.min_bytes_per_s
        return min(by_rate_s, limits.transfer_s) - self._waited_s

    def _why(self, *, stalled: bool) -> str:
        limits = self._limits
        if stalled:
            return f"{self._what}: nothing moved for {limits.stall_s:g} s; go on where it broke"
        if self._waited_s >= limits.transfer_s:
            return f"{self._what}: one stream lasts at most {limits.transfer_s:g} s; go on where it broke"
        return (
            f"{self._what}: {self._moved_bytes} bytes in {self._waited_s:.1f} s are fewer than"
            f" {limits.min_bytes_per_s:g} a second; go on where it broke, over a better line"
        )
