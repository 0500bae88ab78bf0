"""What a worker's audits make of its record, and what follows from that.

Decides when an audit is final, and bans by the engine. Holds always: being late, slow or gone changes nothing here;
nobody is banned by the engine but for one lease that two independent auditors contradicted, and more did than agreed
with it; a worker, or its owner, is no auditor of its own; whoever accuses falsely loses the right to audit, not its
work.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import appeals, bans, leases, rollback, trust
from coordinator.engine.reasons import UNANSWERED, Case, reason
from coordinator.engine.rows import AuditResult, Ban, LeaseRecord
from coordinator.engine.turn import Turn
from protocol.ids import WorkerId

WAYS_KEPT = 8
"""Classes and cuts in which a worker stays vouched for: what is short of memory cuts its batches in several ways."""
INDEPENDENT = 2
"""Auditors, of different owners, that must contradict a lease before its worker is banned for it."""


def after_audit(turn: Turn, record: LeaseRecord, result: AuditResult) -> None:
    """Note what an auditor found of a lease; `record` has it already. What says nothing changes nothing.

    A first contradiction leaves its worker without weight until others have looked: agreeing auditors must outnumber
    the contradicting ones to clear it, two contradicting ones who outnumber them ban it.
    """
    appeals.settle(turn, record, result)
    state, lease = turn.state, record.lease
    worker = state.workers[lease.worker]
    if not result.decisive:
        return
    passed = _auditors(record.audits, worker.person, passed=True)
    failed = _auditors(record.audits, worker.person, passed=False)
    if len(failed) >= INDEPENDENT and len(failed) > len(passed):
        if worker.ban is None:
            state.update_worker(worker.worker, audits_failed=worker.audits_failed + 1, accused=None)
            why = reason(Case.AUDITS_FAILED, lease.lease_id, auditors=len(failed))
            ban = Ban(at_s=state.now_s, by=bans.BY_ENGINE, why=why)
            rollback.after_ban(turn, worker.worker, bans.BY_ENGINE)  # before: it may end a round that is aggregated
            bans.shut_out(turn, state.workers[worker.worker], ban)
    elif failed and len(failed) >= len(passed):
        state.update_worker(worker.worker, accused=lease.lease_id, valid_in_row=0)
    elif result.auditor in passed and len(passed) == len(failed) + 1 and _is_first(record, result):
        # nobody contradicts it, or it is cleared just now: once for each lease
        accused = None if worker.accused == lease.lease_id else worker.accused
        vouched_in = [how for how in worker.vouched_in if how != record.computed_as]
        vouched_in += [record.computed_as] if record.computed_as else []
        state.update_worker(
            worker.worker,
            audits_passed=worker.audits_passed + 1,
            accused=accused,
            undecided_in_row=0,
            vouched_in=tuple(vouched_in[-WAYS_KEPT:]),
        )


def false_accusation(turn: Turn, auditor: str) -> None:
    """`auditor` (a person, `WorkerRecord.person`) contradicted a lease that others found right, the last of them in
    the device class of the first: none of its machines audits any more, and it starts anew as a newcomer."""
    state = turn.state
    for record in [record for record in state.workers.values() if record.person == auditor]:
        state.put_worker(replace(record, trusted=False, valid_in_row=0, false_accusations=record.false_accusations + 1))


def after_unanswered(turn: Turn, worker: WorkerId) -> None:
    """A worker that is here left a challenge unanswered: half as bad as a refused submission."""
    leases.blame(turn, worker, UNANSWERED, trust.UNANSWERED)


def _is_first(record: LeaseRecord, result: AuditResult) -> bool:
    """Whether this auditor has not looked at the lease before."""
    return sum(one.auditor == result.auditor for one in record.audits) == 1


def _auditors(audits: tuple[AuditResult, ...], person: str, *, passed: bool) -> set[str]:
    """Who said so, but for the worker's own; the coordinator is one, by the name of nobody."""
    return {one.auditor for one in audits if one.decisive and one.passed is passed and one.auditor != person}
