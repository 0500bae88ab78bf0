"""What a worker's verdicts and audits make of its record, and what follows from that.

Decides when somebody is set aside or banned. Holds always: being late, slow or gone changes nothing here; nobody is
banned by the engine on one auditor's word.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import appeals
from coordinator.engine.rows import AuditResult, LeaseRecord
from coordinator.engine.turn import Turn


def after_audit(turn: Turn, record: LeaseRecord, result: AuditResult) -> None:
    """Note what an auditor found of a lease; `record` has it already."""
    state, worker = turn.state, turn.state.workers[record.lease.worker]
    counts = (worker.audits_passed + result.passed, worker.audits_failed + (not result.passed))
    state.put_worker(replace(worker, audits_passed=counts[0], audits_failed=counts[1]))
    appeals.settle(turn, record, result)
