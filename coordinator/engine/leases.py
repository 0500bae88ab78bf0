"""The life of one lease: granted, granted again, committed, uploaded, judged, handed back, expired.

Decides a lease's contents (with pacing and placement) and whether a commit still counts. Holds always: a worker has
at most one lease that is neither committed to nor over, whatever it is still sending; a position of the training data
is named by one lease only within an epoch; dropping out never counts against a worker; a submission that screening
refused does, and one that a worker which is here committed to and never sent, half.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import appeals, credit, measuring, pacing, residuals, trust
from coordinator.engine import contributions as votes
from coordinator.engine.commands import (
    AnnounceVerdict,
    CancelLease,
    DropPayload,
    GrantLease,
)
from coordinator.engine.commits import refusal_of
from coordinator.engine.events import SubmissionCommitted
from coordinator.engine.lease import GrantedLease
from coordinator.engine.past import PastStep
from coordinator.engine.phases import LOST_STATUSES, OPEN_PHASES, LeaseStatus
from coordinator.engine.reasons import (
    BLAMED_KEYS,
    LATE,
    Case,
    Reason,
    Verdict,
    reason,
    rejected,
)
from coordinator.engine.rows import LeaseRecord, UploadReport
from coordinator.engine.schedules import lease_recipe, lora_seed_of
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId, WorkerId


def grant(
    turn: Turn, worker: WorkerId, columns: tuple[int, ...], eighths: int, pace: pacing.Pace, *, spare: bool
) -> GrantedLease:
    """Write a new lease and hand it to its worker."""
    state, config = turn.state, turn.state.config
    current, inner = state.round, state.config.inner
    steps = pacing.steps_of(config, current.round, eighths)
    lease_id = LeaseId(f"r{current.round}.{current.next_lease}")
    ttl_s = pacing.time_to_live_s(config, state.workers[worker], pace, steps)
    recipe, lora_seed = lease_recipe(config, current.round, steps), lora_seed_of(config, turn.draws, current.round)
    lease = GrantedLease(
        lease_id=lease_id,
        round=current.round,
        worker=worker,
        base_version=current.base_version,
        columns=columns,
        data=measuring.take_data(turn, steps * inner.batch_sequences),
        seed=turn.draws.seed(current.round, "lease", lease_id),
        inner_steps=steps,
        batch_sequences=inner.batch_sequences,
        recipe=recipe,
        frozen=state.frozen,
        codec=config.codec,
        residuals=residuals.named(state.workers[worker], columns, recipe, lora_seed),
        lora_seed=lora_seed,
        granted_at_s=state.now_s,
        deadline_s=state.now_s + ttl_s,
        spare=spare,
    )
    state.put_lease(LeaseRecord(lease=lease))
    residuals.on_grant(turn, lease)
    first = state.now_s if current.first_lease_at_s is None else current.first_lease_at_s
    state.update_round(next_lease=current.next_lease + 1, first_lease_at_s=first, spare_wait_until_s=None)
    granted = state.workers[worker].leases_granted + 1
    state.update_worker(
        worker,
        waiting_since_s=None,
        waits_until_s=None,
        held_round=current.round,
        held_columns=columns,
        leases_granted=granted,
    )
    totals = state.totals
    state.totals = replace(totals, leases_granted=totals.leases_granted + 1, spares=totals.spares + spare)
    turn.emit(GrantLease(lease=lease))
    return lease


def grant_again(turn: Turn, record: LeaseRecord) -> None:
    """The worker lost our answer or was restarted: the same lease, with time to do it, twice at most."""
    state, lease = turn.state, record.lease
    ttl_s = pacing.time_to_live_s(state.config, state.workers[lease.worker], pacing.pace_of(state), lease.inner_steps)
    if record.regrants < pacing.MOST_REGRANTS:
        lease = replace(lease, deadline_s=max(lease.deadline_s, state.now_s + ttl_s))
    state.update_lease(lease.lease_id, lease=lease, regrants=record.regrants + 1)
    state.update_worker(lease.worker, waiting_since_s=None, waits_until_s=None)
    turn.emit(GrantLease(lease=lease))


def why_not_again(turn: Turn, record: LeaseRecord) -> Reason | None:
    """Why a worker that starts over is better off with a new lease; None where the same one still makes sense."""
    state, lease = turn.state, record.lease
    own_round = lease.round == state.round.round and state.phase in OPEN_PHASES
    if not own_round and lease.audits is None:
        return reason(Case.ASKED_AFTER_ROUND, round=lease.round)
    if state.now_s >= lease.deadline_s:
        return reason(Case.ASKED_AFTER_DEADLINE)
    needed_s = pacing.expected_end_s(state.workers[lease.worker], pacing.pace_of(state), lease.inner_steps)
    until_s = state.round.grace_until_s if lease.audits is None else None
    if needed_s is not None and until_s is not None and state.now_s + needed_s > until_s:
        return reason(Case.STARTS_OVER, needed_s=needed_s, left_s=max(0.0, until_s - state.now_s))
    return None


def expire(turn: Turn, lease_id: LeaseId, why: Reason) -> None:
    """The lease came to nothing; costs its worker nothing but the lease."""
    note_upload(turn, turn.state.leases[lease_id])
    record = turn.state.set_status(lease_id, LeaseStatus.EXPIRED)
    turn.state.update_lease(lease_id, ended=why)
    residuals.on_lost(turn, record)
    state, worker = turn.state, record.lease.worker
    if record.lease.audits is not None:
        turn.emit(CancelLease(worker=worker, lease_id=lease_id, why=why))
        return
    loser = state.workers[worker]
    state.update_worker(worker, leases_expired=loser.leases_expired + 1, lost_in_row=loser.lost_in_row + 1)
    state.totals = replace(state.totals, leases_expired=state.totals.leases_expired + 1)
    if record.lease.round == state.round.round:
        state.update_round(expired=state.round.expired + 1)
        _cool(turn, worker)
    turn.emit(CancelLease(worker=worker, lease_id=lease_id, why=why))


def hand_back(turn: Turn, record: LeaseRecord, words: str) -> None:
    """The worker gives the lease back, in its own words."""
    lease_id, worker, state = record.lease.lease_id, record.lease.worker, turn.state
    state.set_status(lease_id, LeaseStatus.RETURNED)
    state.update_lease(lease_id, ended=reason(Case.HANDED_BACK, words))
    residuals.on_lost(turn, record)
    state.update_worker(
        worker,
        leases_returned=state.workers[worker].leases_returned + 1,
        waiting_since_s=None,
        waits_until_s=None,
    )
    if record.lease.audits is not None:
        return
    state.totals = replace(state.totals, leases_returned=state.totals.leases_returned + 1)
    if record.lease.round == state.round.round:
        state.update_round(returned=state.round.returned + 1)
        _cool(turn, worker)


def commit(turn: Turn, record: LeaseRecord, event: SubmissionCommitted) -> None:
    """Take a digest, or refuse it at once with the reason. The lease is granted, or expired by silence."""
    state, lease_id = turn.state, record.lease.lease_id
    said: dict[str, object] = {"arithmetic": event.arithmetic} if event.arithmetic else {}
    if not state.paused:  # what it took is not known where time stands
        report = pacing.report_of(record, state.now_s, event.train_s, max(1, event.inner_steps_done))
        said["reports"] = pacing.last_few(state.workers[event.worker].reports, report)
    state.update_worker(event.worker, **said)
    refusal = refusal_of(turn.state, record, event)
    if refusal is not None:
        if record.status is LeaseStatus.GRANTED and refusal.key == LATE:
            expire(turn, lease_id, refusal.why)
        residuals.on_refused_commit(turn, record, event)
        reject(turn, lease_id, refusal)
        return
    state.set_status(lease_id, LeaseStatus.COMMITTED)
    state.update_lease(
        lease_id,
        digest=event.digest,
        payload_bytes=event.payload_bytes,
        codec=event.codec,
        committed_at_s=state.now_s,
        upload_broken=record.upload_broken or state.paused,
        train_loss_first=event.train_loss_first,
        train_loss_last=event.train_loss_last,
        micro_batch=event.micro_batch,
        arithmetic=event.arithmetic,
        residuals_in=event.residuals_in,
        residuals_out=event.residuals_out,
        residuals_back=event.residuals_back,
        ended=None,
    )
    residuals.on_commit(turn, state.leases[lease_id])


def upload(turn: Turn, record: LeaseRecord) -> None:
    """All bytes are here: have them measured, unless the submission comes too many rounds late to count."""
    state, lease = turn.state, record.lease
    note_upload(turn, record)
    state.update_lease(lease.lease_id, uploaded_at_s=state.now_s)
    staleness = state.staleness_of(lease)
    if staleness > state.config.max_staleness:
        reject(turn, lease.lease_id, rejected(LATE, Case.BYTES_ROUNDS_LATE, rounds=staleness))
        return
    state.set_status(lease.lease_id, LeaseStatus.UPLOADED)
    measuring.measure(turn, state.leases[lease.lease_id])


def break_uploads(turn: Turn, worker: WorkerId) -> None:
    """Something came between a worker and its uploads: what they take from here on is not its uplink's doing."""
    for record in list(turn.state.leases_of(worker)):
        if record.status is LeaseStatus.COMMITTED and not record.upload_broken:
            turn.state.update_lease(record.lease.lease_id, upload_broken=True)


