"""Faults inside a real process: the points that it comes by, and what strikes there. And which faults cannot be real.

Decides where a process may be struck: a coordinator around each commit of its journal and each piece of slow work, a
worker at each state of its session and each inner step. The process strikes itself (SIGKILL, SIGSTOP, an error), so a
fault hits exactly its place; it says so through a pipe first, so that nobody mistakes it for a crash. `nth` counts
within one life of a process.

What real processes refuse, and `check_for_processes` says why: `reorder`, and `duplicate` of a message (TCP keeps order
and TLS takes no byte twice, so both come out as a broken connection, which `drop` is); a `call` for anything on the
network (inside TLS nobody sees which call a byte belongs to); `power_loss` (what a process has written stays with the
kernel).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.store.journal import Moment
from protocol.errors import ConfigError, StorageTrouble
from simulator.faults import COORDINATOR, Fault, FaultKind, FaultPlan, Point

ON_LINK = frozenset({FaultKind.DELAY, FaultKind.DROP, FaultKind.TRUNCATE, FaultKind.PARTITION})
"""Carried out by `tests/machines/proxy.py`."""
_ENDING = frozenset({FaultKind.KILL, FaultKind.STALL})
_FAIL, _DUPLICATE = frozenset({FaultKind.FAIL}), frozenset({FaultKind.DUPLICATE})


def check_for_processes(faults: Sequence[Fault]) -> None:
    """ConfigError where one of `faults` cannot be carried out on real processes, with the reason."""
    for fault in faults:
        why = _why_not_on_link(fault) if fault.kind in ON_LINK else _why_not_in_process(fault)
        if why:
            raise ConfigError(f"{fault.kind.value} cannot be done to real processes: {why} ({fault.at})")


def _why_not_on_link(fault: Fault) -> str:
    at = fault.at
    if at.call is not None:
        return "inside TLS nobody sees which call a byte belongs to; address it by nth connection, after_bytes, after_s"
    if at.round is not None or at.journal_position is not None:
        return "the network knows of no rounds and no journal; address it by nth connection, after_bytes or after_s"
    if at.worker == COORDINATOR:
        return "a link is a worker's; name one, or leave it out to mean the first that comes by"
    if fault.kind is FaultKind.TRUNCATE and at.after_bytes is None:
        return "nobody sees where an upload begins; say after how many bytes of a connection it is cut: after_bytes"
    return ""


def _why_not_in_process(fault: Fault) -> str:
    at, call = fault.at, fault.at.call or ""
    if fault.kind in {FaultKind.STEP, FaultKind.SUSPEND}:
        return (
            "this machine's clocks and sleep are not a simulation's to change; the deterministic simulation has its own"
        )
    if fault.kind is FaultKind.REORDER:
        return "TCP keeps the order, and TLS ends a connection on which it is broken; use drop"
    if fault.kind is FaultKind.DUPLICATE and not call.startswith("execute:"):
        return "TLS takes no byte twice; only slow work can be done twice: address it to execute:NAME"
    if fault.power_loss:
        return "what a process has written stays with the kernel; only the simulated disk forgets"
    if at.after_bytes is not None:
        return "bytes are counted on links, not in processes"
    if at.worker is None:
        return "processes share no plan; name the worker, or COORDINATOR"
    if at.worker == COORDINATOR:
        known = call.startswith("execute:") or (not call and at.round is None)
        return "" if known else "a coordinator is struck at a journal position, a time, or execute:NAME"
    if at.journal_position is not None:
        return "only the coordinator has a journal"
    known = call.startswith(("state:", "step:")) or not call
    return "" if known else "a worker is struck at state:NAME, at step:N, in a round, or at a time"


def is_timed(fault: Fault) -> bool:
    """Whether it waits for a time only, not for a place."""
    at = fault.at
    places = (at.round, at.call, at.nth, at.journal_position, at.after_bytes)
    return at.after_s is not None and all(place is None for place in places)


class Points:
    """One life of one process under faults. `faults` are numbered as the supervisor knows them."""

    def __init__(self, worker: int, faults: Sequence[tuple[int, Fault]], pipe: Connection, started_s: float) -> None:
        self._worker = worker
        self._numbers = {id(fault): number for number, fault in faults}
        self._plan = FaultPlan([fault for _, fault in faults])
        self._pipe = pipe
        self._started_s = started_s
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()  # threads of journal, executor and training come by places of their own

    def take(self, kinds: frozenset[FaultKind], *, plan: FaultPlan | None = None, **where: Any) -> tuple[Fault, ...]:
        """The faults of these kinds that strike here; the supervisor is told."""
        now_s = time.monotonic() - self._started_s
        with self._lock:
            struck = (plan or self._plan).take(Point(worker=self._worker, now_s=now_s, **where), kinds)
            for fault in struck:
                self._pipe.send({"fault": self._numbers[id(fault)]})
        return struck

    def pass_by(self, *, plan: FaultPlan | None = None, **where: Any) -> None:
        """A place where the process may die or stand still."""
        for fault in self.take(_ENDING, plan=plan, **where):
            os.kill(os.getpid(), signal.SIGKILL if fault.kind is FaultKind.KILL else signal.SIGSTOP)

    def count(self, call: str) -> int:
        """How often this process has come by `call`, this time included."""
        self._counts[call] += 1
        return self._counts[call]


class CoordinatorPoints(Points):
    """The coordinator's: journal and slow work."""

    def journal_observer(self, last_position: int) -> Callable[[Moment, Sequence[str]], None]:
        """To be given to the server, whose journal ends at `last_position`."""
        position = last_position
        early = FaultPlan([fault for fault in self._plan.unspent if not fault.durable])

        def observe(moment: Moment, records: Sequence[str]) -> None:
            nonlocal position
            if moment is Moment.INSERTED:
                if self.take(_FAIL, journal_position=position + len(records)):
                    raise StorageTrouble("the journal: no space left on device")
                self.pass_by(plan=early, journal_position=position + len(records))
            elif moment is Moment.COMMITTED:
                position += len(records)
                self.pass_by(journal_position=position)

        return observe

    def watch_slow_work(self) -> None:
        """Change this process's executor for good: fail before the work, do it twice, die when it is done."""
        from coordinator.work.executor import Executor

        method = vars(Executor)["execute"]  # taken as an attribute it would dispatch on the executor

        def watched(executor: Any, command: Any) -> Any:
            execute = method.__get__(executor, Executor)
            call = f"execute:{type(command).__name__}"
            nth = self.count(call)
            if self.take(_FAIL, call=call, nth=nth):
                raise OSError(28, "No space left on device")
            if self.take(_DUPLICATE, call=call, nth=nth):
                execute(command)
            result = execute(command)
            self.pass_by(call=call, nth=nth)
            return result

        Executor.execute = watched  # type: ignore[method-assign,assignment]


