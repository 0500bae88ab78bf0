"""How a round ends: what counts in it, what is published, and what follows, the next round or the run's end.

Decides nothing about when (rounds.py). Holds always: a version is published only for a round that something acceptable
came of, and only on top of the version it was computed from; whoever was told that a submission is safe is told, too,
where it counts in no version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from coordinator.engine import (
    audit_budget,
    audit_endings,
    changes,
    credit,
    leases,
    past,
    placement,
    residuals,
    rollback,
    second_look,
    trust,
    trust_region,
    validating,
    vouching,
)
from coordinator.engine import contributions as votes
from coordinator.engine.commands import (
    AggregateRound,
    Contribution,
    MeasureSubmission,
    WriteCheckpoint,
)
from coordinator.engine.draws import Draws
from coordinator.engine.events import RoundAggregated
from coordinator.engine.history import RoundRecord, remembered
from coordinator.engine.past import PastStep
from coordinator.engine.phases import OPEN_PHASES, LeaseStatus, Phase
from coordinator.engine.reasons import LATE, UNANSWERED, Case, Reason, reason, rejected
from coordinator.engine.refreshing import down_in
from coordinator.engine.rows import LeaseRecord, RoundState
from coordinator.engine.screening import MIN_GAINS
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.ids import RoundNumber, Version, WorkerId


def close(turn: Turn, why: Reason) -> None:
    """Nothing more is waited for: look once more at what was accepted, count it, and have a version made of it.

    What the second look would refuse on a worker's word is measured here first, and the round stays open so long.
    """
    state = turn.state
    if second_look.is_put_off(turn):
        return
    second_look.look_again(turn)
    state.usual_gain = state.index.tally.usual_gain(MIN_GAINS) or state.usual_gain
    _pass_over_weightless(turn)
    records, superseded = votes.one_vote_each(state, votes.countable(state))
    for record in superseded:
        _count_nowhere(turn, record, Case.SUPERSEDED)
    state.update_round(closed=why)
    if not records:
        publish_nothing(turn, reason(Case.NOTHING_ACCEPTABLE))
        return
    # Only now, when they count: free riders are the first to submit, and must not become what others are measured by.
    state.norm_history = second_look.remembered(state, records)
    records, contributions = _heard(turn, records)
    if not contributions:
        publish_nothing(turn, reason(Case.NOBODY_HEARD))
        return
    state.move_to(Phase.AGGREGATING)
    turn.emit(
        AggregateRound(
            command_id=f"aggregate:r{state.round.round}",
            round=state.round.round,
            parent_version=state.version,
            parent_manifest=state.manifest,
            version=Version(state.version + 1),
            contributions=contributions,
            clips=votes.clips_of(state, records, contributions),
            rule=state.config.rule,
            outer_learning_rate=state.config.outer_learning_rate,
            outer_momentum=state.config.outer_momentum,
            seed=turn.draws.seed(state.round.round, "bucketing"),
            oldest_needed=votes.oldest_version_needed(state),
            compared_with=trust_region.compared_with(state),
            region_seed=trust_region.seed_of(state.config, turn.draws, state.round.round),
            early=trust_region.early_stop(state.config.region),
            down=down_in(state.config, state.round.round),
        )
    )


def _heard(turn: Turn, records: Sequence[LeaseRecord]) -> tuple[list[LeaseRecord], tuple[Contribution, ...]]:
    """What enters the outer step; whatever has a say on no block ends here."""
    state = turn.state
    everyone = votes.contributions_of(state, records)
    thin = vouching.thin_blocks(state, records, everyone)
    state.update_round(thin=len(thin))
    pairs = list(zip(records, vouching.heard(state, records, everyone, thin), strict=True))
    for record, one in pairs:
        if one.unheard and not vouching.blocks_of(one):
            _count_nowhere(turn, record, Case.NOBODY_HEARD)
    entering = [(record, one) for record, one in pairs if not one.unheard or vouching.blocks_of(one)]
    for record, one in entering:
        residuals.on_lost(turn, record, set(record.lease.blocks).difference(vouching.blocks_of(one)))
    return [record for record, _ in entering], tuple(one for _, one in entering)


def publish(turn: Turn, event: RoundAggregated, command: AggregateRound) -> None:
    """The new version is the run's: compare-and-set on the parent has held."""
    state = turn.state
    trust_region.note_published(state, command, event)
    state.version, state.manifest, state.substitutes = event.version, event.manifest, event.substitutes
    state.frozen = event.frozen
    turn.settle(event.command_id)
    used = [state.leases[c.lease_id] for c in command.contributions]
    late = sum(1 for record in used if record.lease.round < state.round.round)
    for record in used:
        state.update_lease(record.lease.lease_id, counted_in=state.round.round)
    sequences = sum(record.lease.sequences for record in used)
    state.totals = replace(state.totals, sequences=state.totals.sequences + sequences)
    _record_round(
        turn,
        version=event.version,
        late_used=late,
        update_norm_l2=event.update_norm_l2,
        sequences=sequences,
    )
    step = PastStep(attempt=command, update_norm_l2=event.update_norm_l2)
    leases.drop_behind(turn, past.kept((*state.past_steps, step), state.config.rollback_rounds))
    for record in used:
        # its status stays `accepted`: asked only whether another, uncounted lease rests on the bytes
        leases.drop_payload(turn, record)
    look_at_version(turn)
    next_round_or_finish(turn)


