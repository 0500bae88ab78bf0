"""How one worker stands, in a word and in words.

Decides which of a worker's leases is told of, and what its state is called. Always: one worker costs the same however
many there are, so that a page of them is made in a moment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from coordinator.edge.status import WorkerState, WorkerStatus
from coordinator.engine import explain
from coordinator.engine.config import EngineConfig
from coordinator.engine.engine import Engine
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from protocol.ids import WorkerId

_ON_ITS_WAY = {
    LeaseStatus.GRANTED: WorkerState.TRAINING,
    LeaseStatus.COMMITTED: WorkerState.UPLOADING,
    LeaseStatus.UPLOADED: WorkerState.MEASURING,
}
_JUDGED = {LeaseStatus.ACCEPTED: WorkerState.ACCEPTED, LeaseStatus.REJECTED: WorkerState.REJECTED}


def current_lease(state: EngineState, worker: WorkerId) -> LeaseRecord | None:
    """The worker's latest lease of the present round, or one that is still on its way."""
    best: LeaseRecord | None = None
    best_rank = (False, 0.0)
    for record in state.leases_of(worker):
        live = record.status in _ON_ITS_WAY
        if not live and record.lease.round != state.round.round:
            continue
        rank = (live, record.lease.granted_at_s)
        if best is None or rank > best_rank:
            best, best_rank = record, rank
    return best


def state_of(record: WorkerRecord, lease: LeaseRecord | None) -> WorkerState:
    """What the worker is doing."""
    if record.ban is not None:
        return WorkerState.BANNED
    if not record.present:
        return WorkerState.ABSENT
    if lease is not None and lease.status in _ON_ITS_WAY:
        return _ON_ITS_WAY[lease.status]
    if record.quarantine is not None:
        return WorkerState.QUARANTINED
    if lease is not None and lease.status in _JUDGED:
        return _JUDGED[lease.status]
    return WorkerState.WAITING if record.waiting_since_s is not None else WorkerState.IDLE


def standing_of(config: EngineConfig, record: WorkerRecord) -> str:
    """How far the worker is trusted, in a word or two."""
    if record.ban is not None:
        return f"banned by {record.ban.by}"
    if record.accused is not None:
        return "contradicted by an auditor"
    if record.quarantine is not None:
        return "set aside"
    if record.undecided_in_row and not record.trusted:
        return "its audits cannot decide"
    weight = trust_of(config, record).weight
    if weight <= 0.0:
        return "on probation"
    if weight < 1.0:
        return "rising"
    return "founder" if record.trusted else "trusted in full"


def count_states(state: EngineState) -> dict[WorkerState, int]:
    """How many workers are in each state, in the order of the states."""
    counts = Counter(state_of(record, current_lease(state, worker)) for worker, record in state.workers.items())
    return {each: counts[each] for each in WorkerState if counts[each]}


def worker_status(
    engine: Engine, record: WorkerRecord, *, connected: Callable[[WorkerId], bool], now_s: float, common: str | None
) -> WorkerStatus:
    """Everything about one worker; `common`: why nobody has a new lease, where that is so (`explain.common_reason`)."""
    lease = current_lease(engine.state, record.worker)
    beat = engine.last_seen.get(record.worker)
    training = lease is not None and lease.status is LeaseStatus.GRANTED
    fresh = beat if beat is not None and lease is not None and beat.lease_id == lease.lease.lease_id else None
    heard_at_s = max(record.heard_at_s, beat.at_s) if beat else record.heard_at_s

    def wait() -> str:
        return explain.wait_reason(engine.state, record, common)

    why = _why(record, lease, fresh.inner_step if fresh else 0, now_s, wait)
    if record.present and beat is not None and beat.paused_until_s is not None:
        paused = _paused(beat.paused_until_s - now_s)
        why = f"{paused}; {why}" if training else paused

    return WorkerStatus(
        worker=record.worker,
        name=engine.state.called(record.worker),
        trusted=record.trusted,
        owner=record.owner,
        state=state_of(record, lease),
        why=why,
        connected=record.present and connected(record.worker),
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
        weight=trust_of(engine.state.config, record).weight,
        standing=standing_of(engine.state.config, record),
        audits_passed=record.audits_passed,
        audits_failed=record.audits_failed,
        invite=record.invite,
    )


def _paused(left_s: float) -> str:
    if not 0.0 < left_s < math.inf:
        return "paused by its owner"
    span = f"{left_s / 60:.0f} min" if left_s < 5400 else f"{left_s / 3600:.0f} h"
    return f"paused by its owner, for {span} more at the least"


def _why(
    record: WorkerRecord, lease: LeaseRecord | None, inner_step: int, now_s: float, wait: Callable[[], str]
) -> str:
    if lease is None or not record.present:
        return wait()
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
        return f"lease {name}: {lease.verdict.reason}; {wait()}"
    return wait()