class WorkerPoints(Points):
    """A worker's: states of its session, inner steps of its leases."""

    def watch_session(self) -> None:
        """Change this process's session for good."""
        from worker.session import Session

        move = Session._move

        def moved(session: Any, state: Any) -> None:
            move(session, state)
            call = f"state:{state.value}"
            self.pass_by(call=call, nth=self.count(call))

        Session._move = moved  # type: ignore[method-assign,assignment]

    def on_batch(self, lease: Any, tokens_NL: NDArray[np.int64]) -> NDArray[np.int64]:
        """The worker's `batch_hook`: its sequences, which tell at which inner step it is."""

        def at_row(row: int) -> None:
            where: dict[str, Any] = {
                "round": int(lease.round),
                "call": f"step:{row // lease.batch_sequences + 1}",
            }
            if self.take(_FAIL, **where):
                raise RuntimeError("the device failed, as it was told to")
            self.pass_by(**where)

        watched = np.array(tokens_NL, copy=True).view(_WatchedSequences)
        watched.at_row = at_row
        return watched


class _WatchedSequences(np.ndarray[Any, np.dtype[np.int64]]):
    """An array that says from which row on rows are taken."""

    at_row: Callable[[int], None]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            self.at_row(key.start or 0)
        return np.asarray(super().__getitem__(key))
