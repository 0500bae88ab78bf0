"""What an operator sees: one run at one moment, every state with its reason, as data that goes over the wire as JSON.

Decides nothing: it reads the engine's state. `RunStatus` is the schema of GetStatusReply.status_json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from coordinator.engine.engine import Engine
from coordinator.engine.history import LeftOut, RoundRecord
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import told
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.run.traffic import Traffic
from coordinator.work import substitutes
from protocol.ids import RunId, WorkerId


class _Data(BaseModel):
    # a loss may be infinite, which plain JSON has no number for; as a string it is a float again on the other side
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class WaitStatus(_Data):
    """One reason why the round is not closed."""

    subject: str
    reason: str


class WorkerStatus(_Data):
    """One worker: what it is doing, and why."""

    worker: str
    name: str
    trusted: bool
    owner: str
    """Whose machine it is, as the operator said with its invite; empty: nobody's but its own."""
    state: str
    """training, uploading, measuring, accepted, rejected, waiting, quarantined, absent or idle."""
    why: str
    connected: bool
    max_columns: int
    columns: tuple[int, ...]
    lease_id: str | None
    inner_step: int
    inner_steps: int
    train_loss: float | None
    tokens_per_s: float
    silent_s: float | None
    leases_granted: int
    leases_expired: int
    leases_returned: int
    accepted: int
    rejected: dict[str, int]


class RoundStatus(_Data):
    """One closed round."""

    round: int
    version: int | None
    opened_at_s: float
    closed_at_s: float
    """Calendar time, in seconds since the epoch, like all moments here."""
    lasted_s: float
    """Run time from its opening to its close; the difference of the two is off by what the wall clock was set."""
    accepted: int
    rejected: int
    expired: int
    returned: int
    late_used: int
    update_norm_l2: float | None
    val_loss: float | None
    val_loss_se: float | None
    close_reason: str
    left_out: tuple[str, ...]
    """Submissions that were accepted and could not be aggregated: whose, and why."""


class ValidationStatus(_Data):
    """Held-out loss of one version, nats a token."""

    version: int
    val_loss: float
    val_loss_se: float


class CheckpointStatus(_Data):
    """An exported version."""

    version: int
    path: str


class RunStatus(_Data):
    """A run at one moment."""

    answering: bool = True
    """Whether a coordinator said so. False: this is the journal's last record, and nobody is at work on it."""
    trouble: str | None = None
    """Why nobody answered, and what to do."""
    last_record_s: float | None = None
    """Where nobody answered: when something was last recorded, in seconds of wall time since 1970."""
    run_id: str
    name: str
    at_s: float
    started_at_s: float | None
    round: int
    max_rounds: int
    version: int
    phase: str
    over: bool
    end_reason: str | None
    waits: tuple[WaitStatus, ...]
    workers: tuple[WorkerStatus, ...]
    history: tuple[RoundStatus, ...]
    substitutes: tuple[str, ...]
    """Blocks of the latest version that the run's rule did not answer for: which, why, and what would mend it."""
    validations: tuple[ValidationStatus, ...]
    checkpoints: tuple[CheckpointStatus, ...]
    working_on: tuple[str, ...]
    """Slow commands that are pending, e.g. `aggregate:r3`, with an error where one failed."""
    leases_granted: int
    leases_expired: int
    leases_returned: int
    submissions_accepted: int
    submissions_rejected: dict[str, int]
    rejected_by_worker: dict[str, int]
    bytes_up: int
    bytes_down: int
    calls: int
    refused_calls: int


def run_status(
    engine: Engine,
    *,
    run_id: RunId,
    name: str,
    now_s: float,
    wall_s: float,
    traffic: Traffic,
    connected: Callable[[WorkerId], bool],
) -> RunStatus:
    """The run as of run time `now_s`, which is `wall_s` by the calendar."""
    state = engine.state
    totals, current = state.totals, _current_leases(engine)
    return RunStatus(
        run_id=run_id,
        name=name,
        at_s=wall_s,
        started_at_s=_wall_s(state, state.history[0].opened_at_s if state.history else state.round.opened_at_s),
        round=state.round.round,
        max_rounds=state.config.max_rounds,
        version=state.version,
        phase=state.phase,
        over=state.phase is Phase.OVER,
        end_reason=state.end_reason,
        waits=tuple(WaitStatus(subject=wait.subject, reason=wait.reason) for wait in engine.explain(now_s)),
        workers=tuple(
            _worker(engine, record, current.get(record.worker), connected(record.worker), now_s)
            for record in state.workers.values()
        ),
        history=tuple(_round(state, record) for record in state.history),
        substitutes=tuple(map(substitutes.told, state.substitutes)),
        validations=tuple(
            ValidationStatus(version=v.version, val_loss=v.val_loss, val_loss_se=v.val_loss_se)
            for v in state.validations
        ),
        checkpoints=tuple(CheckpointStatus(version=c.version, path=c.path) for c in state.checkpoints),
        working_on=tuple(_pending(engine)),
        leases_granted=totals.leases_granted,
        leases_expired=totals.leases_expired,
        leases_returned=totals.leases_returned,
        submissions_accepted=totals.submissions_accepted,
        submissions_rejected=dict(totals.submissions_rejected),
        rejected_by_worker={
            worker: sum(record.rejected.values()) for worker, record in state.workers.items() if record.rejected
        },
        bytes_up=traffic.bytes_up,
        bytes_down=traffic.bytes_down,
        calls=traffic.calls,
        refused_calls=traffic.refused_calls,
    )


