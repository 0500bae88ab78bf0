"""What follows from an auditor's answer: who is right, who is asked next, and when it is over.

Decides by people, never by machines: one who comes to what was sent is enough where nobody disagrees; one who does not
makes the submission worthless at once and has another person asked; two of one mind decide. Holds always: nothing final
befalls anybody, worker or auditor, on one person's word; each lease is settled once, after three opinions at most; an
audit for which nobody is left, or whose time is over, ends, and what is in doubt then is the operator's to decide.
"""

from __future__ import annotations

from coordinator.engine import audit_budget, audits, credit, leases, reputation, shadows
from coordinator.engine import audit_endings as endings
from coordinator.engine.arithmetic import is_decisive
from coordinator.engine.commands import CompareSubmissions, ReplayLease
from coordinator.engine.events import LeaseReplayed
from coordinator.engine.history import AuditOutcome
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import AUDIT_FAILED, MALFORMED, UNMEASURABLE, Case, reason, rejected
from coordinator.engine.rows import AuditResult, LeaseRecord
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId


def on_lease_replayed(turn: Turn, event: LeaseReplayed) -> None:
    """An auditor's answer; it counts once, for a command that is pending."""
    state = turn.state
    command = state.pending.get(event.command_id)
    if not isinstance(command, ReplayLease | CompareSubmissions):
        raise IllegalEvent(f"{event.command_id} is not a pending audit")
    auditor = command.again.worker if isinstance(command, CompareSubmissions) else None
    expected = (command.lease.lease_id, auditor)
    if (event.lease_id, event.auditor) != expected:
        raise IllegalEvent(f"{event.command_id} is about (lease, auditor) {expected}, got {event}")
    turn.settle(event.command_id)
    person = audits.COORDINATOR if auditor is None else state.workers[auditor].person
    if isinstance(command, CompareSubmissions):
        if event.error:
            verdict = rejected(MALFORMED, Case.NOT_AS_LEASED, event.error)
            leases.reject(turn, command.again.lease_id, verdict)
            return
        shadows.take(turn, command.again.lease_id)
    elif event.error:
        _note_unable(turn, event.lease_id)
        return
    _hear(turn, command, event, person)


def on_unable(turn: Turn, command: ReplayLease | CompareSubmissions, error: str, tries: int) -> None:
    """It was tried in vain, and is settled: nobody has said anything, and nobody is to blame."""
    if isinstance(command, ReplayLease):
        _note_unable(turn, command.lease.lease_id)
        return
    verdict = rejected(UNMEASURABLE, Case.NOT_MEASURED, error, tries=tries)
    leases.reject(turn, command.again.lease_id, verdict)


def advance(turn: Turn) -> None:
    """Have the coordinator take what is its to take, and end what nobody is left for."""
    state = turn.state
    if state.phase in {Phase.FINISHING, Phase.OVER}:
        return
    for record in audits.open_audits(state):
        if state.workers[record.lease.worker].ban is not None:
            endings.give_up(turn, record)  # nothing more follows from it
            continue
        if audits.is_in_hand(state, record) or record.residuals_missing:
            continue
        coordinators = audits.COORDINATOR not in audits.asked(state, record)
        if coordinators and not (record.audit_unpaid and not record.audits):
            _replay(turn, record)
        elif not audits.auditors(state, record):
            endings.give_up(turn, record)


def _replay(turn: Turn, record: LeaseRecord) -> None:
    if record.audits:
        audit_budget.charge(turn.state, record.lease)  # the first was paid for when it was drawn
    assert record.digest is not None
    turn.emit(
        ReplayLease(
            command_id=audits.replay_id(record.lease.lease_id),
            lease=record.lease,
            digest=record.digest,
            codec=record.codec,
            micro_batch=record.micro_batch,
            arithmetic=record.arithmetic,
            residuals_in=record.residuals_in,
            residuals_out=record.residuals_out,
        )
    )


def _note_unable(turn: Turn, lease_id: LeaseId) -> None:
    turn.state.update_lease(lease_id, audit_unable=True)


def _hear(turn: Turn, command: ReplayLease | CompareSubmissions, event: LeaseReplayed, person: str) -> None:
    state, most = turn.state, turn.state.config.audits.tolerance
    record = state.leases.get(event.lease_id)
    if record is None or not record.audit_due or person in {result.auditor for result in record.audits}:
        return  # others have settled it meanwhile, or this person has spoken
    passed = event.trunk <= most and event.columns <= most  # nan is neither
    how = event.arithmetic, record.micro_batch
    if isinstance(command, CompareSubmissions):
        shadow = state.leases[command.again.lease_id]
        how = shadow.arithmetic, shadow.micro_batch
    result = AuditResult(
        auditor=person,
        trunk=event.trunk,
        columns=event.columns,
        passed=passed,
        decisive=passed or is_decisive(state.config.audits, record, *how),
        arithmetic=how[0],
    )
    record = state.update_lease(event.lease_id, audits=(*record.audits, result), audit_since_s=state.now_s)
    if result.decisive and not passed:
        _make_worthless(turn, event)
    endings.note(turn, record, AuditOutcome.OPEN)
    reputation.after_audit(turn, turn.state.leases[event.lease_id], result)
    _weigh(turn, event.lease_id)


def _make_worthless(turn: Turn, event: LeaseReplayed) -> None:
    """It is refused, unless it counts already or is being counted: what follows then is not the round's to mend."""
    record = turn.state.leases[event.lease_id]
    if (
        record.status is LeaseStatus.ACCEPTED
        and record.counted_in is None
        and turn.state.phase is not Phase.AGGREGATING
    ):
        figures = {"trunk": event.trunk, "columns": event.columns}
        leases.withdraw(turn, event.lease_id, rejected(AUDIT_FAILED, Case.NOT_REPRODUCED, **figures))


def _weigh(turn: Turn, lease_id: LeaseId) -> None:
    """Who is right, once that can be said."""
    record = turn.state.leases[lease_id]
    if len(record.accusers) >= 2:
        figures = {"auditors": len(record.accusers)}
        credit.take_back(turn, lease_id, reason(Case.AUDITS_FAILED, lease_id, **figures))
        endings.end(turn, record, AuditOutcome.CONFIRMED)
    elif record.vouchers and (not record.accusers or len(record.vouchers) >= 2):
        endings.end(turn, record, AuditOutcome.CLEARED)
        for person in record.accusers:
            reputation.false_accusation(turn, person)  # two others came to what was sent
