"""A round that cannot be aggregated: how the run goes on nonetheless.

Decides what follows when an aggregation has failed `results.MOST_TRIES` times of something else than the disk or the
memory. First each contribution is tried alone, in the command's order (of their leases); those that fail are left out,
at the cost of their workers (their bytes pass screening and break the outer step), unless the bytes were lost here.
The rest, less whom an auditor has contradicted meanwhile, is aggregated cautiously: block by block, by the run's rule,
by the coordinate-wise median where that fails, or not at all. Where even that fails as often, the round publishes
nothing, which is held against nobody. Holds always: at the end of this the round is over, whatever was submitted; each
step is a journalled event, and who is left out stands in the round's record with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.engine import audits, closing, leases
from coordinator.engine import contributions as votes
from coordinator.engine.commands import AggregateRound, Contribution, TryContributions
from coordinator.engine.events import FailedAlone
from coordinator.engine.history import LeftOut
from coordinator.engine.reasons import (
    AUDIT_FAILED,
    UNAGGREGATABLE,
    UNMEASURABLE,
    UNUSABLE,
    Case,
    Verdict,
    reason,
    rejected,
)
from coordinator.engine.turn import Turn


def after_failures(turn: Turn, command: AggregateRound, error: str) -> None:
    """The command is settled: try its contributions one by one, or give the round up where that was done before."""
    if not command.cautious:
        turn.emit(TryContributions(command_id=f"try:r{command.round}", attempt=command))
        return
    verdict = rejected(UNUSABLE, Case.ROUND_GIVEN_UP, error, round=command.round)
    for one in command.contributions:
        leave_out(turn, one, verdict)
    closing.publish_nothing(turn, verdict.why)


def without_those(turn: Turn, attempt: AggregateRound, failed: Sequence[FailedAlone]) -> None:
    """Refuse what fails alone, and aggregate the rest; of nothing the round makes nothing."""
    known = {one.lease_id: one for one in failed}
    for one in attempt.contributions:
        if one.lease_id in known:
            leave_out(turn, one, _verdict(known[one.lease_id], attempt))
    rest = not_contradicted(turn, [one for one in attempt.contributions if one.lease_id not in known])
    if not rest:
        closing.publish_nothing(turn, reason(Case.ALL_LEFT_OUT))
        return
    records = [turn.state.leases[one.lease_id] for one in rest]
    turn.emit(
        replace(
            attempt,
            command_id=f"{attempt.command_id}:cautious",
            contributions=rest,
            clips=votes.clips_of(turn.state, records, rest),
            cautious=True,
        )
    )


def not_contradicted(turn: Turn, contributions: Sequence[Contribution]) -> tuple[Contribution, ...]:
    """Those that may be in another attempt: whom an auditor contradicted during the one before is left out of it."""
    state = turn.state
    kept: list[Contribution] = []
    for one in contributions:
        record = state.leases[one.lease_id]
        if audits.is_contradicted(record):
            found = next(result for result in record.audits if not result.passed)
            figures = {"trunk": found.trunk, "columns": found.columns}
            leave_out(turn, one, rejected(AUDIT_FAILED, Case.NOT_REPRODUCED, **figures))
        else:
            kept.append(one)
    return tuple(kept)


def _verdict(failed: FailedAlone, attempt: AggregateRound) -> Verdict:
    if failed.lost:
        return rejected(UNMEASURABLE, Case.BYTES_LOST, failed.error, round=attempt.round)
    return rejected(UNAGGREGATABLE, Case.BREAKS_AGGREGATION, failed.error, round=attempt.round)


def leave_out(turn: Turn, one: Contribution, verdict: Verdict) -> None:
    """Its acceptance does not stand, and the round's record says why."""
    state, worker = turn.state, turn.state.leases[one.lease_id].lease.worker
    left_out = LeftOut(lease_id=one.lease_id, worker=worker, why=verdict.why)
    state.update_round(left_out=(*state.round.left_out, left_out))
    leases.withdraw(turn, one.lease_id, verdict)
