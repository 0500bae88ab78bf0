"""Which leases are computed again, and what a submission weighs until that is done.

Decides, once a submission's last byte is here and screening has accepted it (or refused it, where its worker asked for
an audit: appeals.py), by a secret draw whether its lease is to be audited, by another whether the round's budget pays
for it (audit_budget.py), who may be the auditor, and which audits the round waits for. What follows from an auditor's
answer is in `opinions.py`, who is given a lease to audit in `shadows.py`. Holds always: nobody can tell before the last
byte which lease will be drawn; no auditor is the worker's own person, or is asked twice about one lease; what an audit
was called for and did not get weighs nothing in an open run, and less in a closed one. Leases are pure functions, so
nothing is asked of the audited worker but what its encodings kept (openings.py). See docs/decisions/0024.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.engine import audit_budget, screening
from coordinator.engine.arithmetic import could_decide, is_stranger
from coordinator.engine.commands import OpenResiduals
from coordinator.engine.config import AuditConfig
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LOST_STATUSES, LeaseStatus
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import has_been_undecided, trust_of
from coordinator.engine.trust import may_audit as is_fit_to_audit
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId

COORDINATOR = ""
"""The coordinator itself, as an auditor: a person with no name (`AuditResult.auditor`)."""
NOISY_FACTOR = 2.0
"""So many times as often a lease is audited while gains are noise: what screening sees less of, replays must."""
_IN_HAND = frozenset({LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED})
_EVERY_U64 = 2**64


def draw(turn: Turn, lease_id: LeaseId) -> None:
    """The submission was judged: whether its lease is audited, and whether the budget reaches for it.

    What a worker asked for itself is paid for as long as there is anything left: it may ask once a day.
    """
    state = turn.state
    lease = state.leases[lease_id].lease
    worker = state.workers[lease.worker]
    probability = trust_of(state.config, worker).audit_probability
    share = NOISY_FACTOR if _gains_are_noise(state, state.leases[lease_id]) else 1.0
    if state.config.audits.budget <= 0.0 or probability <= 0.0:
        return
    if is_stranger(state.config, worker, state.leases[lease_id]) and not has_been_undecided(state.config, worker):
        probability = 1.0
    certain, stream = probability >= 1.0, turn.draws.stream(lease.round, "audit", lease_id)
    if stream.u64() >= share * probability * _EVERY_U64 and not certain:
        return
    unpaid = audit_budget.credit(state) <= 0.0
    if not unpaid and worker.appeal is None:
        unpaid = stream.u64() >= audit_budget.share_paid(state, worker) * _EVERY_U64
    _call_for(turn, lease, certain=certain, unpaid=unpaid)


def _gains_are_noise(state: EngineState, record: LeaseRecord) -> bool:
    """Whether the round's gains so far tell nothing. All have errors like the submission's own."""
    middle = state.index.tally.gains_median(screening.MIN_GAINS)
    return middle is not None and screening.is_noise(screening.Measured(gain=middle, se=record.heldout_gain_se))


def call(turn: Turn, lease_id: LeaseId) -> None:
    """A version is worse with this submission than without it: it is audited whatever a draw said of it.

    To be said before it is refused, which drops the bytes of what nobody audits. An answer that is there is enough.
    """
    state = turn.state
    record = state.leases[lease_id]
    if state.config.audits.budget > 0.0 and not record.audit_due and not record.audits:
        _call_for(turn, record.lease, certain=True, unpaid=audit_budget.credit(state) <= 0.0)


def _call_for(turn: Turn, lease: GrantedLease, *, certain: bool, unpaid: bool) -> None:
    state = turn.state
    if not unpaid:
        audit_budget.charge(state, lease)
    drawn, without = state.round.audits_drawn + 1, state.round.audits_unpaid + unpaid
    state.update_round(audits_drawn=drawn, audits_unpaid=without)
    changes = {"audit_certain": certain, "audit_unpaid": unpaid, "audit_since_s": state.now_s}
    record = state.update_lease(lease.lease_id, audit_due=True, **changes)
    if record.residuals_missing and not unpaid:
        turn.emit(OpenResiduals(worker=lease.worker, lease_id=lease.lease_id))


def share_of(state: EngineState, record: LeaseRecord) -> float:
    """The share of its weight that a submission has, by what audits say of it so far."""
    if is_contradicted(record):
        return 0.0
    worker = state.workers[record.lease.worker]
    waits = record.audit_unpaid or (record.audit_due and record.audit_certain)
    if record.vouchers or not (waits or is_stranger(state.config, worker, record)):
        return 1.0
    return 0.0 if state.config.open_run else state.config.audits.unpaid_weight


def is_contradicted(record: LeaseRecord) -> bool:
    """Whether an auditor came to something else, and no two others to what was sent."""
    return len(record.accusers) > 0 and len(record.vouchers) < 2


def open_audits(state: EngineState) -> list[LeaseRecord]:
    """Leases that were drawn and have not been settled: those that somebody is accused for first, those that nobody
    paid for last; else in the order in which an audit was called for."""
    found = (state.leases[lease_id] for lease_id in state.index.open_audits)
    return sorted(found, key=lambda one: (not one.audits, one.audit_unpaid, one.audit_since_s, one.lease.order))


def replay_id(lease_id: LeaseId) -> str:
    """Id of the command by which the coordinator computes a lease again."""
    return f"replay:{lease_id}"


def compare_id(shadow: LeaseId) -> str:
    """Id of the command by which a trusted worker's answer is held against what was sent."""
    return f"compare:{shadow}"


