"""Which leases are computed again, and what a submission weighs until that is done.

Decides, once a submission's last byte is here and screening has accepted it (or refused it, where its worker asked for
an audit: appeals.py), by a secret draw whether its lease is to be audited, by another whether the round's budget pays
for it, who may be the auditor, and which audits the round waits for. What follows from an auditor's answer is in
`opinions.py`, who is given a lease to audit in `shadows.py`. Holds
always: nobody can tell before the last byte which lease will be drawn; no auditor is the worker's own person, or is
asked twice about one lease; what an audit was called for and did not get weighs nothing in an open run, and less in a
closed one. Leases are pure functions, so nothing is asked of the audited worker. See docs/decisions/0024.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LOST_STATUSES, LeaseStatus
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.schedules import recipe_steps
from coordinator.engine.state import EngineState
from coordinator.engine.trust import may_audit as is_fit_to_audit
from coordinator.engine.trust import trust_of
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId

COORDINATOR = ""
"""The coordinator itself, as an auditor: a person with no name (`AuditResult.auditor`)."""
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
    if state.config.audits.budget <= 0.0 or probability <= 0.0:
        return
    certain, stream = probability >= 1.0, turn.draws.stream(lease.round, "audit", lease_id)
    if stream.u64() >= probability * _EVERY_U64 and not certain:
        return
    unpaid = credit(state) <= 0.0 or (worker.appeal is None and stream.u64() >= _share_paid(state) * _EVERY_U64)
    _call_for(state, lease, certain=certain, unpaid=unpaid)


def call(turn: Turn, lease_id: LeaseId) -> None:
    """A version is worse with this submission than without it: it is audited whatever a draw said of it.

    To be said before it is refused, which drops the bytes of what nobody audits. An answer that is there is enough.
    """
    state = turn.state
    record = state.leases[lease_id]
    if state.config.audits.budget > 0.0 and not record.audit_due and not record.audits:
        _call_for(state, record.lease, certain=True, unpaid=credit(state) <= 0.0)


def _call_for(state: EngineState, lease: GrantedLease, *, certain: bool, unpaid: bool) -> None:
    if not unpaid:
        charge(state, lease)
    drawn, without = state.round.audits_drawn + 1, state.round.audits_unpaid + unpaid
    state.update_round(audits_drawn=drawn, audits_unpaid=without)
    changes = {"audit_certain": certain, "audit_unpaid": unpaid, "audit_since_s": state.now_s}
    state.update_lease(lease.lease_id, audit_due=True, **changes)


def expect(state: EngineState, lease: GrantedLease) -> None:
    """A lease was granted: so much may have to be spent on auditing it."""
    probability = trust_of(state.config, state.workers[lease.worker]).audit_probability
    expected = state.round.audits_expected + probability * cost_of(state, lease)
    state.update_round(audits_expected=expected)


def _share_paid(state: EngineState) -> float:
    """How much of what the round is expected to draw the budget can pay. Whoever comes first must not have all of it:
    then the fast would be audited in every round, and the slow in none."""
    available, expected = state.config.audits.budget + state.round.audit_carried, state.round.audits_expected
    return 1.0 if available >= expected else available / expected


def credit(state: EngineState) -> float:
    """Whole leases' work that audits may still take this round. As long as there is any, the next one is paid for: what
    it overdraws is taken from the rounds to come, so that a budget below one lease buys one every few rounds."""
    return state.config.audits.budget + state.round.audit_carried - state.round.audit_spent


def charge(state: EngineState, lease: GrantedLease) -> None:
    """One more audit is to be paid for."""
    state.update_round(audit_spent=state.round.audit_spent + cost_of(state, lease))


def cost_of(state: EngineState, lease: GrantedLease) -> float:
    """What computing it again takes, in whole leases."""
    return lease.inner_steps / recipe_steps(state.config, lease.round)


def carried_over(state: EngineState) -> float:
    """What the next round begins with, beside its own budget: at most as much again."""
    return min(credit(state), state.config.audits.budget)


def share_of(state: EngineState, record: LeaseRecord) -> float:
    """The share of its weight that a submission has, by what audits say of it so far."""
    if is_contradicted(record):
        return 0.0
    if record.vouchers or not (record.audit_unpaid or (record.audit_due and record.audit_certain)):
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


def may_audit(worker: WorkerRecord, lease: GrantedLease, asked_already: set[str]) -> bool:
    """Whether this worker, some day, could be given a lease to see what comes of it in its hands."""
    able = worker.max_columns <= 0 or worker.max_columns >= len(lease.columns)
    return able and is_fit_to_audit(worker) and worker.person not in asked_already


def has_let_down(state: EngineState, worker: WorkerRecord) -> bool:
    """Whether it lost a shadow lease this round: it gets no other in it, and nobody waits for it to take one."""
    current = state.round.round
    own = (record for record in state.leases_of(worker.worker) if record.lease.round == current)
    return any(record.lease.audits is not None and record.status in LOST_STATUSES for record in own)


def auditors(state: EngineState, record: LeaseRecord) -> list[WorkerRecord]:
    """Trusted workers, here or not, who could be given it."""
    people, trusted = asked(state, record), map(state.workers.__getitem__, state.index.trusted)
    return [worker for worker in trusted if may_audit(worker, record.lease, people)]


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
    return any(worker.present and not has_let_down(state, worker) for worker in auditors(state, record))
