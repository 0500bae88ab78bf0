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


class Callback:
    """What is to be called, and whether it still is: as much of an `asyncio.Handle` as anybody asks for here."""

    __slots__ = ("args", "call", "context", "put_off")

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self.call: Callable[..., Any] | None = call
        self.args, self.context, self.put_off = args, context, False

    def cancel(self) -> None:
        """It is skipped when its time comes."""
        self.call, self.args = None, ()

    def cancelled(self) -> bool:
        """Whether it was."""
        return self.call is None


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs one simulated world."""

    def __init__(self, start_s: float, latency: Latency, most_steps: int = MOST_STEPS) -> None:
        self.now_s = start_s
        self._most_steps = most_steps
        self._latency = latency
        self._ready: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
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
                timers = self._timers
                while timers and timers[0][2].call is None:
                    heapq.heappop(timers)
                if not timers or timers[0][0] > limit_s:
                    return False
                self._advance()
        finally:
            events._set_running_loop(None)
        return False

    def _run_ready(self) -> None:
        steps, ready, most = 0, self._ready, min(MOST_STEPS_AT_ONE_TIME, self._most_steps - self._steps)
        while ready and self.error is None:
            callback = ready.popleft()
            process, call = callback.context.get(PROCESS), callback.call
            if process is not None and process.asleep_until_s > self.now_s and process.alive:
                self._sequence += 1
                callback.put_off = True
                heapq.heappush(self._timers, (process.asleep_until_s, self._sequence, callback))
            elif call is not None:
                self._call(callback, call)
            steps += 1
            if steps > most:
                self.error = RuntimeError(f"{steps} callbacks at {self.now_s}, {self._steps} before: a busy circle")
        self._steps += steps

    def catch_up(self) -> None:
        """Do now what was put off until a process wakes; for the end, when there are none any more."""
        self._ready += [callback for _, _, callback in sorted(self._timers, key=lambda t: t[:2]) if callback.put_off]
        self._timers.clear()

    def _call(self, callback: Callback, call: Callable[..., Any]) -> None:
        try:
            callback.context.run(call, *callback.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.call_exception_handler({"message": f"{call} raised", "exception": error})

    def _advance(self) -> None:
        when_s, _, callback = heapq.heappop(self._timers)
        self.now_s = max(self.now_s, when_s)
        self._ready.append(callback)

    # ---- what asyncio asks of a loop -----------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """After what is ready now."""
        called = Callback(callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(called)
        return called

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """There are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """In `delay` virtual seconds."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """At a virtual time."""
        called = Callback(callback, args, contextvars.copy_context() if context is None else context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, called))
        return called

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