def one_line(status: RunStatus) -> str:
    """A status for a log line or a terminal without colours."""
    states = Counter(worker.state for worker in status.workers)
    who = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no workers"
    loss = f", loss {status.validations[-1].val_loss:.3f}" if status.validations else ""
    return f"round {status.round} of {status.max_rounds} {status.phase}: {who}{loss}"


def _round(state: EngineState, record: RoundRecord) -> RoundStatus:
    as_recorded = RoundStatus.model_fields.keys() - {"left_out", "lasted_s"}
    facts = {name: getattr(record, name) for name in as_recorded}
    facts |= {name: _wall_s(state, facts[name]) for name in ("opened_at_s", "closed_at_s")}
    return RoundStatus(
        **facts,
        lasted_s=record.closed_at_s - record.opened_at_s,
        left_out=tuple(f"{_name(state, one)}'s {one.lease_id}: {told(one.why)}" for one in record.left_out),
    )


def _name(state: EngineState, one: LeftOut) -> str:
    return state.workers[one.worker].name or one.worker[:8]


def _wall_s(state: EngineState, at_s: float) -> float:
    """Calendar time at run time `at_s`; run time itself in a run that has no calendar."""
    wall_s = state.wall_at_s(at_s)
    return at_s if wall_s is None else wall_s


def _pending(engine: Engine) -> list[str]:
    failures = engine.state.failures
    lines = []
    for command in engine.pending:
        failure = failures.get(command.command_id)
        lines.append(command.command_id + (f" (failed {failure.count} times: {failure.error})" if failure else ""))
    return lines


def _worker(
    engine: Engine, record: WorkerRecord, lease: LeaseRecord | None, connected: bool, now_s: float
) -> WorkerStatus:
    beat = engine.last_seen.get(record.worker)
    training = lease is not None and lease.status is LeaseStatus.GRANTED
    fresh = beat if beat is not None and lease is not None and beat.lease_id == lease.lease.lease_id else None
    heard_at_s = max(record.heard_at_s, beat.at_s) if beat else record.heard_at_s
    return WorkerStatus(
        worker=record.worker,
        name=record.name,
        trusted=record.trusted,
        owner=record.owner,
        state=_state(record, lease),
        why=_why(engine, record, lease, fresh.inner_step if fresh else 0, now_s),
        connected=connected and record.present,
        max_columns=record.max_columns,
        columns=lease.lease.columns if lease else (),
        lease_id=lease.lease.lease_id if lease else None,
        inner_step=fresh.inner_step if fresh and training else 0,
        inner_steps=lease.lease.inner_steps if lease else 0,
        train_loss=fresh.train_loss if fresh else None,
        tokens_per_s=fresh.tokens_per_s if fresh else record.tokens_per_s,
        silent_s=max(0.0, now_s - heard_at_s),
        leases_granted=record.leases_granted,
        leases_expired=record.leases_expired,
        leases_returned=record.leases_returned,
        accepted=record.accepted,
        rejected=dict(record.rejected),
    )


def _why(engine: Engine, record: WorkerRecord, lease: LeaseRecord | None, inner_step: int, now_s: float) -> str:
    if lease is None or not record.present:
        return engine.wait_reason(record.worker)
    name, columns = lease.lease.lease_id, ", ".join(map(str, lease.lease.columns))
    if lease.status is LeaseStatus.GRANTED:
        left_s = max(0.0, lease.lease.deadline_s - now_s)
        steps = f"{inner_step} of {lease.lease.inner_steps} inner steps"
        return f"lease {name}, columns {columns}: {steps}, {left_s:.0f} s left"
    if lease.status is LeaseStatus.COMMITTED:
        return f"lease {name}: committed, {lease.payload_bytes} bytes are on their way"
    if lease.status is LeaseStatus.UPLOADED:
        return f"lease {name}: its submission is being measured"
    if lease.verdict is not None:
        return f"lease {name}: {lease.verdict.reason}; {engine.wait_reason(record.worker)}"
    return engine.wait_reason(record.worker)


_STATES = {
    LeaseStatus.GRANTED: "training",
    LeaseStatus.COMMITTED: "uploading",
    LeaseStatus.UPLOADED: "measuring",
    LeaseStatus.ACCEPTED: "accepted",
    LeaseStatus.REJECTED: "rejected",
}


def _state(record: WorkerRecord, lease: LeaseRecord | None) -> str:
    if not record.present:
        return "absent"
    if lease is not None and lease.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED}:
        return _STATES[lease.status]
    if record.quarantine is not None:
        return "quarantined"
    if lease is not None and lease.status in _STATES:
        return _STATES[lease.status]
    return "waiting" if record.waiting_since_s is not None else "idle"


def _current_leases(engine: Engine) -> dict[WorkerId, LeaseRecord]:
    """Each worker's latest lease of the present round, or one that is still on its way; all leases are read once."""
    state = engine.state
    live = {LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED}
    current: dict[WorkerId, LeaseRecord] = {}
    for record in state.leases.values():
        if record.lease.round != state.round.round and record.status not in live:
            continue
        other = current.get(record.lease.worker)
        rank = (record.status in live, record.lease.granted_at_s)
        if other is None or rank > (other.status in live, other.lease.granted_at_s):
            current[record.lease.worker] = record
    return current
