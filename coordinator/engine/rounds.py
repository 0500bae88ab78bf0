"""The course of a round: gather, lease, wait, close; how one ends, and what follows, is in closing.py.

Decides every move between phases, after each event, from the state alone. Holds always: a round that nobody could
serve stays open; when `advance` returns, nothing more can be done before the next event or the next timer, except to
go on with a wave of leases (`RoundState.granting`), for which a timer runs out at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from coordinator.engine import audits, closing, leases, opinions, overdue, quorum, shadows
from coordinator.engine.commands import EndRun
from coordinator.engine.dispatch import are_here, are_ready, dispatch, is_waiting
from coordinator.engine.phases import OPEN_PHASES, Phase
from coordinator.engine.quorum import Outlook
from coordinator.engine.reasons import Case, reason
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn

RUNNING_PHASES = frozenset({Phase.TRAINING, Phase.GRACE})
_MOST_MOVES = 8
"""A round cannot move further than this without an event; more would be a circle, which is a bug of ours."""


def advance(turn: Turn) -> None:
    """Do everything that the state, at its present time, calls for."""
    state = turn.state
    _expire_due(turn)
    closing.lift_quarantines(turn, state.index.quarantines.due(state.now_s))
    opinions.advance(turn)
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
    moments = [state.index.deadlines.first_after(state.now_s), state.index.overdue.first_after(state.now_s)]
    if state.phase is Phase.GATHERING and current.gathered_at_s is not None:
        moments.append(_gathered_until_s(state))
    if state.phase in RUNNING_PHASES:
        limits = (quorum.deadline_s(state), current.grace_until_s, current.spare_wait_until_s)
        moments += limits
        moments += audits.timers_s(state)
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


def _step(turn: Turn) -> None:
    state = turn.state
    if state.paused and state.phase in OPEN_PHASES:
        return
    if state.phase is Phase.GATHERING:
        _gather(turn)
    elif state.phase in RUNNING_PHASES:
        shadows.grant(turn, overdue=True)
        if not state.round.granting:
            overdue.follow(state)
        dispatch(turn)
        if not state.round.granting:
            shadows.grant(turn, overdue=False)
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
    if not are_here(state, workers_wanted(state)):
        state.update_round(gathered_at_s=None)
        return
    if state.round.gathered_at_s is None:
        state.update_round(gathered_at_s=state.now_s)
    if state.now_s < _gathered_until_s(state) or not are_ready(state, 1):
        return  # with everybody between two asks, the next ask begins the round
    state.update_round(first_lease_at_s=state.now_s)
    state.move_to(Phase.TRAINING)


def _gathered_until_s(state: EngineState) -> float:
    since = state.now_s if state.round.gathered_at_s is None else state.round.gathered_at_s
    all_here = state.totals.leases_granted > 0 and are_here(state, state.config.min_workers)
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
        closing.close(turn, why)


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


def _expire_due(turn: Turn) -> None:
    state = turn.state
    overdue = (state.leases[lease_id].lease for lease_id in state.index.deadlines.due(state.now_s))
    for lease in sorted(overdue, key=lambda lease: lease.order):
        why = reason(Case.NO_SUBMISSION, given_s=lease.deadline_s - lease.granted_at_s)
        leases.expire(turn, lease.lease_id, why)
