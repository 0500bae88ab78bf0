"""Writes the log of judgements while the run goes on: verdicts, audits and what comes of them, who is set aside, banned
or let in again and by whom, what is withheld or taken back.

Decides what a line says of each. Reads the engine's state after each event and writes what is new about those whom the
event, or a command that follows from it, is about; so an event that it has never heard of is covered as long as it
names its worker or lease. Always: a disk that takes nothing costs lines, never the run; what an earlier process did not
get to write is written at the start, from the state.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import structlog

from coordinator.engine.arithmetic import told_classes
from coordinator.engine.commands import AnnounceVerdict, Command
from coordinator.engine.events import (
    AuditAsked,
    Event,
    InviteUnbanned,
    OwnerUnbanned,
    RollbackOrdered,
    WorkerPardoned,
    WorkerUnbanned,
)
from coordinator.engine.history import Accusation, AuditOutcome
from coordinator.engine.past import RollbackRecord
from coordinator.engine.reasons import Reason, Verdict, told
from coordinator.engine.rows import Ban, LeaseRecord, WorkerRecord
from coordinator.engine.stages import Stage, stage_of
from coordinator.engine.state import EngineState
from coordinator.run.pump import Observer
from coordinator.store.audit_log import AuditLine
from protocol.ids import LeaseId, WorkerId

_FIGURES = (
    "ratio",
    "gain",
    "distance",
    "norm",
    "in_row",
    "refused",
    "auditors",
    "change_l2",
    "done",
    "late_s",
    "rounds",
)
_THRESHOLDS = ("least", "most", "tolerance", "leased", "base", "median", "judged", "update_norm_l2")
"""In a reason's figures, what was found and what it was held against: the first that is there."""
_SAID: dict[type[Event], str] = {
    WorkerUnbanned: "unbanned",
    OwnerUnbanned: "owner unbanned",
    InviteUnbanned: "invite unbanned",
    WorkerPardoned: "pardoned",
    RollbackOrdered: "rollback ordered",
}
"""What the operator does that leaves no mark of its own in the state."""

_log = structlog.get_logger("coordinator")


class Lines(Protocol):
    """Where the lines go."""

    def add(self, lines: list[AuditLine]) -> None:
        """Write them; those that are there already, by their key, are left out."""


