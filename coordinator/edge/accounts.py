"""Everything that a run remembers of one round, one worker or one lease, in sentences: `coordinator explain`.

Decides what is told, and in which order: what it is, why it is so, then what was judged of it. From the journal and the
log of judgements alone, so that it is the same whether the run is served or not. Reads, writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from coordinator.edge.standing import current_lease, standing_of, worker_status
from coordinator.edge.stopped import engine_of_journal
from coordinator.engine import explain
from coordinator.engine.engine import Engine
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import told
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from coordinator.run.folder import RunFolder
from coordinator.run.lock import lock_holder
from coordinator.run.standings import worker_named
from coordinator.store.audit_log import AuditLine, AuditLog
from protocol.errors import ConfigError
from protocol.ids import LeaseId

JUDGEMENTS = 20
"""Told of each, the newest; `audit-log` has all."""
_LEASE = re.compile(r"r\d+\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is told of one thing."""

    kind: str
    """`round`, `worker` or `lease`."""
    name: str
    served: bool
    """Whether a coordinator is at work on the run; what is told is as of its latest record either way."""
    as_of_s: float
    """Wall time of that record, in seconds since 1970."""
    lines: tuple[str, ...]
    judgements: tuple[AuditLine, ...]


def explained(folder: RunFolder, subject: str) -> Account:
    """Of round `3`, lease `r3.9`, or the worker of this name or start of an id; ConfigError where there is none."""
    engine, as_of_s = engine_of_journal(folder)
    state = engine.state
    if subject.isascii() and subject.isdigit() and len(subject) < 10:
        kind, name, lines = "round", str(int(subject)), round_told(state, int(subject))
        judgements = _judged(folder, round_=int(subject))
    elif _LEASE.fullmatch(subject):
        judgements = _judged(folder, lease=subject)
        kind, name, lines = "lease", subject, lease_told(state, LeaseId(subject), known=bool(judgements))
    else:
        record = worker_named(state, subject)
        kind, name, lines = "worker", state.called(record.worker), worker_told(engine, record)
        judgements = _judged(folder, worker=record.worker)
    return Account(
        kind=kind,
        name=name,
        served=lock_holder(folder.root) is not None,
        as_of_s=as_of_s,
        lines=tuple(lines),
        judgements=tuple(judgements),
    )


def round_told(state: EngineState, number: int) -> list[str]:
    """An open round and why it is open; a closed one, how it ended and what of it counts nowhere."""
    current, total = state.round.round, state.config.max_rounds
    record = next((one for one in state.history if one.round == number), None)
    if record is not None:
        began = _when(state, record.opened_at_s)
        counts = f"{record.accepted} accepted, {record.rejected} refused, {record.expired} expired"
        made = "made no version" if record.version is None else f"made version {record.version}"
        loss = "" if record.val_loss is None else f", held-out loss {record.val_loss:.4f}"
        return [
            f"Round {number} opened {began}, lasted {record.lasted_s:.0f} s and {made}{loss}.",
            f"It closed because {record.close_reason}.",
            f"Submissions: {counts}, {record.returned} leases handed back; {record.late_used} late ones counted here.",
            *(
                f"Left out: lease {one.lease_id} of {state.called(one.worker)}: {told(one.why)}."
                for one in record.left_out
            ),
        ]
    if number == current and state.phase is not Phase.OVER:
        said = [f"{one.subject}: {one.reason}." for one in explain.waits(state, state.now_s)]
        opened = f"Round {number} of {total} is open since {_when(state, state.round.opened_at_s)}: {state.phase}."
        return [opened, *said]
    if number > current or number < 1:
        raise ConfigError(f"round {number} is not begun: the run is in round {current} of {total}")
    return [f"Round {number} is closed, and no more is remembered of it than what was judged."]