def look_at_version(turn: Turn) -> None:
    """Validate and export the present version, where it is one for that."""
    state = turn.state
    every_validation, every_checkpoint = state.config.validate_every, state.config.checkpoint_every
    if every_validation and state.version % every_validation == 0:
        validating.validate(turn)
    if every_checkpoint and state.version % every_checkpoint == 0:
        _write_checkpoint(turn)


def publish_nothing(turn: Turn, why: Reason) -> None:
    """The round is over, the version stays as it was, the next round opens."""
    _record_round(turn, version=None, unpublished=why)
    next_round_or_finish(turn)


def next_round_or_finish(turn: Turn) -> None:
    """Open the next round, with the settings of that moment, unless the run is to end; a rollback goes before."""
    state = turn.state
    if rollback.begin(turn):
        return
    changes.adopt(state)
    if state.stop_reason is not None or state.round.round >= state.config.max_rounds:
        finish(turn)
        return
    state.open_round(
        new_round(state, turn.draws, RoundNumber(state.round.round + 1), carried=audit_budget.carried_over(state))
    )
    if state.phase is not Phase.GATHERING:
        state.move_to(Phase.GATHERING)
    _end_stale_leases(turn)
    audit_endings.end_old(turn)
    _forget_old_leases(turn)
    lift_quarantines(turn, list(state.index.quarantines))


def new_round(state: EngineState, draws: Draws, number: RoundNumber, *, carried: float) -> RoundState:
    """A round that is open, with its replicas to be redrawn."""
    sticky = placement.sticky_columns(state.workers.values(), number)
    return RoundState(
        round=number,
        base_version=state.version,
        opened_at_s=state.now_s,
        sticky=sticky,
        redrawn=placement.redrawn_holders(state.config, draws, number, sticky),
        audit_carried=carried,
    )


def stop(turn: Turn, reason: str) -> None:
    """The operator ends the run: what is being aggregated is published, everything else is dropped."""
    turn.state.stop_reason = reason
    if turn.state.phase in OPEN_PHASES:
        finish(turn)


def finish(turn: Turn) -> None:
    """No more rounds: cancel what is out, validate and export the last version."""
    state = turn.state
    state.move_to(Phase.FINISHING)
    stopped = state.stop_reason or ""
    audit_endings.end_all(turn)
    for lease_id, record in list(state.leases.items()):
        if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
            leases.expire(turn, lease_id, reason(Case.ENDED, stopped))
        elif record.status is LeaseStatus.UPLOADED:
            leases.reject(turn, lease_id, rejected(LATE, Case.NOT_JUDGED, stopped))
        elif record.status is LeaseStatus.ACCEPTED and record.counted_in is None:
            # whoever was told that it is safe is told, too, that no outer step will take it
            leases.withdraw(turn, lease_id, rejected(LATE, Case.NO_ROUND_LEFT, stopped))
    for command in list(state.pending.values()):
        if isinstance(command, MeasureSubmission):
            turn.settle(command.command_id)
    validating.measure_all_here(turn)
    validating.validate(turn)
    _write_checkpoint(turn)


