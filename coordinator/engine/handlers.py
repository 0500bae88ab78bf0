"""What each event from a worker, from the clock or from the operator does; results of slow work are in results.py.

Decides what a worker that asks, commits, uploads, hands back or falls silent is answered. Holds always: said twice, an
event changes nothing the second time; one that contradicts what is known is illegal. Which event comes to which of
these, and when, is in event_table.py.
"""

from __future__ import annotations

from coordinator.engine import bans, closing, gaps, leases, orders, results, shadows
from coordinator.engine.commands import EndRun
from coordinator.engine.events import (
    CapabilityChanged,
    ClockStepped,
    CoordinatorResumed,
    LeaseRequested,
    LeaseReturned,
    RunStopped,
    SubmissionCommitted,
    SubmissionUploaded,
    Ticked,
    WorkerEnrolled,
    WorkerLeft,
    WorkerSilent,
)
from coordinator.engine.history import CalendarMark, remembered
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import Digest, LeaseId, WorkerId

LEFT = "its volunteer has left the run"


def on_worker_enrolled(turn: Turn, event: WorkerEnrolled) -> None:
    """A new worker; it is asked for nothing until it asks for a lease."""
    if event.worker in turn.state.workers:
        raise IllegalEvent(f"worker {event.worker} is enrolled already")
    bans.let_in(
        turn,
        WorkerRecord(
            worker=event.worker,
            name=event.name,
            trusted=event.trusted,
            max_columns=event.max_columns,
            tokens_per_s=event.tokens_per_s,
            heard_at_s=turn.state.now_s,
            measures=event.measures,
            owner=event.owner,
            invite=event.invite,
            sibling_of=event.sibling_of,
        ),
    )


def on_capability_changed(turn: Turn, event: CapabilityChanged) -> None:
    """Counts from the next lease on."""
    enrolled(turn.state, event.worker)
    turn.hear(event.worker)
    turn.state.update_worker(
        event.worker, max_columns=event.max_columns, tokens_per_s=event.tokens_per_s, measures=event.measures
    )


def on_worker_silent(turn: Turn, event: WorkerSilent) -> None:
    """Its open lease is lost; what it has committed to may still arrive."""
    state = turn.state
    if enrolled(state, event.worker).heard_at_s > event.last_seen_at_s or state.paused:
        return  # it spoke while the finding was on its way to the journal, or the run was paused
    leases.break_uploads(turn, event.worker)
    state.update_worker(event.worker, present=False, waiting_since_s=None, waits_until_s=None)
    record = state.open_lease_of(event.worker)
    if record is not None:
        limit_s, silent_s = silence_limit_s(state.config), state.now_s - event.last_seen_at_s
        leases.expire(turn, record.lease.lease_id, reason(Case.SILENT, silent_s=silent_s, most_s=limit_s))


def on_worker_left(turn: Turn, event: WorkerLeft) -> None:
    """Its open lease is free for others at once; what it has sent stays, and what it has earned. Again is fine."""
    state = turn.state
    enrolled(state, event.worker)
    leases.break_uploads(turn, event.worker)
    record = state.open_lease_of(event.worker)
    if record is not None:
        leases.hand_back(turn, record, LEFT)
    state.update_worker(event.worker, present=False, waiting_since_s=None, waits_until_s=None)


def on_coordinator_resumed(turn: Turn, event: CoordinatorResumed) -> None:
    """Nobody is blamed for a time in which nobody was here."""
    gaps.bridge(turn, event.gap_s)


def on_clock_stepped(turn: Turn, event: ClockStepped) -> None:
    """A mark in the calendar."""
    mark = CalendarMark(at_s=max(turn.state.now_s, event.at_s), wall_s=event.wall_s)  # also where time stands
    turn.state.calendar = remembered(turn.state.calendar, mark)


