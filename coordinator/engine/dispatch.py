"""Who is given a lease now: the idle, in the order in which they asked, and why the others are not.

Decides between granting and waiting, for each idle worker. In a round's first wave everybody gets a lease. Later, one
that still fits into the round's time is granted, fewer steps the later; once every column is settled, only a column
at risk is. A worker that has already submitted in the round may replace what others lost, in columns that it did not
hold, when nobody fresh is there (its second vote on the trunk is left out at aggregation). No two machines of one owner
are given the same column: replicas are independent people.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from enum import Enum, auto
from itertools import islice

from coordinator.engine import audit_budget, leases, pacing, placement, quorum
from coordinator.engine.index import offers_enough
from coordinator.engine.pacing import Pace
from coordinator.engine.phases import Phase
from coordinator.engine.quorum import Standings
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from coordinator.engine.turn import Turn
from protocol.ids import WorkerId


class Hindrance(Enum):
    """Why a worker gets no lease. In words: for operators in `explain.py`, for the volunteer in `telling.py`."""

    PAUSED = auto()
    DRAINING = auto()
    BANNED = auto()
    SET_ASIDE = auto()
    OFFERS_TOO_LITTLE = auto()
    COOLING = auto()
    """It lost more than one lease of the round."""
    REFUSED = auto()
    """Its submission to the round was."""
    PAST_DEADLINE = auto()
    PART_IS_DONE = auto()
    SAME_OWNER = auto()
    """Its owner's other machines hold what it could take."""
    QUORUM_REACHED = auto()
    TOO_LITTLE_TIME = auto()


def is_waiting(state: EngineState, record: WorkerRecord) -> bool:
    """Whether a lease granted now would find the worker."""
    if not record.present or record.waiting_since_s is None:
        return False
    return record.waits_until_s is None or state.now_s < record.waits_until_s


def hindrance_of(state: EngineState, record: WorkerRecord) -> Hindrance | None:
    """Why this worker gets no lease whatever the round needs; None where it may."""
    if not trust_of(state.config, record).may_hold:
        return Hindrance.BANNED if record.ban is not None else Hindrance.SET_ASIDE
    if not offers_enough(state.config, record):
        return Hindrance.OFFERS_TOO_LITTLE
    if state.hold is not None:
        return Hindrance.PAUSED if state.paused else Hindrance.DRAINING
    return Hindrance.COOLING if state.now_s < record.cooling_until_s else None


def ready_workers(state: EngineState, among: Container[WorkerId] | None = None) -> Iterator[WorkerRecord]:
    """Idle workers that may be leased, first come first; one by one, since a wave takes only the first."""
    for _, worker in tuple(state.index.queue):
        record = state.workers[worker]
        if (among is None or worker in among) and _is_ready(state, record):
            yield record


def are_ready(state: EngineState, wanted: int) -> bool:
    """Whether so many idle workers may be leased."""
    if len(state.index.idle) < wanted or state.hold is not None:
        return False
    ready = (worker for worker in state.index.idle if _is_ready(state, state.workers[worker]))
    return sum(1 for _ in islice(ready, wanted)) >= wanted


def workers_here(state: EngineState) -> Iterator[WorkerRecord]:
    """Idle workers that are connected and may be leased, in no order; whoever is between two asks is here, too."""
    records = (state.workers[worker] for worker in state.index.idle)
    return (record for record in records if record.present and hindrance_of(state, record) is None)


def are_here(state: EngineState, wanted: int) -> bool:
    """Whether there are so many of them."""
    if len(state.index.idle) < wanted or state.hold is not None:
        return False
    return sum(1 for _ in islice(workers_here(state), wanted)) >= wanted


def dispatch(turn: Turn) -> None:
    """Grant what there is to grant, or the first `most_grants` of it: the rest then waits for the next `Ticked`."""
    state, index = turn.state, turn.state.index
    if not index.idle or state.round.granting or state.hold is not None:
        return
    standings, pace = Standings(state), pacing.pace_of(state)
    until = state.round.next_lease + state.config.most_grants
    for record in _candidates(state, standings, pace):
        if state.round.next_lease >= until:
            state.update_round(granting=True)
            return
        _offer(turn, standings, pace, record)


