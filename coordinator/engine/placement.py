"""Which columns a worker gets: least covered first, then those it had, then by secret draw; some drawn anew.

Decides a lease's columns and nothing else. Holds always: no worker holds one column twice in a round; a worker that
can hold everything does; who shares a column with whom cannot be told in advance without the run's secret. Leases are
granted one at a time as workers ask, so the choice can only look at what was leased before and at who else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from coordinator.engine.config import EngineConfig
from coordinator.engine.draws import Draws
from coordinator.engine.state import EngineState, WorkerRecord
from protocol.ids import RoundNumber, WorkerId


def capacity(config: EngineConfig, max_columns: int) -> int:
    """Columns a worker may be given; an offer of 0 means all."""
    return config.columns if max_columns <= 0 else min(max_columns, config.columns)


def sticky_columns(workers: Iterable[WorkerRecord], round_number: RoundNumber) -> dict[WorkerId, tuple[int, ...]]:
    """Who held which columns in the round before `round_number`."""
    return {record.worker: record.held_columns for record in workers if record.held_round == round_number - 1}


def redrawn_holders(
    config: EngineConfig, draws: Draws, round_number: RoundNumber, held: Mapping[WorkerId, tuple[int, ...]]
) -> dict[int, tuple[WorkerId, ...]]:
    """For each column, `redraw` of its last holders, drawn in secret: they are to make room for others this round."""
    holders: dict[int, list[WorkerId]] = {}
    for worker, columns in held.items():
        for column in columns:
            holders.setdefault(column, []).append(worker)
    leaving: dict[int, tuple[WorkerId, ...]] = {}
    for column in range(config.columns):
        if column in holders:
            mixed = draws.stream(round_number, "redraw", column).shuffled(sorted(holders[column]))
            leaving[column] = tuple(mixed[: config.redraw])
    return leaving


def choose_columns(
    state: EngineState,
    draws: Draws,
    worker: WorkerRecord,
    *,
    allowed: Collection[int],
    coverage: Mapping[int, int],
    others: Callable[[Collection[WorkerId]], int],
) -> tuple[int, ...]:
    """Columns for one lease, ascending. `others(besides)` counts workers that could still be leased this round."""
    config, current = state.config, state.round
    count = capacity(config, worker.max_columns)
    if count >= len(allowed):
        return tuple(sorted(allowed))
    drawn = draws.stream(current.round, "placement", worker.worker).shuffled(range(config.columns))
    order = {column: place for place, column in enumerate(drawn)}
    sticky = current.sticky.get(worker.worker, ())
    served = state.index.served_columns(current.sticky)

    def rank(column: int) -> tuple[bool, int, bool, bool, int]:
        makes_room = _makes_room(state, worker.worker, column, coverage.get(column, 0), others)
        # a column that nobody had last time goes first, or too small a swarm would train the same few for ever
        return makes_room, coverage.get(column, 0), column in served, column not in sticky, order[column]

    return tuple(sorted(sorted(allowed, key=rank)[:count]))


def _makes_room(
    state: EngineState, worker: WorkerId, column: int, covered: int, others: Callable[[Collection[WorkerId]], int]
) -> bool:
    """Whether this worker leaves the column to others this round: only where there are enough of them."""
    leaving = state.round.redrawn.get(column, ())
    if worker not in leaving:
        return False
    return others(leaving) >= state.config.replicas - covered
