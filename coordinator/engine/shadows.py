"""Shadow leases: a lease once more, in the hands of a trusted worker, to see whether the same comes of it.

Decides which trusted worker is given which audit, and when. Holds always: a shadow lease says what the audited one says
(base, columns, data, seed, steps, recipe), so what is computed from it is the same; it takes no seat in a round, is
waited for as an audit alone, counts nowhere, and its being lost costs nobody anything. A worker that is idle takes one
whenever there is none of its own to be had; one that has waited for `audits.wait_s` goes before leases of its own, and
one whose lease somebody could not reproduce at once: kept for `keep_rounds` alone, it would be left in doubt.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import audit_budget, audits, credit, leases, pacing
from coordinator.engine.arithmetic import could_decide
from coordinator.engine.commands import AnnounceVerdict, CompareSubmissions, GrantLease
from coordinator.engine.dispatch import ready_workers
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Case, accepted
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import may_audit as is_fit_to_audit
from coordinator.engine.turn import Turn
from protocol.codecs import BF16
from protocol.ids import LeaseId


def grant(turn: Turn, *, overdue: bool) -> None:
    """Give each open audit that nobody has in hand to the first who may; only overdue ones, or whichever."""
    state = turn.state
    if not state.index.open_audits or not state.index.idle:
        return
    if not any(is_fit_to_audit(worker) for worker in ready_workers(state)):
        return  # as nearly always: only then is it worth asking for each audit who could take it
    for record in audits.open_audits(state):
        if (
            audits.is_in_hand(state, record)
            or record.residuals_missing
            or (overdue and not audits.is_overdue(state, record))
        ):
            continue
        chosen = _free_auditor(turn.state, record)
        if chosen is not None:
            _grant(turn, record, chosen)


def _free_auditor(state: EngineState, record: LeaseRecord) -> WorkerRecord | None:
    """One whose answer would be decisive, or, where no such one is here or the audit has waited too long, whoever."""
    config, people = state.config.audits, audits.asked(state, record)
    first: WorkerRecord | None = None
    for worker in ready_workers(state):
        if audits.may_audit(config, worker, record, people) and not audits.has_let_down(state, worker):
            if could_decide(config, record, worker):
                return worker
            first = first or worker
    if first is None or audits.is_overdue(state, record):
        return first
    here = (worker for worker in audits.auditors(state, record) if worker.present)
    better = (could_decide(config, record, one) and not audits.has_let_down(state, one) for one in here)
    return None if any(better) else first


def upload(turn: Turn, record: LeaseRecord) -> None:
    """All bytes of a shadow lease are here: hold them against those of the lease that it audits."""
    state, lease = turn.state, record.lease
    leases.note_upload(turn, record)
    state.update_lease(lease.lease_id, uploaded_at_s=state.now_s)
    state.set_status(lease.lease_id, LeaseStatus.UPLOADED)
    audited = None if lease.audits is None else state.leases.get(lease.audits)
    if audited is None or audited.digest is None or not audited.audit_due:
        take(turn, lease.lease_id)
        return
    assert record.digest is not None
    turn.emit(
        CompareSubmissions(
            command_id=audits.compare_id(lease.lease_id),
            lease=audited.lease,
            digest=audited.digest,
            codec=audited.codec,
            again=lease,
            again_digest=record.digest,
            again_codec=record.codec,
            residuals_in=audited.residuals_in,
            residuals_out=audited.residuals_out,
        )
    )


def take(turn: Turn, lease_id: LeaseId) -> None:
    """What its worker was asked for is here. It counts in no round; its worker has done its part."""
    state = turn.state
    record = state.set_status(lease_id, LeaseStatus.ACCEPTED)
    verdict = accepted(Case.COMPARED)
    record = state.update_lease(lease_id, verdict=verdict, counted_in=state.round.round, ended=verdict.why)
    worker = state.workers[record.lease.worker]
    state.update_worker(worker.worker, accepted=worker.accepted + 1)
    credit.give(turn, lease_id)
    turn.emit(AnnounceVerdict(worker=worker.worker, lease_id=lease_id, verdict=verdict))
    leases.drop_payload(turn, state.leases[lease_id])


def _grant(turn: Turn, record: LeaseRecord, worker: WorkerRecord) -> None:
    state, current = turn.state, turn.state.round
    ttl_s = pacing.time_to_live_s(state.config, worker, pacing.pace_of(state), record.lease.inner_steps)
    lease = replace(
        record.lease,
        lease_id=LeaseId(f"r{current.round}.{current.next_lease}"),
        round=current.round,
        worker=worker.worker,
        granted_at_s=state.now_s,
        deadline_s=state.now_s + ttl_s,
        spare=False,
        audits=record.lease.lease_id,
        # what the worker's earlier encodings lost is nothing of the auditor's, and no part of what is computed
        codec=BF16.name if record.residuals_out else record.lease.codec,
        residuals=(),
    )
    if record.audits:
        audit_budget.charge(state, lease)  # the first was paid for when it was drawn, or takes idle time
    state.put_lease(LeaseRecord(lease=lease))
    state.update_round(next_lease=current.next_lease + 1)
    state.update_worker(
        worker.worker, waiting_since_s=None, waits_until_s=None, leases_granted=worker.leases_granted + 1
    )
    turn.emit(GrantLease(lease=lease))
