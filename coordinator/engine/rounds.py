"""The course of a round: gather, lease, wait, close, publish, open the next; and how the run ends.

Decides every move between phases, after each event, from the state alone. Holds always: a version is published only
for a round that something acceptable came of, and only on top of the version it was computed from; a round that
nobody could serve stays open; when `advance` returns, nothing more can be done before the next event or the next
timer, except to go on with a wave of leases (`RoundState.granting`), for which a timer runs out at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from coordinator.engine import changes, leases, pacing, placement, quorum, screening
from coordinator.engine import contributions as votes
from coordinator.engine.commands import AggregateRound, EndRun, MeasureSubmission, ValidateVersion, WriteCheckpoint
from coordinator.engine.dispatch import are_ready, dispatch, is_waiting
from coordinator.engine.draws import Draws
from coordinator.engine.events import RoundAggregated
from coordinator.engine.history import RoundRecord, remembered
from coordinator.engine.medians import medians_of
from coordinator.engine.phases import OPEN_PHASES, LeaseStatus, Phase
from coordinator.engine.quorum import Outlook
from coordinator.engine.reasons import LATE, Case, Reason, reason, rejected
from coordinator.engine.state import EngineState, LeaseRecord, RoundState
from coordinator.engine.turn import Turn
from protocol.ids import RoundNumber, Version, WorkerId

RUNNING_PHASES = frozenset({Phase.TRAINING, Phase.GRACE})
_MOST_MOVES = 8
"""A round cannot move further than this without an event; more would be a circle, which is a bug of ours."""


def new_round(state: EngineState, draws: Draws, number: RoundNumber) -> RoundState:
    """A round that is open, with its replicas to be redrawn."""
    sticky = placement.sticky_columns(state.workers.values(), number)
    return RoundState(
        round=number,
        base_version=state.version,
        opened_at_s=state.now_s,
        sticky=sticky,
        redrawn=placement.redrawn_holders(state.config, draws, number, sticky),
    )


def advance(turn: Turn) -> None:
    """Do everything that the state, at its present time, calls for."""
    state = turn.state
    _expire_due(turn)
    _lift_quarantines(turn, state.index.quarantines.due(state.now_s))
    for _ in range(_MOST_MOVES):
        before = (turn.state.phase, turn.state.round.round)
        _step(turn)
        if before == (turn.state.phase, turn.state.round.round):
            return
    raise AssertionError(f"round {turn.state.round.round} moves in a circle at {turn.state.phase}")


def timers_s(state: EngineState) -> Iterator[float]:
    """Moments at which time alone changes something; those that have passed have been dealt with.

    A wave of leases that is to go on is due at once, also by a clock that is behind the last event.
    """
    current = state.round
    moments = [state.index.deadlines.first_after(state.now_s)]
    if state.phase is Phase.GATHERING and current.gathered_at_s is not None:
        moments.append(_gathered_until_s(state))
    if state.phase in RUNNING_PHASES:
        limits = (quorum.deadline_s(state), current.grace_until_s, current.spare_wait_until_s)
        moments += limits
    if state.phase in OPEN_PHASES:
        moments.append(state.index.quarantines.first_after(state.now_s))
        cooling = (state.workers[worker] for worker in state.index.cooling)
        moments += [record.cooling_until_s for record in cooling if is_waiting(state, record)]
    timers = [moment for moment in moments if moment is not None and moment > state.now_s]
    return iter([-math.inf, *timers] if current.granting else timers)


def workers_wanted(state: EngineState) -> int:
    """Idle workers without which the round does not begin; a run once begun goes on with whoever is there."""
    return max(1, state.config.min_workers) if state.totals.leases_granted == 0 else 1


def gathering_left_s(state: EngineState) -> float:
    """How long the first round still waits for more workers."""
    return max(0.0, _gathered_until_s(state) - state.now_s)


def stop(turn: Turn, reason: str) -> None:
    """The operator ends the run: what is being aggregated is published, everything else is dropped."""
    turn.state.stop_reason = reason
    if turn.state.phase in OPEN_PHASES:
        finish(turn)


def publish(turn: Turn, event: RoundAggregated, command: AggregateRound) -> None:
    """The new version is the run's: compare-and-set on the parent has held."""
    state = turn.state
    state.version, state.manifest, state.substitutes = event.version, event.manifest, event.substitutes
    turn.settle(event.command_id)
    used = [state.leases[c.lease_id] for c in command.contributions]
    late = sum(1 for record in used if record.lease.round < state.round.round)
    for record in used:
        state.update_lease(record.lease.lease_id, counted_in=state.round.round)
    _record_round(turn, version=event.version, late_used=late, update_norm_l2=event.update_norm_l2)
    for record in used:
        # its status stays `accepted`: asked only whether another, uncounted lease rests on the bytes
        leases.drop_payload(turn, record)
    every_validation, every_checkpoint = state.config.validate_every, state.config.checkpoint_every
    if every_validation and event.version % every_validation == 0:
        _validate(turn)
    if every_checkpoint and event.version % every_checkpoint == 0:
        _write_checkpoint(turn)
    next_round_or_finish(turn)