def lease_told(state: EngineState, lease_id: LeaseId, *, known: bool) -> list[str]:
    """Who had it, what came of it, and why; `known`: whether something was judged of it."""
    record = state.leases.get(lease_id)
    if record is None:
        if not known:
            raise ConfigError(f"no lease is called {lease_id}: `barnraise status RUN --workers --json` names them")
        return [f"Lease {lease_id} is of a round long closed; what was judged of it is all that is remembered."]
    lease = record.lease
    columns = ", ".join(map(str, lease.columns))
    return [
        f"Lease {lease_id} of round {lease.round}: columns {columns}, {lease.inner_steps} inner steps.",
        f"Granted to {state.called(lease.worker)} {_when(state, lease.granted_at_s)}"
        f"{', as a spare in mid-round' if lease.spare else ''}; due {_when(state, lease.deadline_s)}.",
        *_steps_of(state, record),
    ]


def _steps_of(state: EngineState, record: LeaseRecord) -> Iterable[str]:
    if record.committed_at_s is not None:
        sent = f"{record.payload_bytes} bytes{f' in {record.codec}' if record.codec else ''}"
        yield f"Committed {_when(state, record.committed_at_s)}: {sent}."
    if record.uploaded_at_s is not None:
        yield f"All bytes arrived {_when(state, record.uploaded_at_s)}."
    why = record.verdict.reason if record.verdict is not None else record.end_reason
    yield f"It is {record.status}{f': {why}' if why else ''}."
    if record.verdict is not None and record.ended is not None:
        yield f"It counts nowhere: {record.end_reason}."
    if record.counted_in is not None:
        yield f"It counted in round {record.counted_in}."
    if record.uncredited is not None:
        yield f"No credit for it: {told(record.uncredited)}."
    for audit in record.audits:
        by = audit.auditor or "the coordinator"
        came = "came to the same" if audit.passed else "came to something else" if audit.decisive else "could not tell"
        far = f"{audit.trunk:.3g} from it on the trunk, {audit.columns:.3g} on columns"
        yield f"Computed again by {by}, who {came}: {far}."
    if record.audit_due:
        yield "It is to be computed again."


def worker_told(engine: Engine, record: WorkerRecord) -> list[str]:
    """Who it is, what it does and why, what stands for and against it."""
    state = engine.state
    status = worker_status(
        engine, record, connected=lambda _: False, now_s=state.now_s, common=explain.common_reason(state)
    )
    owner = f", {record.owner}'s" if record.owner else ""
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(record.rejected.items())) or "none"
    lease = current_lease(state, record.worker)
    weight = trust_of(state.config, record).weight
    lines = [
        f"{state.called(record.worker)} ({record.worker}){owner} is {status.state}: {status.why}.",
        f"It is {standing_of(state.config, record)}; its work weighs {weight:.2f}.",
        f"{record.leases_granted} leases: {record.accepted} submissions accepted; refused: {rejected}; "
        f"{record.leases_expired} expired, {record.leases_returned} handed back.",
        f"Audits: {record.audits_passed} passed, {record.audits_failed} failed.",
    ]
    if record.ban is not None:
        lines.append(f"Banned by {record.ban.by} {_when(state, record.ban.at_s)}: {told(record.ban.why)}.")
    if record.quarantine is not None:
        lines.append(f"Set aside until round {record.quarantine.until_round}: {told(record.quarantine.why)}.")
    if record.accused is not None:
        lines.append(f"An auditor contradicted lease {record.accused}; another is to look at it.")
    if lease is not None:
        lines.append(f"Its lease is {lease.lease.lease_id}; `explain` tells of that, too.")
    return lines


def _judged(folder: RunFolder, *, worker: str = "", lease: str = "", round_: int | None = None) -> list[AuditLine]:
    if not folder.audit_path.is_file():
        return []
    log = AuditLog.read_only(folder.audit_path)
    try:
        return log.latest(most=JUDGEMENTS, worker=worker, lease=lease, round_=round_)
    finally:
        log.close()


def _when(state: EngineState, at_s: float) -> str:
    wall_s = state.wall_at_s(at_s)
    return f"at {at_s:.0f} s" if wall_s is None else f"{datetime.fromtimestamp(wall_s):%Y-%m-%d %H:%M:%S}"