def lift_quarantines(turn: Turn, workers: Iterable[WorkerId]) -> None:
    """Of these, whoever was set aside for long enough may be leased again."""
    state = turn.state
    for worker in workers:
        kept = state.workers[worker].quarantine
        if kept is not None and trust.is_served(kept, round_=state.round.round, now_s=state.now_s):
            state.update_worker(worker, quarantine=None)


def _pass_over_weightless(turn: Turn) -> None:
    """What has no weight is no vote, and takes nobody's place."""
    state = turn.state
    for record in votes.countable(state):
        if votes.share_of(state, record) == 0.0:
            trusted = trust.trust_of(state.config, state.workers[record.lease.worker]).weight > 0.0
            _count_nowhere(turn, record, Case.WEIGHTLESS if trusted else Case.WITHOUT_WEIGHT)


def _count_nowhere(turn: Turn, record: LeaseRecord, why: Case) -> None:
    current = turn.state.round.round
    ended = turn.state.update_lease(record.lease.lease_id, counted_in=current, ended=reason(why))
    residuals.on_lost(turn, ended)
    leases.drop_payload(turn, ended)


def _record_round(
    turn: Turn,
    *,
    version: Version | None,
    late_used: int = 0,
    update_norm_l2: float | None = None,
    unpublished: Reason | None = None,
    sequences: int = 0,
) -> None:
    state, current = turn.state, turn.state.round
    assert current.closed is not None
    row = RoundRecord(
        round=current.round,
        base_version=current.base_version,
        version=version,
        opened_at_s=current.opened_at_s,
        closed_at_s=state.now_s,
        accepted=current.accepted,
        rejected=current.rejected,
        expired=current.expired,
        returned=current.returned,
        late_used=late_used,
        update_norm_l2=update_norm_l2,
        val_loss=None,
        val_loss_se=None,
        closed=current.closed,
        unpublished=unpublished,
        left_out=current.left_out,
        withheld=current.withheld,
        thin=current.thin,
        sequences=sequences,
    )
    state.history = remembered(state.history, row)


def _write_checkpoint(turn: Turn) -> None:
    state, command_id = turn.state, f"checkpoint:v{turn.state.version}"
    known = any(checkpoint.version == state.version for checkpoint in state.checkpoints)
    if not known and command_id not in state.pending:
        turn.emit(WriteCheckpoint(command_id=command_id, version=state.version, manifest=state.manifest))


def _end_stale_leases(turn: Turn) -> None:
    state, most = turn.state, turn.state.config.max_staleness
    for lease_id, record in list(state.leases.items()):
        if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED} and state.staleness_of(record.lease) > most:
            leases.expire(turn, lease_id, reason(Case.ROUND_WENT_ON, round=record.lease.round, most=most))


def _forget_old_leases(turn: Turn) -> None:
    """Resolved leases are kept a little longer than they can matter, to answer a worker that asks again."""
    state = turn.state
    oldest = state.round.round - state.config.max_staleness - 2
    open_statuses = {LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED}
    audits_open = state.index.open_audits
    undoable = credit.may_be_taken_back(state)
    old = [
        record
        for lease_id, record in state.leases.items()
        if record.lease.round < oldest
        and record.status not in open_statuses
        and lease_id not in audits_open
        and record.lease.audits not in audits_open
        and (record.lease.worker, record.lease.round) not in undoable
    ]
    for record in old:
        worker = state.workers[record.lease.worker]
        if votes.was_kept_back(record) and worker.present:
            leases.blame(turn, worker.worker, UNANSWERED, trust.UNANSWERED)
    forgotten = {record.lease.lease_id for record in old}
    state.keep_leases({lease_id: one for lease_id, one in state.leases.items() if lease_id not in forgotten})