def next_round_or_finish(turn: Turn) -> None:
    """Open the next round, with the settings of that moment, unless the run is to end."""
    state = turn.state
    changes.adopt(state)
    if state.stop_reason is not None or state.round.round >= state.config.max_rounds:
        finish(turn)
        return
    state.open_round(new_round(state, turn.draws, RoundNumber(state.round.round + 1)))
    if state.phase is not Phase.GATHERING:
        state.move_to(Phase.GATHERING)
    _end_stale_leases(turn)
    _forget_old_leases(state)
    _lift_quarantines(turn, list(state.index.quarantines))


def finish(turn: Turn) -> None:
    """No more rounds: cancel what is out, validate and export the last version."""
    state = turn.state
    state.move_to(Phase.FINISHING)
    stopped = state.stop_reason or ""
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
    _validate(turn)
    _write_checkpoint(turn)


def _step(turn: Turn) -> None:
    state = turn.state
    if state.phase is Phase.GATHERING:
        _gather(turn)
    elif state.phase in RUNNING_PHASES:
        dispatch(turn)
        if not state.round.granting:
            _review(turn)
    elif state.phase is Phase.FINISHING and not state.pending:
        state.move_to(Phase.OVER)
        done = reason(Case.ALL_ROUNDS_DONE, rounds=state.round.round)
        state.ended = done if state.stop_reason is None else reason(Case.ENDED, state.stop_reason)
        turn.emit(EndRun(why=state.ended))


def _gather(turn: Turn) -> None:
    state = turn.state
    if state.index.tally.live:
        # all was lost and one came back before anybody else was leased
        state.update_round(first_lease_at_s=state.now_s)
        state.move_to(Phase.TRAINING)
        return
    if not are_ready(state, workers_wanted(state)):
        state.update_round(gathered_at_s=None)
        return
    if state.round.gathered_at_s is None:
        state.update_round(gathered_at_s=state.now_s)
    if state.now_s < _gathered_until_s(state):
        return
    state.update_round(first_lease_at_s=state.now_s)
    state.move_to(Phase.TRAINING)


def _gathered_until_s(state: EngineState) -> float:
    since = state.now_s if state.round.gathered_at_s is None else state.round.gathered_at_s
    all_here = state.totals.leases_granted > 0 and are_ready(state, state.config.min_workers)
    return since if all_here else since + state.config.gather_s


def _review(turn: Turn) -> None:
    state = turn.state
    outlook = quorum.outlook_of(state)
    _set_spare_wait(state, outlook)
    why = quorum.why_close(state, outlook)
    if why is None:
        _follow_grace(state, outlook)
        why = quorum.why_close(state, outlook)  # a grace of nothing is over at once
    if why is None:
        return
    if _is_deserted(state):
        _reopen(state)
    else:
        _close(turn, why)


def _set_spare_wait(state: EngineState, outlook: Outlook) -> None:
    if outlook.awaited or outlook.measuring or state.round.spare_wait_until_s is not None:
        return
    if outlook.standings.at_risk() and quorum.has_spare_candidates(state, outlook.standings):
        state.update_round(spare_wait_until_s=state.now_s + state.config.min_grace_s)


def _follow_grace(state: EngineState, outlook: Outlook) -> None:
    if outlook.settled and state.phase is Phase.TRAINING and (outlook.awaited or outlook.measuring):
        until_s = state.now_s + quorum.grace_s(state)
        state.update_round(settled_at_s=state.now_s, grace_until_s=until_s)
        state.move_to(Phase.GRACE)
    elif not outlook.settled and state.phase is Phase.GRACE:
        state.update_round(settled_at_s=None, grace_until_s=None)
        state.move_to(Phase.TRAINING)


def _is_deserted(state: EngineState) -> bool:
    """Nothing came, and not for anybody's fault: the round is still there for whoever comes."""
    return state.index.tally.lost == len(state.index.tally.leases)


def _reopen(state: EngineState) -> None:
    state.update_round(
        gathered_at_s=None, first_lease_at_s=None, settled_at_s=None, grace_until_s=None, spare_wait_until_s=None
    )
    state.move_to(Phase.GATHERING)