class AuditTrail:
    """One run's. An observer of the pump; used in one thread."""

    def __init__(
        self, log: Lines, state: Callable[[], EngineState], wall_at_s: Callable[[float], float | None]
    ) -> None:
        self._log = log
        self._state = state
        self._wall_at_s = wall_at_s
        self._last: Event | None = None
        self._is_troubled = False
        self._told_rounds = -1
        self._told: dict[str, object] = {}

    def catch_up(self) -> None:
        """Write whatever the state knows and the log does not."""
        state = self._state()
        lines = [line for record in state.leases.values() for line in self._of_lease(record)]
        lines += [line for record in state.workers.values() for line in self._of_worker(record)]
        self._add([*lines, *self._of_the_run()])

    def event(self, event: Event) -> None:
        """`event` was applied."""
        self._last = event
        lines = [*self._about(getattr(event, "worker", None), getattr(event, "lease_id", None)), *self._of_the_run()]
        if isinstance(event, AuditAsked):
            record = self._state().leases.get(event.lease_id)
            lines.append(self._line(f"asked:{event.worker}:{event.at_s:.3f}", event.at_s, record, Stage.AUDIT, "asked"))
        self._add([*lines, *self._said(event)])

    def command(self, command: Command, at_s: float) -> None:
        """`command` follows from an event."""
        if not isinstance(command, AnnounceVerdict):
            return
        record = self._state().leases.get(command.lease_id)
        verdict = [] if record is None else [self._verdict(record, command.verdict, at_s)]
        self._add([*verdict, *self._about(command.worker, command.lease_id)])

    def _said(self, event: Event) -> Iterator[AuditLine]:
        """What the operator said, in the operator's words."""
        if type(event) not in _SAID:
            return
        worker = self._state().workers.get(getattr(event, "worker", WorkerId("")))
        whose = getattr(event, "owner", "") or getattr(event, "invite", "")
        key = f"{type(event).__name__}:{worker.worker if worker else whose}:{event.at_s:.3f}"
        yield self._line(
            key, event.at_s, worker, Stage.TRUST, _SAID[type(event)], judge=getattr(event, "by", ""),
            words=": ".join(part for part in (whose, getattr(event, "why", "")) if part),
        )  # fmt: skip

    def _about(self, worker: WorkerId | None, lease_id: LeaseId | None) -> Iterator[AuditLine]:
        state = self._state()
        record = None if lease_id is None else state.leases.get(lease_id)
        if record is not None:
            yield from self._audits(record)
            worker = record.lease.worker
        member = None if worker is None else state.workers.get(worker)
        if member is not None:
            yield from self._of_worker(member)

    def _of_lease(self, record: LeaseRecord) -> Iterator[AuditLine]:
        if record.verdict is not None:
            yield self._verdict(record, record.verdict, self._state().now_s)
        yield from self._audits(record)

    def _verdict(self, record: LeaseRecord, verdict: Verdict, at_s: float) -> AuditLine:
        outcome, stage = "accepted" if verdict.accepted else "refused", stage_of(verdict)
        of_its_own = self._last is None or getattr(self._last, "lease_id", None) == record.lease.lease_id
        if not verdict.accepted and stage in {Stage.NORMS, Stage.GAIN} and not of_its_own:
            stage = Stage.REVIEW  # something else made the engine look at it again
        key = f"verdict:{record.lease.lease_id}:{verdict.key or 'accepted'}"
        return self._line(key, at_s, record, stage, outcome, why=verdict.why)

    def _audits(self, record: LeaseRecord) -> Iterator[AuditLine]:
        state = self._state()
        for number, audit in enumerate(record.audits):
            yield self._line(
                f"audit:{record.lease.lease_id}:{number}", state.now_s, record, Stage.AUDIT,
                "passed" if audit.passed else "failed" if audit.decisive else "undecided",
                figures={"trunk": audit.trunk, "columns": audit.columns}, judge=audit.auditor or "coordinator",
                words=told_classes(record, audit),
            )  # fmt: skip

    def _of_worker(self, record: WorkerRecord) -> Iterator[AuditLine]:
        aside, ban = record.quarantine, record.ban
        if aside is not None:
            key = f"aside:{record.worker}:{aside.until_round}:{aside.until_s:.3f}"
            yield self._line(key, self._state().now_s, record, Stage.TRUST, "set aside", why=aside.why)
        if ban is not None:
            key = f"ban:{record.worker}:{ban.at_s:.3f}"
            yield self._line(key, ban.at_s, record, Stage.TRUST, "banned", why=ban.why, judge=ban.by)

    def _of_the_run(self) -> Iterator[AuditLine]:
        """About no event's own worker or lease: each table of the state again only where it is another one."""
        state = self._state()
        yield from self._of_rounds()
        if self._is_news("owners", state.banned_owners):
            for owner, ban in state.banned_owners.items():
                yield from self._of_group("owner", owner, ban, lambda one: one.owner)
        if self._is_news("invites", state.banned_invites):
            for invite, ban in state.banned_invites.items():
                yield from self._of_group("invite", invite, ban, lambda one: one.invite)
        if self._is_news("accusations", state.accusations):
            for accusation in state.accusations:
                yield from self._outcome(accusation)
        if self._is_news("rollbacks", state.rollbacks):
            for record in state.rollbacks:
                yield from self._taken_back(record)

    def _is_news(self, name: str, table: object) -> bool:
        before, self._told[name] = self._told.get(name), table
        return before is not table

    def _of_group(self, kind: str, name: str, ban: Ban, group: Callable[[WorkerRecord], str]) -> Iterator[AuditLine]:
        """The ban of an owner's or an invite's machines, and what it did to each of them."""
        yield self._line(
            f"ban:{kind}:{name}:{ban.at_s:.3f}", ban.at_s, None, Stage.TRUST, f"{kind} banned", why=ban.why,
            judge=ban.by, words=f"{name}: {told(ban.why)}",
        )  # fmt: skip
        for record in self._state().workers.values():
            if group(record) == name:
                yield from self._of_worker(record)

    def _outcome(self, accusation: Accusation) -> Iterator[AuditLine]:
        """What came of a lease that somebody could not reproduce."""
        state = self._state()
        about = state.leases.get(accusation.lease_id) or state.workers[accusation.worker]
        if accusation.outcome is AuditOutcome.OPEN:
            return
        people = [
            ", ".join(one or "coordinator" for one in group) for group in (accusation.accusers, accusation.vouchers)
        ]
        yield self._line(
            f"outcome:{accusation.lease_id}:{accusation.outcome}", accusation.at_s, about, Stage.AUDIT,
            accusation.outcome, round_=accusation.round,
            words=f"not reproduced by {people[0]}; reproduced by {people[1] or 'nobody'}",
        )  # fmt: skip

    def _taken_back(self, record: RollbackRecord) -> Iterator[AuditLine]:
        """A rollback, or why there was none, under each worker without whom it was to be."""
        state = self._state()
        verdict = "kept" if record.version is None else "taken back"
        for worker in record.without:
            yield self._line(
                f"rollback:{worker}:{record.round}", state.now_s, state.workers.get(worker), Stage.TRUST, verdict,
                figures={"change_l2": record.change_l2, "update_norm_l2": record.update_norm_l2}, judge=record.by,
                round_=record.round, words=told(record.given_up) if record.given_up else record.why,
            )  # fmt: skip

    def _of_rounds(self) -> Iterator[AuditLine]:
        """Rounds that published nothing: all that the state still has, once each."""
        for row in reversed(self._state().history):
            if row.round <= self._told_rounds:
                break
            if row.unpublished is not None:
                yield self._line(
                    f"round:{row.round}", row.closed_at_s, None, Stage.REVIEW, "withheld", why=row.unpublished,
                    round_=row.round,
                )  # fmt: skip
        if self._state().history:
            self._told_rounds = int(self._state().history[-1].round)

    def _line(
        self, key: str, at_s: float, about: LeaseRecord | WorkerRecord | None, stage: Stage, verdict: str, *,
        why: Reason | None = None, figures: dict[str, float] | None = None,
        judge: str = "engine", round_: int | None = None, words: str = "",
    ) -> AuditLine:  # fmt: skip
        state = self._state()
        lease = about.lease if isinstance(about, LeaseRecord) else None
        worker = lease.worker if lease else about.worker if isinstance(about, WorkerRecord) else None
        found = figures if figures is not None else {} if why is None else why.figures
        if "trunk" in found:  # of an audit
            found = found | {
                "distance": max(found["trunk"], found["columns"]),
                "tolerance": state.config.audits.tolerance,
            }
        given = round_ if round_ is not None else lease.round if lease else state.round.round
        return AuditLine(
            key=key, at_s=at_s, wall_s=self._wall_at_s(at_s), round=int(given), worker=worker or "",
            lease=lease.lease_id if lease else "",
            stage=stage, verdict=verdict, figure=_first(found, _FIGURES),
            threshold=_first(found, _THRESHOLDS),
            figures={name: value for name, value in found.items() if math.isfinite(value)}, judge=judge,
            why=words or ("" if why is None else told(why)),
        )  # fmt: skip

    def _add(self, lines: list[AuditLine]) -> None:
        if not lines:
            return
        try:
            self._log.add(lines)
            self._is_troubled = False
        except sqlite3.Error as error:
            if not self._is_troubled:
                _log.warning("audit_log_not_written", reason=str(error))
            self._is_troubled = True


class Observers:
    """Several observers of one pump, told in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers: Iterable[Observer] = observers

    def event(self, event: Event) -> None:
        """`event` was applied."""
        for one in self._observers:
            one.event(event)

    def command(self, command: Command, at_s: float) -> None:
        """`command` follows from it."""
        for one in self._observers:
            one.command(command, at_s)


def _first(figures: dict[str, float], names: tuple[str, ...]) -> float | None:
    found = next((figures[name] for name in names if name in figures), None)
    return found if found is not None and math.isfinite(found) else None
