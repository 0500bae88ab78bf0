"""What a worker's verdicts and audits make of its record, and what follows from that.

Decides when somebody is set aside or banned. Holds always: being late, slow or gone changes nothing here; nobody is
banned by the engine on one auditor's word.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import AuditResult, Ban, LeaseRecord
from coordinator.engine.turn import Turn
from protocol.ids import WorkerId

ENGINE = "engine"
"""Who bans where no person does."""


def after_audit(turn: Turn, record: LeaseRecord, result: AuditResult) -> None:
    """What came of an audit in the end; `record` has every opinion.

    Two `record.accusers` are independent of each other, and enough for a ban. One of them alone, where nobody else
    could be asked, is for the operator: it only counts.
    """
    state, worker = turn.state, turn.state.workers[record.lease.worker]
    if result.passed:
        state.put_worker(replace(worker, audits_passed=worker.audits_passed + 1))
        return
    ban = worker.ban
    if len(record.accusers) >= 2 and ban is None:
        ban = Ban(at_s=state.now_s, by=ENGINE, why=reason(Case.CONTRADICTED_TWICE, record.lease.lease_id))
    state.put_worker(replace(worker, audits_failed=worker.audits_failed + 1, valid_in_row=0, ban=ban))


def false_accusation(turn: Turn, auditor: WorkerId) -> None:
    """It called a lease wrong that two others found right."""
    worker = turn.state.workers[auditor]
    turn.state.put_worker(replace(worker, false_accusations=worker.false_accusations + 1, valid_in_row=0))


def after_unanswered(turn: Turn, worker: WorkerId) -> None:
    """It committed to bytes that never came: once is an accident, again and again it is a way to be asked nothing."""
    turn.state.update_worker(worker, unanswered=turn.state.workers[worker].unanswered + 1)


def after_valid(turn: Turn, worker: WorkerId) -> None:
    """A submission of it was accepted: it makes up for a commit that came to nothing."""
    record = turn.state.workers[worker]
    if record.unanswered:
        turn.state.update_worker(worker, unanswered=record.unanswered - 1)
