"""How slowly a transfer may go: a stall, a minimum rate, and a deadline for the whole.

Decides when the coordinator stops waiting for the other side. Only time spent waiting for it counts, so that a disk of
our own that is slow blames nobody. Touches nothing but the event loop's timers; the clock is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from coordinator.edge.throttle import EdgeLimits
from protocol.errors import TooSlow

Value = TypeVar("Value")

_SHORTEST_WAIT_S = 1e-3


class Patience:
    """One transfer's. One step is waited for at a time."""

    def __init__(self, what: str, limits: EdgeLimits, clock: Callable[[], float]) -> None:
        self._what = what
        self._limits = limits
        self._clock = clock
        self._waited_s = 0.0
        self._moved_bytes = 0
        self._alarm = _Alarm()

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._alarm.stop()

    def moved(self, count: int) -> None:
        """So many bytes came or went."""
        self._moved_bytes += count

    async def wait(self, step: Awaitable[Value]) -> Value:
        """The result of `step`, which the other side keeps us waiting for; TooSlow when that takes too long."""
        limits, began_s = self._limits, self._clock()
        left_s = self._left_s()
        try:
            result = await self._alarm.wait(step, max(_SHORTEST_WAIT_S, min(left_s, limits.stall_s)))
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


class _Alarm:
    """Deadlines for many waits, one after the other, with one timer for all and no task for each.

    `asyncio.wait_for` makes a task and a timer for every wait, which for a frame costs more than half of what sending
    it does. Here the timer stays where it is while waits end in time, and looks again when it goes off.
    """

    __slots__ = ("_ends_s", "_expired", "_looks_s", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks_s = self._ends_s = 0.0
        self._expired = False

    async def wait(self, step: Awaitable[Value], timeout_s: float) -> Value:
        """The result of `step`; TimeoutError, and `step` is cancelled, after `timeout_s`."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = self._task = asyncio.current_task()
        assert task is not None
        before, self._ends_s = task.cancelling(), loop.time() + timeout_s
        if self._timer is None or self._looks_s > self._ends_s + _SHORTEST_WAIT_S:
            self._set(loop)
        try:
            return await step
        except asyncio.CancelledError:
            if self._expired and task.cancelling() <= before + 1:
                raise TimeoutError from None
            raise  # somebody else wants this task to end
        finally:
            if self._expired:
                task.uncancel()
            self._task, self._expired = None, False

    def stop(self) -> None:
        """No more waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop()
        self._looks_s = self._ends_s
        self._timer = loop.call_at(self._looks_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is not None and loop.time() < self._ends_s:
            self._set(loop)
        elif self._task is not None:
            self._expired = self._task.cancel()