def asked(state: EngineState, record: LeaseRecord) -> set[str]:
    """People who are no auditors of this lease (any more): its own, who has answered, and who was asked in vain."""
    people = {state.person_of(record.lease), *(result.auditor for result in record.audits)}
    if record.audit_unable or not state.config.audits.by_coordinator:
        people.add(COORDINATOR)
    shadows = (state.leases[shadow] for shadow in state.index.shadows_of(record.lease.lease_id))
    return people | {state.person_of(shadow.lease) for shadow in shadows if shadow.status not in _IN_HAND}


def may_audit(config: AuditConfig, worker: WorkerRecord, record: LeaseRecord, asked_already: set[str]) -> bool:
    """Whether this worker, some day, could be given a lease to see what comes of it in its hands.

    Once somebody could not say anything, only whoever could.
    """
    able = worker.max_columns <= 0 or worker.max_columns >= len(record.lease.columns)
    if record.is_undecided and not could_decide(config, record, worker):
        return False
    return able and is_fit_to_audit(worker) and worker.person not in asked_already


def has_let_down(state: EngineState, worker: WorkerRecord) -> bool:
    """Whether it lost a shadow lease this round: it gets no other in it, and nobody waits for it to take one."""
    current = state.round.round
    own = (record for record in state.leases_of(worker.worker) if record.lease.round == current)
    return any(record.lease.audits is not None and record.status in LOST_STATUSES for record in own)


def auditors(state: EngineState, record: LeaseRecord) -> list[WorkerRecord]:
    """Trusted workers, here or not, who could be given it."""
    people, trusted = asked(state, record), map(state.workers.__getitem__, state.index.trusted)
    return [worker for worker in trusted if may_audit(state.config.audits, worker, record, people)]


def is_in_hand(state: EngineState, record: LeaseRecord) -> bool:
    """Whether somebody is computing it again."""
    lease_id = record.lease.lease_id
    if replay_id(lease_id) in state.pending:
        return True
    return any(state.leases[shadow].status in _IN_HAND for shadow in state.index.shadows_of(lease_id))


def awaited(state: EngineState) -> Iterator[LeaseRecord]:
    """Audits that the round does not close without, before its deadline: those that decide what it may count."""
    for record in open_audits(state):
        decides = record.status is LeaseStatus.ACCEPTED and record.counted_in is None and record.audit_certain
        if decides and (is_in_hand(state, record) or _is_taken_soon(state, record)):
            yield record


def timers_s(state: EngineState) -> Iterator[float]:
    """When an audit that nobody has taken goes before ordinary leases, and is waited for no more."""
    for record in open_audits(state):
        yield record.audit_since_s + state.config.audits.wait_s


def is_overdue(state: EngineState, record: LeaseRecord) -> bool:
    """Whether a trusted worker is to take it before a lease of its own. What was not paid for takes idle time alone."""
    if record.accusers:
        return True  # at once: a founder that is never idle would leave it in doubt until it is kept no longer
    return not record.audit_unpaid and state.now_s >= record.audit_since_s + state.config.audits.wait_s


def _is_taken_soon(state: EngineState, record: LeaseRecord) -> bool:
    if record.audit_unpaid or state.now_s >= record.audit_since_s + state.config.audits.wait_s:
        return False
    if record.residuals_missing:
        return state.workers[record.lease.worker].present
    return any(worker.present and not has_let_down(state, worker) for worker in auditors(state, record))
