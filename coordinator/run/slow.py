"""Slow commands, one after the other, beside everything else: what the pump has them done by, and when again.

Decides the order (what the round waits for goes first), and how long a command that failed rests before it is tried
again. Always: each runs in a thread of its own and touches no state; results are reported in the order in which they
came; a failure of whatever kind stops nothing and is handed back as an event, with whether it was the machine's, so
that the engine decides what becomes of it; a command that the engine has lost interest in is not begun any more. A
command waits until the result before it is recorded, which may call for something more urgent, unless it is of the same
kind and that one was quick: then the disk would be waited for longer than anything more urgent has to wait. What
trusted workers may measure goes to them (delegation.py), a submission once it has been decoded here, and nothing waits
behind it; it comes back into the line where their word is not enough.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog

from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    ReplayLease,
    SlowCommand,
    TryContributions,
    ValidateVersion,
)
from coordinator.engine.events import CommandFailed, Event, SubmissionMeasured
from coordinator.run.delegation import Delegation
from coordinator.work.failures import trouble_of
from coordinator.work.measured import believed, validated, with_gains
from coordinator.work.port import Work
from protocol.text import printable

RETRY_MOST_S = 60.0
MOST_DOUBLINGS = 10
"""Far beyond the longest pause; a disk that is full for a day makes over a thousand tries, 2**1024 is not a float."""
QUICK_S = 0.1
"""A command that took no longer says that the next one of its kind will not, either."""
MOST_ERROR_CHARACTERS = 500
"""Of an error's words, in the journal."""

_log = structlog.get_logger(__name__)

# Lower goes first: what the round waits for, then what only informs.
_PRIORITIES: dict[type[SlowCommand], int] = {
    AggregateRound: 0,
    TryContributions: 0,
    RebuildVersion: 0,
    FindHarmful: 0,
    MeasureSubmission: 1,
    CompareSubmissions: 2,
    ValidateVersion: 3,
    ReplayLease: 5,  # by far the longest: one that has begun holds up everything else for as long as a lease takes
}
_DEFAULT_PRIORITY = 4


