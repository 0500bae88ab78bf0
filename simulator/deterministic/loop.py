"""An asyncio event loop under virtual time, without threads, sockets or signals.

Decides the order of everything in a simulated run. Always: time moves only when nothing is ready; equal moments go in
the order in which they were asked for; work handed to a thread happens in this one, at a later virtual time, in two
steps (done, then reported), so that a process can die between them. The same calls give the same order.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable
from typing import Any

MOST_STEPS_AT_ONE_TIME = 20_000
MOST_STEPS = 400_000
"""Callbacks without time passing, and in a run of a few rounds; more is a busy circle. Such a run has thousands."""


class Process:
    """Whoever tasks and thread work belong to; once it is dead, none of its work happens any more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.tasks: list[asyncio.Task[Any]] = []
        self.asleep_until_s = 0.0
        """Its machine sleeps: what would happen before then happens then."""

    def kill(self) -> None:
        """Gone, in the middle of whatever it did."""
        self.alive = False
        for task in self.tasks:
            task.cancel()
        self.tasks.clear()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)

Latency = Callable[[str], tuple[float, float]]
"""For a thread pool's name: seconds until its work is done, and from then until it is reported."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs one simulated world."""

    def __init__(self, start_s: float, latency: Latency, most_steps: int = MOST_STEPS) -> None:
        self.now_s = start_s
        self._most_steps = most_steps
        self._latency = latency
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._sequence = 0
        self._steps = 0
        self.error: BaseException | None = None
        """First exception that a callback raised: a bug, of the simulation or of what it runs."""

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Go on until `until`, checked as time moves, or until `limit_s`; whether it came to pass."""
        events._set_running_loop(self)
        try:
            while self.error is None:
                self._run_ready()
                if until():
                    return True
                if not self._timers or self._timers[0][0] > limit_s:
                    return False
                self._advance()
        finally:
            events._set_running_loop(None)
        return False

    def _run_ready(self) -> None:
        steps = 0
        while self._ready and self.error is None:
            handle = self._ready.popleft()
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.alive and process.asleep_until_s > self.now_s:
                self._sequence += 1
                heapq.heappush(self._timers, (process.asleep_until_s, self._sequence, handle))
            elif not handle.cancelled():
                handle._run()
            steps += 1
            if steps > MOST_STEPS_AT_ONE_TIME or self._steps + steps > self._most_steps:
                self.error = RuntimeError(f"{steps} callbacks at {self.now_s}, {self._steps} before: a busy circle")
        self._steps += steps

    def _advance(self) -> None:
        when_s, _, handle = heapq.heappop(self._timers)
        if not handle.cancelled():
            self.now_s = max(self.now_s, when_s)
            self._ready.append(handle)

    # ---- what asyncio asks of a loop -----------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """After what is ready now."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """There are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """In `delay` virtual seconds."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """At a virtual time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None, **_: Any) -> asyncio.Task[Any]:
        """A task, which belongs to the process in whose context it is made."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            if len(process.tasks) > 64:
                process.tasks = [kept for kept in process.tasks if not kept.done()]
            process.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do the work here, at a later virtual time, unless its process dies before."""
        process, future = PROCESS.get(), self.create_future()
        done_s, reported_s = self._latency(getattr(executor, "_thread_name_prefix", ""))
        self.call_later(done_s, self._work, process, future, reported_s, functools.partial(func, *args))
        return future

    def _work(
        self, process: Process | None, future: asyncio.Future[Any], reported_s: float, work: Callable[[], Any]
    ) -> None:
        if process is not None and not process.alive:
            return
        try:
            result = work()
        except BaseException as error:
            self.call_later(reported_s, _settle, future, None, error)
        else:
            if process is None or process.alive:  # the work itself may have been where the process died
                self.call_later(reported_s, _settle, future, result, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback that raised ends the simulation; tasks that died with their process do not."""
        error = context.get("exception")
        if error is not None and "never retrieved" not in str(context.get("message")) and self.error is None:
            self.error = error

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """As far as asyncio is concerned."""
        return True

    def is_closed(self) -> bool:
        """Nothing is held that needs closing."""
        return False


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