def accept(turn: Turn, lease_id: LeaseId, verdict: Verdict) -> None:
    """The submission passed screening and waits for its round to close."""
    state = turn.state
    record = state.set_status(lease_id, LeaseStatus.ACCEPTED)
    state.update_lease(lease_id, verdict=verdict)
    worker = state.workers[record.lease.worker]
    changes = trust.after_verdict(state.config, worker, verdict)
    state.update_worker(worker.worker, accepted=worker.accepted + 1, lost_in_row=0, **changes)
    state.totals = replace(state.totals, submissions_accepted=state.totals.submissions_accepted + 1)
    if record.lease.round == state.round.round:
        state.update_round(accepted=state.round.accepted + 1)
    credit.give(turn, lease_id)
    turn.emit(AnnounceVerdict(worker=worker.worker, lease_id=lease_id, verdict=verdict))


def withdraw(turn: Turn, lease_id: LeaseId, verdict: Verdict) -> None:
    """An acceptance does not stand: the books are as if it had never been, and the submission is refused."""
    state = turn.state
    lease = state.leases[lease_id].lease
    worker = state.workers[lease.worker]
    state.update_worker(worker.worker, accepted=worker.accepted - 1, **trust.after_withdrawal(worker))
    state.totals = replace(state.totals, submissions_accepted=state.totals.submissions_accepted - 1)
    if lease.round == state.round.round:
        state.update_round(accepted=state.round.accepted - 1)
    credit.take_back(turn, lease_id, verdict.why)
    reject(turn, lease_id, verdict)


