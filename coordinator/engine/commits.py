"""Whether a commit still counts, before any of its bytes is here.

Decides it from the worker, the run's phase, the clock and what else is committed. Changes nothing.
"""

from __future__ import annotations

from coordinator.engine.events import SubmissionCommitted
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import BANNED, DUPLICATE, INCOMPLETE, LATE, Case, Verdict, rejected
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState


def refusal_of(state: EngineState, record: LeaseRecord, event: SubmissionCommitted) -> Verdict | None:
    """Why a commit comes to nothing; None where the lease is still the worker's to deliver."""
    lease = record.lease
    if state.workers[lease.worker].ban is not None:
        return rejected(BANNED, Case.WORKER_BANNED)
    if state.phase is Phase.FINISHING:
        return rejected(LATE, Case.RUN_TOOK_LAST_STEP)
    if state.now_s >= lease.deadline_s:
        return rejected(LATE, Case.AFTER_DEADLINE, late_s=state.now_s - lease.deadline_s)
    staleness = state.staleness_of(lease)
    if staleness > state.config.max_staleness:
        return rejected(LATE, Case.COMMITTED_ROUNDS_LATE, rounds=staleness, most=state.config.max_staleness)
    own = [other.lease.lease_id for other in state.leases_of(lease.worker)]
    if own[-1] != lease.lease_id:
        return rejected(LATE, Case.LEASED_ANEW, own[-1])
    worker = state.workers[lease.worker]
    if record.status is LeaseStatus.EXPIRED and (seat := state.index.seated_as(worker)):
        taken = state.index.seats(lease.round, seat) & set(lease.columns)
        if taken:
            return rejected(LATE, Case.SEAT_TAKEN, worker.owner or "its owner", column=min(taken))
    if event.inner_steps_done < lease.inner_steps:
        return rejected(INCOMPLETE, Case.STEPS_MISSING, done=event.inner_steps_done, leased=lease.inner_steps)
    if lease.audits is None and state.digest_in_use(event.digest, besides=lease.lease_id):
        return rejected(DUPLICATE, Case.SAME_BYTES)
    return None