def on_lease_requested(turn: Turn, event: LeaseRequested) -> None:
    """The worker is idle: it gets its open lease again, or a new one as soon as there is one for it."""
    state = turn.state
    enrolled(state, event.worker)
    turn.hear(event.worker)
    if state.phase is Phase.OVER:
        turn.emit(EndRun(why=state.ended or reason(Case.ENDED)))
        return
    waits_until_s = None if event.wait_s is None else max(state.now_s, event.at_s) + event.wait_s
    since_s = state.workers[event.worker].waiting_since_s
    state.update_worker(
        event.worker, waiting_since_s=state.now_s if since_s is None else since_s, waits_until_s=waits_until_s
    )
    record = state.open_lease_of(event.worker)
    if record is None:
        return
    hopeless = leases.why_not_again(turn, record)
    if hopeless is None:
        leases.grant_again(turn, record)
    else:
        leases.expire(turn, record.lease.lease_id, hopeless)


def on_lease_returned(turn: Turn, event: LeaseReturned) -> None:
    """Said twice, or after the lease was lost, it changes nothing."""
    record = _lease(turn.state, event.worker, event.lease_id)
    turn.hear(event.worker)
    if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
        leases.hand_back(turn, record, event.reason)


def on_submission_committed(turn: Turn, event: SubmissionCommitted) -> None:
    """A first commit is taken or refused; the same again is answered the same; another digest is illegal."""
    record = _lease(turn.state, event.worker, event.lease_id)
    if record.status is LeaseStatus.RETURNED:
        raise IllegalEvent(f"lease {event.lease_id} was handed back by {event.worker}; it takes no submission")
    undecided = record.status is LeaseStatus.EXPIRED and record.digest is None
    if record.status is LeaseStatus.GRANTED or undecided:
        turn.hear(event.worker)
        leases.commit(turn, record, event)
        return
    if record.digest is not None:
        _check_digest(record, event.digest)
    turn.hear(event.worker)
    leases.break_uploads(turn, event.worker)  # it asks from which byte to go on
    results.repeat_verdict(turn, record)


def on_submission_uploaded(turn: Turn, event: SubmissionUploaded) -> None:
    """Bytes of a commit; twice changes nothing, without one is illegal."""
    record = _lease(turn.state, event.worker, event.lease_id)
    if record.digest is None:
        raise IllegalEvent(f"lease {event.lease_id} of {event.worker} is {record.status}: nothing was committed")
    _check_digest(record, event.digest)
    turn.hear(event.worker)
    if record.status is LeaseStatus.COMMITTED and record.lease.audits is not None:
        shadows.upload(turn, record)
    elif record.status is LeaseStatus.COMMITTED:
        leases.upload(turn, record)
    elif record.status is LeaseStatus.EXPIRED:
        results.refuse_lost_upload(turn, record)
    else:
        results.repeat_verdict(turn, record)


def on_ticked(turn: Turn, event: Ticked) -> None:
    """Time passed; what it brings about is the same after every event, but that a wave of leases goes on."""
    if turn.state.round.granting:
        turn.state.update_round(granting=False)


def on_run_stopped(turn: Turn, event: RunStopped) -> None:
    """Said twice it changes nothing."""
    if turn.state.stop_reason is None and turn.state.phase is not Phase.FINISHING:
        orders.lift(turn, event.at_s)
        closing.stop(turn, event.reason)


def enrolled(state: EngineState, worker: WorkerId) -> WorkerRecord:
    """The worker's record. IllegalEvent where there is none."""
    if worker not in state.workers:
        raise IllegalEvent(f"worker {worker} is not enrolled in run {state.config.run_id}")
    return state.workers[worker]


def _lease(state: EngineState, worker: WorkerId, lease_id: LeaseId) -> LeaseRecord:
    enrolled(state, worker)
    record = state.leases.get(lease_id)
    if record is None:
        raise IllegalEvent(f"lease {lease_id} is not known: never granted, or too many rounds ago")
    if record.lease.worker != worker:
        raise IllegalEvent(f"lease {lease_id} belongs to {record.lease.worker}, not to {worker}")
    return record


def _check_digest(record: LeaseRecord, digest: Digest) -> None:
    if record.digest != digest:
        lease = record.lease
        raise IllegalEvent(f"{lease.worker} committed {lease.lease_id} to {record.digest} and now brings {digest}")
