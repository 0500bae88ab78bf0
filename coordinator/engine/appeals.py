"""What a volunteer may do about a refusal that it holds to be wrong: ask, once a day, that its work be computed again.

Decides who may ask, and what comes of it. The bytes of what was refused are gone by then, so the next submission of
that worker which has come whole is audited, whatever screening says of what is in it; where the replay agrees, the
refusals on its record are forgotten and it is set aside no more. Where it does not, that is an accusation like any
other. Holds always: asking costs nothing but the audit, and a refusal over time, steps or form is no matter for one:
its figures are in the sentence.
"""

from __future__ import annotations

from coordinator.engine import audits
from coordinator.engine.events import AuditAsked
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import BLAMED_KEYS, Verdict
from coordinator.engine.rows import AuditResult, LeaseRecord
from coordinator.engine.stages import Stage, stage_of
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, WorkerId

EVERY_S = 24 * 3600.0
"""Of run time, between two questions of one worker: each costs a whole lease's work."""
TAKEN = (
    "noted: your next submission is computed again, in full, whatever is found against it, or the first for which the "
    "run's budget for that suffices; where the result agrees with yours, the refusals on your record are forgotten"
)
NOBODY_COMPUTES = "noted for the operator, who decides: this run has no budget for computing work again"


def why_not(state: EngineState, worker: WorkerId, lease_id: LeaseId, now_s: float) -> str | None:
    """Why the worker may not ask this; None where it may."""
    record, member = state.leases.get(lease_id), state.workers[worker]
    if record is None or record.lease.worker != worker:
        return f"lease {lease_id[:64]!r} is not one of yours, or too long ago"
    verdict = record.verdict
    if record.status is not LeaseStatus.REJECTED or verdict is None:
        return f"lease {lease_id} was not refused"
    if stage_of(verdict) is Stage.AUDIT:
        return f"lease {lease_id} has been computed again: that is why it was refused"
    if not _is_over_content(verdict):
        return f"lease {lease_id} was refused for its form or its time: computing it again would not change that"
    if member.appealed_at_s is not None and now_s < member.appealed_at_s + EVERY_S:
        left_h = (member.appealed_at_s + EVERY_S - now_s) / 3600.0
        return f"you may ask once a day, and have; ask again in {max(1.0, left_h):.0f} h"
    return None


def latest_refused(state: EngineState, worker: WorkerId) -> LeaseId | None:
    """The worker's latest lease that was refused."""
    refused = [record for record in state.leases_of(worker) if record.status is LeaseStatus.REJECTED]
    return refused[-1].lease.lease_id if refused else None


def on_audit_asked(turn: Turn, event: AuditAsked) -> None:
    """Its next submission is to be computed again."""
    state = turn.state
    if event.worker not in state.workers:
        raise IllegalEvent(f"worker {event.worker} is not enrolled")
    hindrance = why_not(state, event.worker, event.lease_id, state.now_s)
    if hindrance is not None:
        raise IllegalEvent(hindrance)
    turn.hear(event.worker)
    state.update_worker(event.worker, appeal=event.lease_id, appealed_at_s=state.now_s)


def note_due(turn: Turn, lease_id: LeaseId) -> None:
    """A submission was refused: it is the one to compute again where its worker asked for that and somebody can.

    One that is accepted is drawn like any other: while its worker's question is open, with certainty (trust.py).
    """
    state = turn.state
    record = state.leases[lease_id]
    appeal = state.workers[record.lease.worker].appeal
    if appeal is None or lease_id == appeal or record.lease.audits is not None:
        return
    is_drawn, is_whole = record.audit_due or bool(record.audits), record.uploaded_at_s is not None
    if is_whole and not is_drawn and record.verdict is not None and _is_over_content(record.verdict):
        audits.draw(turn, lease_id)


def settle(turn: Turn, record: LeaseRecord, result: AuditResult) -> None:
    """An auditor's result is here: the question is answered, and where it agrees no refusal is held against the worker.

    What it must still show on probation, and what another audit found, stays.
    """
    worker = turn.state.workers[record.lease.worker]
    if worker.appeal is None or record.lease.lease_id == worker.appeal:
        return
    turn.state.update_worker(worker.worker, appeal=None)
    if result.passed:
        judged = max(0.0, worker.judged_lately - worker.refused_lately)
        turn.state.update_worker(worker.worker, quarantine=None, refused_lately=0.0, judged_lately=judged)


def _is_over_content(verdict: Verdict) -> bool:
    """Whether it was refused for what is in it, and that can be computed again."""
    return verdict.key in BLAMED_KEYS and stage_of(verdict) is not Stage.ENVELOPE