def _candidates(state: EngineState, standings: Standings, pace: Pace) -> Iterator[WorkerRecord]:
    """Idle workers, as long as there may be something for them: first those without a lease of this round."""
    index = state.index
    submitted = index.idle - index.idle_fresh if standings.replaceable() else set[WorkerId]()
    if index.idle_fresh and _may_lease_fresh(state, standings, pace):
        yield from ready_workers(state, index.idle_fresh)
    for record in ready_workers(state, submitted) if submitted else ():
        if len(standings.replaceable()) < state.config.min_columns:
            return
        yield record


def refusal_now(state: EngineState, standings: Standings, pace: Pace, record: WorkerRecord) -> Hindrance | None:
    """Why an idle worker gets no lease from the present round at this moment; None where it does."""
    if standings.is_refused(record.worker):
        return Hindrance.REFUSED
    if quorum.is_past_deadline(state):
        return Hindrance.PAST_DEADLINE
    if standings.is_holder(record.worker):
        replaces = len(standings.to_replace(record.worker)) >= state.config.min_columns
        return None if replaces else Hindrance.PART_IS_DONE
    if len(standings.open_to(record.worker)) < max(1, state.config.min_columns):
        return Hindrance.SAME_OWNER
    if standings.is_short_of(record.worker):
        return None
    if state.phase is Phase.GRACE:
        return Hindrance.QUORUM_REACHED
    return Hindrance.TOO_LITTLE_TIME if pacing.eighths_by_time_left(state, pace, record.worker) < 1 else None


def _may_lease_fresh(state: EngineState, standings: Standings, pace: Pace) -> bool:
    """Whether anybody without a lease of this round could be given one: what `refusal_now` says of the fastest."""
    if quorum.is_past_deadline(state):
        return False
    if standings.at_risk():
        return True
    return state.phase is not Phase.GRACE and pacing.eighths_for_the_fastest(state, pace) >= 1


def _offer(turn: Turn, standings: Standings, pace: Pace, record: WorkerRecord) -> None:
    state = turn.state
    if refusal_now(state, standings, pace, record) is not None:
        return
    again, open_to = standings.is_holder(record.worker), standings.open_to(record.worker)
    at_risk = open_to.intersection(standings.at_risk())
    columns = placement.choose_columns(
        state,
        turn.draws,
        record,
        allowed=standings.to_replace(record.worker) if again else open_to,
        coverage=standings.coverage,
        others=lambda besides: 0 if again else _leasable(state, besides),
    )
    mid_round = state.round.expired + state.round.returned + state.round.rejected > 0
    spare = again or (mid_round and bool(at_risk.intersection(columns)))
    eighths = _eighths(state, pace, record.worker, at_risk=bool(at_risk))
    lease = leases.grant(turn, record.worker, columns, eighths, pace, spare=spare)
    audit_budget.expect(state, lease)


def _eighths(state: EngineState, pace: Pace, worker: WorkerId, *, at_risk: bool) -> int:
    left = pacing.eighths_by_time_left(state, pace, worker)
    if at_risk:
        left = max(left, pacing.SPARE_EIGHTHS)
    return max(1, min(pacing.eighths_by_speed(state.config, pace, worker), left))


def _leasable(state: EngineState, besides: Collection[WorkerId]) -> int:
    """Workers that are here and could still take a first lease of this round, but for a few."""
    free, cooling = state.index.free, state.index.cooling
    not_now = {worker for worker in cooling if cooling.moment_s(worker) > state.now_s}.union(besides)
    leasable = len(free) - len(free & not_now)
    # of one owner's machines only one may take a column
    owned = (len(machines & free) - len(machines & free & not_now) for machines in state.index.machines.values())
    return leasable - sum(count - 1 for count in owned if count > 1)


def _is_ready(state: EngineState, record: WorkerRecord) -> bool:
    return is_waiting(state, record) and hindrance_of(state, record) is None