def _look_again(turn: Turn) -> None:
    """Refuse what was accepted before there were peers to compare it with, and falls short of them or outgrows them."""
    state, config = turn.state, turn.state.config.screening
    middle = state.index.tally.gains_median(screening.MIN_GAINS)
    for record in _fresh(state):
        share = pacing.steps_share(state, record.lease)
        verdict = screening.review_gain(config, record.heldout_gain, record.heldout_gain_se, middle, share)
        if verdict is not None:
            leases.withdraw(turn, record.lease.lease_id, verdict)
    fresh = _fresh(state)
    norms = (record.norms for record in fresh)
    medians = medians_of(screening.remember(state.norm_history, norms, config.norm_history))
    for record in fresh:
        verdict = screening.review_norms(config, record.norms, medians)
        if verdict is not None:
            leases.withdraw(turn, record.lease.lease_id, verdict)


def _fresh(state: EngineState) -> list[LeaseRecord]:
    """Accepted submissions of the open round itself."""
    return [record for record in votes.countable(state) if record.lease.round == state.round.round]


def _close(turn: Turn, why: Reason) -> None:
    state = turn.state
    _look_again(turn)
    records, superseded = votes.one_vote_each(state, votes.countable(state))
    for record in superseded:
        state.update_lease(
            record.lease.lease_id,
            counted_in=state.round.round,
            ended=reason(Case.SUPERSEDED),
        )
        leases.drop_payload(turn, record)
    state.update_round(closed=why)
    if not records:
        publish_nothing(turn, reason(Case.NOTHING_ACCEPTABLE))
        return
    # Only now, when they count: free riders are the first to submit, and must not become what others are measured by.
    norms, kept = (record.norms for record in records), state.config.screening.norm_history
    state.norm_history = screening.remember(state.norm_history, norms, kept)
    contributions = votes.contributions_of(state, records)
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
        )
    )


def publish_nothing(turn: Turn, why: Reason) -> None:
    """The round is over, the version stays as it was, the next round opens."""
    _record_round(turn, version=None, unpublished=why)
    next_round_or_finish(turn)


def _record_round(
    turn: Turn,
    *,
    version: Version | None,
    late_used: int = 0,
    update_norm_l2: float | None = None,
    unpublished: Reason | None = None,
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
    )
    state.history = remembered(state.history, row)


def _validate(turn: Turn) -> None:
    state, command_id = turn.state, f"validate:v{turn.state.version}"
    known = any(validation.version == state.version for validation in state.validations)
    if not known and command_id not in state.pending:
        turn.emit(ValidateVersion(command_id=command_id, version=state.version, manifest=state.manifest))


def _write_checkpoint(turn: Turn) -> None:
    state, command_id = turn.state, f"checkpoint:v{turn.state.version}"
    known = any(checkpoint.version == state.version for checkpoint in state.checkpoints)
    if not known and command_id not in state.pending:
        turn.emit(WriteCheckpoint(command_id=command_id, version=state.version, manifest=state.manifest))


def _expire_due(turn: Turn) -> None:
    state = turn.state
    overdue = (state.leases[lease_id].lease for lease_id in state.index.deadlines.due(state.now_s))
    for lease in sorted(overdue, key=lambda lease: lease.order):
        why = reason(Case.NO_SUBMISSION, given_s=lease.deadline_s - lease.granted_at_s)
        leases.expire(turn, lease.lease_id, why)


def _end_stale_leases(turn: Turn) -> None:
    state, most = turn.state, turn.state.config.max_staleness
    for lease_id, record in list(state.leases.items()):
        if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED} and state.staleness_of(record.lease) > most:
            leases.expire(turn, lease_id, reason(Case.ROUND_WENT_ON, round=record.lease.round, most=most))


def _forget_old_leases(state: EngineState) -> None:
    """Resolved leases are kept a little longer than they can matter, to answer a worker that asks again."""
    oldest = state.round.round - state.config.max_staleness - 2
    open_statuses = {LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED}
    state.keep_leases(
        {
            lease_id: record
            for lease_id, record in state.leases.items()
            if record.lease.round >= oldest or record.status in open_statuses
        }
    )


def _lift_quarantines(turn: Turn, workers: Iterable[WorkerId]) -> None:
    state = turn.state
    for worker in workers:
        kept = state.workers[worker].quarantine
        if kept is not None and (state.round.round >= kept.until_round or state.now_s >= kept.until_s):
            state.update_worker(worker, quarantine=None)