class SlowCommands:
    """One pump's. `run` once; `stop` lets the command that is under way end."""

    def __init__(
        self,
        work: Work,
        *,
        is_wanted: Callable[[str], bool],
        report: Callable[[Event], Coroutine[Any, Any, None]],
        clock: Callable[[], float],
        retry_first_s: float,
        delegation: Delegation,
    ) -> None:
        """`is_wanted` says of a command's id whether the engine still waits for it; `report` takes each result."""
        self._work = work
        self._is_wanted = is_wanted
        self._report = report
        self._clock = clock
        self._retry_first_s = retry_first_s
        self._delegation = delegation
        self._delegated: set[asyncio.Task[None]] = set()
        self._queue: list[tuple[int, int, SlowCommand]] = []
        self._queued: dict[str, SlowCommand] = {}
        """By id, as the engine wants it now."""
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._attempts: dict[str, int] = {}
        self._failures_told: dict[str, str] = {}
        """Of commands that fail, with what they failed last: said at length once."""
        self._retries: set[asyncio.TimerHandle] = set()
        self._reporting: asyncio.Future[None] | None = None
        """Of the result before."""
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, "executor")

    def push(self, command: SlowCommand) -> None:
        """Have `command` carried out, in place of what is queued under its id. What others had of it is taken back."""
        if self._stopping:
            return
        if command.command_id in self._queued:  # the engine may want it otherwise by now: no more by others, say
            self._queued[command.command_id] = command
            return
        self._delegation.take_back(command.command_id)
        self._queued[command.command_id] = command
        priority = _PRIORITIES.get(type(command), _DEFAULT_PRIORITY)
        heapq.heappush(self._queue, (priority, next(self._order), command))
        self._wake.set()

    def _push_again(self, command: SlowCommand) -> None:
        """What is not done yet; nothing where the engine has asked for it again meanwhile."""
        if command.command_id not in self._queued:
            self.push(command)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self._wake.set()
        for retry in self._retries:
            retry.cancel()
        for delegated in self._delegated:
            delegated.cancel()

    def close(self) -> None:
        """After `run` has ended."""
        self._thread.shutdown()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopping:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            command = self._queued.pop(heapq.heappop(self._queue)[2].command_id)
            if not self._is_wanted(command.command_id):
                self._forget_failures(command)  # the engine has lost interest, e.g. the run was stopped
            elif isinstance(command, MeasureSubmission) and self._delegation.takes(command):
                await self._delegate(command)
            elif isinstance(command, ValidateVersion) and self._delegation.takes(command):
                self._go_on_beside(self._have_validated(command))
            else:
                await self._carry_out_and_report(command)
        await self._reported()

    async def _carry_out_and_report(self, command: SlowCommand) -> None:
        began_s = self._clock()
        result = await self._carried_out(command, command)
        await self._reported()
        self._reporting = asyncio.ensure_future(self._report(result))
        quick = self._clock() - began_s <= QUICK_S
        if not (quick and self._queue and type(self._queue[0][2]) is type(command)):
            await self._reported()

    async def _reported(self) -> None:
        """Until what was reported last is recorded."""
        if self._reporting is not None:
            reporting, self._reporting = self._reporting, None
            await reporting

    async def _delegate(self, command: MeasureSubmission) -> None:
        """Decode it and take its norms here, and have others measure what it gains."""
        decoded = await self._carried_out(command, replace(command, measure_gain=False))
        await self._reported()
        if not isinstance(decoded, SubmissionMeasured) or decoded.malformed:
            await self._report(decoded)
            return
        self._go_on_beside(self._have_measured(command, decoded))

    def _go_on_beside(self, delegated: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(delegated)
        self._delegated.add(task)
        task.add_done_callback(self._delegated.discard)

    async def _have_validated(self, command: ValidateVersion) -> None:
        answers = await self._delegation.measured(command)
        if self._stopping or answers is None:
            return
        found = validated(command, answers, at_s=self._clock())
        if found is None:
            self._push_again(replace(command, delegate=False, answers=answers))
        else:
            await self._report(found)

    async def _have_measured(self, command: MeasureSubmission, decoded: SubmissionMeasured) -> None:
        answers = await self._delegation.measured(command)
        if self._stopping or answers is None:
            return
        found = believed(command, answers)
        if found is None:
            self._push_again(replace(command, delegate=False, answers=answers))
        else:
            await self._report(with_gains(decoded, found, answers, at_s=self._clock()))

    async def _carried_out(self, command: SlowCommand, what: SlowCommand) -> Event:
        """What comes of `what`, which is `command` or a part of it."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._work.execute, what)
        except Exception as error:
            return self._on_failure(command, error)
        self._forget_failures(command)
        return result

    def _forget_failures(self, command: SlowCommand) -> None:
        self._attempts.pop(command.command_id, None)
        self._failures_told.pop(command.command_id, None)

    def _on_failure(self, command: SlowCommand, error: Exception) -> CommandFailed:
        attempt = self._attempts.get(command.command_id, 0)
        self._attempts[command.command_id] = attempt + 1
        delay_s = min(RETRY_MOST_S, self._retry_first_s * 2 ** min(attempt, MOST_DOUBLINGS))
        words = printable((str(error) or repr(error))[:MOST_ERROR_CHARACTERS])
        if self._failures_told.get(command.command_id) != words:  # the same again is one line of the event log
            self._failures_told[command.command_id] = words
            _log.error("command_failed", command=command.command_id, error=repr(error), exc_info=error)
        self._retries.add(asyncio.get_running_loop().call_later(delay_s, self._push_again, command))
        return CommandFailed(at_s=self._clock(), command_id=command.command_id, error=words, trouble=trouble_of(error))
