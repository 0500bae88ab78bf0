"""Faults as data: what goes wrong, and where, as frozen values that a run looks up as it goes.

Decides nothing about time or processes: a simulation (`simulator/deterministic`), or real processes under faults
(`tests/machines`, which refuses what real processes cannot do), ask `FaultPlan.take` at each point that a fault
may be addressed to, and carry out what they are given. Always: a fault fires at the first `times`
points that match every part of its address, and never again; the same plan against the same run does the same.

An address names any of: worker (its index), round, call (`Heartbeat`, `CommitSubmission`, ... or `execute:NAME` for
slow work, `state:NAME` for a worker's session state, `step:N` for an inner step), which of those calls (`nth`, from 1),
journal position, bytes on a connection, time. What is not named matches everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

COORDINATOR = -1
"""The `worker` of an address that means the coordinator's own process or disk."""


class FaultKind(Enum):
    """What goes wrong."""

    FAIL = "fail"
    """The work raises an error (a full disk, say)."""
    DELAY = "delay"
    """The message comes `seconds` later."""
    DROP = "drop"
    """The message never comes."""
    DUPLICATE = "duplicate"
    """The message, or the result of slow work, comes twice."""
    REORDER = "reorder"
    """The message comes after whatever its sender, or anybody else, sends next."""
    TRUNCATE = "truncate"
    """Only `share` of the bytes come, then the stream ends."""
    KILL = "kill"
    """The process is gone at once, and back after `seconds`."""
    STALL = "stall"
    """The process does nothing for `seconds`, then goes on as if no time had passed."""
    PARTITION = "partition"
    """Nothing gets through between the worker and the coordinator for `seconds`, either way."""
    STEP = "step"
    """The coordinator's wall clock is set by `seconds`, ahead or back."""
    SUSPEND = "suspend"
    """The coordinator's machine sleeps for `seconds`: nothing reaches it, nothing on it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSite:
    """Where a fault strikes; None matches everything."""

    worker: int | None = None
    round: int | None = None
    call: str | None = None
    nth: int | None = None
    journal_position: int | None = None
    """At or after this position, for points that know one."""
    after_bytes: int | None = None
    """At or after so many bytes of the worker's on one connection, for points that know them: real processes only."""
    after_s: float | None = None
    """At or after this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    kind: FaultKind
    at: FaultSite
    seconds: float = 0.0
    share: float = 0.5
    durable: bool = True
    """For `kill` at a journal position: whether the commit under way reached the disk first."""
    power_loss: bool = False
    """For `kill` of the coordinator: what was written and not synced is lost, too."""
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment at which a fault may strike, as the run knows it."""

    worker: int | None = None
    round: int | None = None
    call: str | None = None
    nth: int | None = None
    journal_position: int | None = None
    sent_bytes: int | None = None
    now_s: float = 0.0


def fail_at(worker: int | None = None, round: int | None = None, **where: Any) -> Fault:  # noqa: A002
    """The addressed work fails with an error."""
    return _fault(FaultKind.FAIL, {}, worker=worker, round=round, **where)


def delay(seconds: float, **where: Any) -> Fault:
    """The addressed message comes `seconds` late."""
    return _fault(FaultKind.DELAY, {"seconds": seconds}, **where)


def drop(**where: Any) -> Fault:
    """The addressed message never comes."""
    return _fault(FaultKind.DROP, {}, **where)


def duplicate(**where: Any) -> Fault:
    """The addressed message, or result of slow work, comes twice."""
    return _fault(FaultKind.DUPLICATE, {}, **where)


def reorder(**where: Any) -> Fault:
    """The addressed message is overtaken by the next one."""
    return _fault(FaultKind.REORDER, {}, **where)


def truncate(share: float = 0.5, **where: Any) -> Fault:
    """Only `share` of the addressed upload's bytes come; of a real connection's, those before `after_bytes`."""
    return _fault(FaultKind.TRUNCATE, {"share": share}, **where)


def kill(back_after_s: float, *, durable: bool = True, power_loss: bool = False, **where: Any) -> Fault:
    """The addressed process is killed, and started again `back_after_s` later."""
    values = {"seconds": back_after_s, "durable": durable, "power_loss": power_loss}
    return _fault(FaultKind.KILL, values, **where)


def stall(seconds: float, **where: Any) -> Fault:
    """The addressed process stands still."""
    return _fault(FaultKind.STALL, {"seconds": seconds}, **where)


def partition(seconds: float, **where: Any) -> Fault:
    """The addressed worker and the coordinator cannot reach each other."""
    return _fault(FaultKind.PARTITION, {"seconds": seconds}, **where)


def step(seconds: float, **where: Any) -> Fault:
    """The coordinator's wall clock is set ahead, or back."""
    return _fault(FaultKind.STEP, {"seconds": seconds}, worker=COORDINATOR, **where)


def suspend(seconds: float, **where: Any) -> Fault:
    """The coordinator's machine sleeps."""
    return _fault(FaultKind.SUSPEND, {"seconds": seconds}, worker=COORDINATOR, **where)


def _fault(kind: FaultKind, values: dict[str, Any], *, times: int = 1, **where: Any) -> Fault:
    return Fault(kind=kind, at=FaultSite(**where), times=times, **values)


@dataclass(slots=True)
class FaultPlan:
    """The faults of one run, and how often each may still fire. Owned by one run."""

    faults: Sequence[Fault]
    fired: list[tuple[float, Fault]] = field(default_factory=list)
    """What struck, and when."""
    _left: list[tuple[int, Fault]] = field(init=False)

    def __post_init__(self) -> None:
        self._left = [(fault.times, fault) for fault in self.faults]

    def take(self, point: Point, kinds: frozenset[FaultKind]) -> tuple[Fault, ...]:
        """The faults of these kinds that strike at `point`; each call spends one firing of each."""
        if not self._left:
            return ()
        struck = tuple([fault for _, fault in self._left if _matches(fault.at, point) and fault.kind in kinds])
        if struck:
            self.fired += [(point.now_s, fault) for fault in struck]
            spent = {id(fault) for fault in struck}
            counted = ((times - (id(fault) in spent), fault) for times, fault in self._left)
            self._left = [(times, fault) for times, fault in counted if times > 0]
        return struck

    @property
    def unspent(self) -> tuple[Fault, ...]:
        """Faults that may still strike."""
        return tuple(fault for _, fault in self._left)


def _matches(at: FaultSite, point: Point) -> bool:
    if (
        (at.worker is not None and at.worker != point.worker)
        or (at.round is not None and at.round != point.round)
        or (at.call is not None and at.call != point.call)
        or (at.nth is not None and at.nth != point.nth)
    ):
        return False
    position = point.journal_position
    if at.journal_position is not None and (position is None or position < at.journal_position):
        return False
    if at.after_bytes is not None and (point.sent_bytes is None or point.sent_bytes < at.after_bytes):
        return False
    return at.after_s is None or point.now_s >= at.after_s