def reject(turn: Turn, lease_id: LeaseId, verdict: Verdict) -> None:
    """The submission does not count; where too many of its worker's do not, the worker is set aside."""
    state = turn.state
    record = state.set_status(lease_id, LeaseStatus.REJECTED)
    state.update_lease(lease_id, verdict=verdict)
    turn.settle(measuring.again_id(lease_id))
    residuals.on_lost(turn, record)
    worker = state.workers[record.lease.worker]
    counts = {**worker.rejected, verdict.key: worker.rejected.get(verdict.key, 0) + 1}
    state.update_worker(worker.worker, rejected=counts)
    by_reason = state.totals.submissions_rejected
    state.totals = replace(
        state.totals, submissions_rejected={**by_reason, verdict.key: by_reason.get(verdict.key, 0) + 1}
    )
    if record.lease.round == state.round.round and record.lease.audits is None:
        state.update_round(rejected=state.round.rejected + 1)
    if verdict.key in BLAMED_KEYS:
        blame(turn, worker.worker, verdict.key)
    appeals.note_due(turn, lease_id)
    turn.emit(AnnounceVerdict(worker=worker.worker, lease_id=lease_id, verdict=verdict))
    drop_payload(turn, state.leases[lease_id])


def blame(turn: Turn, worker: WorkerId, key: str, fault: float = 1.0) -> None:
    """Something that a worker is to blame for, `fault` of a refused submission: it is set aside when they pile up."""
    state = turn.state
    before = state.workers[worker]
    weight = trust.trust_of(state.config, before).weight
    after = state.update_worker(worker, **trust.after_fault(state.config, before, fault))
    number, now_s = state.round.round, state.now_s
    aside = trust.quarantine_after(state.config, after, key, round_=number, now_s=now_s, weight=weight)
    if aside is not None:
        probation = state.config.reputation.probation
        state.update_worker(worker, quarantine=aside, quarantines=after.quarantines + 1, probation_left=probation)


def drop_payload(turn: Turn, record: LeaseRecord) -> None:
    """The bytes are needed no more, unless an audit is to come, another live lease rests on them, or a rollback may."""
    digest = record.digest
    if digest is None or record.audit_due or turn.state.digest_in_use(digest, besides=record.lease.lease_id):
        return
    if digest not in votes.payloads_behind(turn.state):
        turn.emit(DropPayload(digest=digest))


def drop_behind(turn: Turn, steps: tuple[PastStep, ...]) -> None:
    """What a rollback could take back is `steps` from now on: submissions of no other step are needed any more."""
    state = turn.state
    before = votes.payloads_behind(state)
    state.past_steps = steps
    audited = {state.leases[lease_id].digest for lease_id in state.index.open_audits}
    for digest in sorted(before - votes.payloads_behind(state)):
        if digest not in audited and not state.index.resting_on(digest):
            turn.emit(DropPayload(digest=digest))


def note_upload(turn: Turn, record: LeaseRecord) -> None:
    """Remember how long a commit's bytes took, or have not arrived for, where nothing came between.

    A worker sends one submission at a time: what it committed to before the last one was here waited for that.
    """
    state, since_s = turn.state, record.committed_at_s
    if record.status is not LeaseStatus.COMMITTED or record.upload_broken or since_s is None:
        return
    worker = state.workers[record.lease.worker]
    ends = (other.uploaded_at_s or 0.0 for other in state.leases_of(worker.worker) if other is not record)
    report = UploadReport(payload_bytes=max(1, record.payload_bytes), upload_s=state.now_s - max([since_s, *ends]))
    state.update_worker(worker.worker, uploads=pacing.last_few(worker.uploads, report))


def _cool(turn: Turn, worker: WorkerId) -> None:
    """A worker that lost more than one lease this round waits a little before the next."""
    state = turn.state
    lost = sum(
        1
        for record in state.leases_of(worker)
        if record.lease.round == state.round.round and record.lease.audits is None and record.status in LOST_STATUSES
    )
    if lost > 1:
        state.update_worker(worker, cooling_until_s=state.now_s + state.config.min_lease_s)
