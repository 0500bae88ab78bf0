"""Who is given a lease now: the idle, in the order in which they asked, and why the others are not.

Decides between granting and waiting, for each idle worker. In a round's first wave everybody gets a lease. Later, one
that still fits into the round's time is granted, fewer steps the later; once every column is settled, only a column
at risk is. A worker that has already submitted in the round may replace what others lost, in columns that it did not
hold, when nobody fresh is there (its second vote on the trunk is left out at aggregation).
"""

from __future__ import annotations

from coordinator.engine import leases, pacing, placement, quorum
from coordinator.engine.pacing import Pace
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.quorum import Standings
from coordinator.engine.state import EngineState, WorkerRecord
from coordinator.engine.turn import Turn
from protocol.ids import WorkerId


def is_waiting(state: EngineState, record: WorkerRecord) -> bool:
    """Whether a lease granted now would find the worker."""
    if not record.present or record.waiting_since_s is None:
        return False
    return record.waits_until_s is None or state.now_s < record.waits_until_s


def standing_reason(state: EngineState, record: WorkerRecord) -> str | None:
    """Why this worker gets no lease whatever the round needs; None where it may."""
    config = state.config
    if record.quarantine is not None:
        return f"set aside: {record.quarantine.reason}"
    if placement.capacity(config, record.max_columns) < config.min_columns:
        return f"it offers {record.max_columns} columns, and this run needs {config.min_columns} a worker"
    if state.now_s < record.cooling_until_s:
        left_s = record.cooling_until_s - state.now_s
        return f"it lost more than one lease in round {state.round.round}; leased again in {left_s:.0f} s"
    return None


def ready_workers(state: EngineState) -> list[WorkerRecord]:
    """Idle workers that may be leased, first come first."""
    waiting = [r for r in state.workers.values() if is_waiting(state, r) and standing_reason(state, r) is None]
    return sorted(waiting, key=lambda record: (record.waiting_since_s or 0.0, record.worker))


def dispatch(turn: Turn) -> None:
    """Grant what there is to grant."""
    state = turn.state
    ready = ready_workers(state)
    if not ready:
        return
    standings = quorum.standings_of(state)
    pace = pacing.pace_of(state)
    fresh = [record for record in ready if record.worker not in standings.held]
    submitted = [record for record in ready if record.worker in standings.held]
    for record in fresh:
        _offer(turn, standings, pace, record, others=_leasable(state, standings, record.worker))
    for record in submitted:
        _offer(turn, standings, pace, record, others=set())


def refusal_now(state: EngineState, standings: Standings, pace: Pace, record: WorkerRecord) -> str | None:
    """Why an idle worker gets no lease from the present round at this moment; None where it does."""
    current = state.round
    if record.worker in standings.refused:
        return f"its submission to round {current.round} was refused; it may take part in the next"
    if quorum.is_past_deadline(state):
        return f"the deadline of round {current.round} has passed; the next round opens soon"
    if record.worker in standings.held:
        if len(standings.to_replace(record.worker)) >= state.config.min_columns:
            return None
        return f"it has done its part of round {current.round}; the next round opens when this one closes"
    if standings.at_risk():
        return None
    if state.phase is Phase.GRACE:
        return f"every column of round {current.round} has its quorum; the next round opens soon"
    if pacing.eighths_by_time_left(state, pace, record.worker) < 1:
        return f"too little is left of round {current.round} for one lease; the next round opens soon"
    return None


def _offer(turn: Turn, standings: Standings, pace: Pace, record: WorkerRecord, *, others: set[WorkerId]) -> None:
    state = turn.state
    if refusal_now(state, standings, pace, record) is not None:
        return
    at_risk = set(standings.at_risk())
    again = record.worker in standings.held
    allowed = standings.to_replace(record.worker) if again else set(range(state.config.columns))
    columns = placement.choose_columns(
        state, turn.draws, record, allowed=allowed, coverage=standings.coverage, others=others
    )
    mid_round = state.round.expired + state.round.returned + state.round.rejected > 0
    spare = again or (mid_round and bool(at_risk.intersection(columns)))
    eighths = _eighths(state, pace, record.worker, at_risk=bool(at_risk))
    leases.grant(turn, record.worker, columns, eighths, pace, spare=spare)
    standings.add_lease(record.worker, columns)


def _eighths(state: EngineState, pace: Pace, worker: WorkerId, *, at_risk: bool) -> int:
    left = pacing.eighths_by_time_left(state, pace, worker)
    if at_risk:
        left = max(left, pacing.SPARE_EIGHTHS)
    return max(1, min(pacing.eighths_by_speed(state.config, pace, worker), left))


def _leasable(state: EngineState, standings: Standings, besides: WorkerId) -> set[WorkerId]:
    """Workers that are here and could still take a lease of this round."""
    busy = {record.lease.worker for record in state.leases.values() if record.status is LeaseStatus.GRANTED}
    return {
        record.worker
        for record in state.workers.values()
        if record.present
        and record.worker != besides
        and record.worker not in busy
        and record.worker not in standings.held
        and standing_reason(state, record) is None
    }
