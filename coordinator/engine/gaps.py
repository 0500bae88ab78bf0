"""Time in which the coordinator was not there, or the run was paused: what it moves.

Decides which moments move by a gap (a restart, a suspended machine, a process that stood still, a pause) and which
stay. What lies ahead moves, because nobody could use that time: a worker could not deliver, a spare could not be found.
What is over stays where it was. Holds always: a moment that had passed before the gap has passed after it, since a gap
is no longer than the time that went by.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine.leases import break_uploads
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.rows import LeaseRecord, RoundState, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn

MOVED_OF_A_ROUND = ("gathered_at_s", "first_lease_at_s", "grace_until_s", "spare_wait_until_s")
"""Timers, and what timers are counted from: gathering, the round's deadline, the time that is left for new leases."""
_UNDECIDED = frozenset({LeaseStatus.GRANTED, LeaseStatus.EXPIRED})
"""A commit still decides about these: one that was lost to silence counts if it comes before the deadline."""
_ON_THE_WAY = _UNDECIDED | {LeaseStatus.COMMITTED}


def bridge(turn: Turn, gap_s: float, *, calls_broke: bool = True) -> None:
    """Move every open moment by `gap_s`, and give everybody who was there one silence limit from now."""
    state = turn.state
    for worker in list(state.workers.values()):
        break_uploads(turn, worker.worker)
        _move_worker(state, worker, gap_s, calls_broke)
    least_s = state.now_s + silence_limit_s(state.config)
    for record in list(state.leases.values()):
        _move_lease(state, record, gap_s, least_s)
    state.update_round(**_moved_round(state.round, gap_s, least_s))
    if state.hold is not None:
        state.hold = replace(state.hold, since_s=state.hold.since_s + gap_s)


def _move_worker(state: EngineState, worker: WorkerRecord, gap_s: float, calls_broke: bool) -> None:
    changes: dict[str, object] = {}
    if worker.present:
        changes["heard_at_s"] = state.now_s
        if calls_broke:  # those that waited, with their connections
            changes |= {"waiting_since_s": None, "waits_until_s": None}
    if gap_s > 0.0 and worker.cooling_until_s > 0.0:
        changes["cooling_until_s"] = worker.cooling_until_s + gap_s
    if gap_s > 0.0 and worker.quarantine is not None:
        changes["quarantine"] = replace(worker.quarantine, until_s=worker.quarantine.until_s + gap_s)
    if changes:
        state.update_worker(worker.worker, **changes)


def _move_lease(state: EngineState, record: LeaseRecord, gap_s: float, least_s: float) -> None:
    if gap_s > 0.0 and record.audit_due:  # nobody could have taken the audit meanwhile
        record = state.update_lease(record.lease.lease_id, audit_since_s=record.audit_since_s + gap_s)
    if record.status not in _ON_THE_WAY:
        return
    deadline_s = record.lease.deadline_s
    if record.status in _UNDECIDED and record.digest is None:
        deadline_s += gap_s
    if record.status is LeaseStatus.GRANTED:
        deadline_s = max(deadline_s, least_s)
    if gap_s > 0.0 and record.overdue_at_s is not None and not record.overdue:
        state.update_lease(record.lease.lease_id, overdue_at_s=record.overdue_at_s + gap_s)
    if gap_s > 0.0 or deadline_s != record.lease.deadline_s:
        lease = replace(record.lease, deadline_s=deadline_s)
        state.update_lease(lease.lease_id, lease=lease, gap_s=record.gap_s + gap_s)


def _moved_round(current: RoundState, gap_s: float, least_s: float) -> dict[str, object]:
    moments = {name: getattr(current, name) for name in MOVED_OF_A_ROUND}
    moved: dict[str, object] = {name: at_s + gap_s for name, at_s in moments.items() if at_s is not None}
    if current.grace_until_s is not None:
        moved["grace_until_s"] = max(current.grace_until_s + gap_s, least_s)
    return moved
