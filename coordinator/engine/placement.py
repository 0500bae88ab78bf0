"""Which columns a worker gets: least covered first, then those it had, then by secret draw; some drawn anew.

Decides a lease's columns and nothing else. Holds always: no worker holds one column twice in a round; a worker that
can hold everything does; who shares a column with whom cannot be told in advance without the run's secret. Leases are
granted one at a time as workers ask, so the choice can only look at what was leased before and at who else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from coordinator.engine.config import EngineConfig
from coordinator.engine.draws import Draws
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.state import EngineState
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
            stream = draws.stream(round_number, "redraw", column)
            leaving[column] = tuple(stream.sample(sorted(holders[column]), config.redraw))
    return leaving


def choose_columns(
    state: EngineState,
    draws: Draws,
    worker: WorkerRecord,
    *,
    allowed: Collection[int],
    coverage: Sequence[int],
    others: Callable[[Collection[WorkerId]], int],
) -> tuple[int, ...]:
    """Columns for one lease, ascending. `others(besides)` counts workers that could still be leased this round."""
    config, current = state.config, state.round
    count = capacity(config, worker.max_columns)
    if count >= len(allowed):
        return tuple(sorted(allowed))
    drawn = draws.stream(current.round, "placement", worker.worker).u64s(config.columns)
    sticky = current.sticky.get(worker.worker, ())
    served = state.index.served_columns(current.sticky)
    # only where there are enough others does a worker leave the column to them this round
    makes_room = {
        column
        for column, leaving in current.redrawn.items()
        if worker.worker in leaving and others(leaving) >= config.replicas - coverage[column]
    }
    # a column that nobody had last time goes first, or too small a swarm would train the same few for ever
    ranked = sorted(
        (column in makes_room, coverage[column], column in served, column not in sticky, drawn[column], column)
        for column in allowed
    )
    return tuple(sorted(rank[-1] for rank in ranked[:count]))
