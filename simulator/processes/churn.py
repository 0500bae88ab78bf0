"""Dropouts as data: which worker is killed in which round, how far into its lease, and when it comes back.

Decides the schedule only; the workers and `swarm.py` carry it out. Always: the same seed gives the same
schedule, a worker drops at most once a round, and every worker comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.seeds import derived_stream

MIN_PROGRESS_SHARE = 0.15
MAX_PROGRESS_SHARE = 0.85
"""Never at the very start or end: a dropout is somebody who was really training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout:
    """Worker `worker` is killed in round `round` at `progress_share` of its inner steps."""

    round: int
    worker: int
    progress_share: float
    away_share: float
    """Comes back after this many times the duration of a typical lease."""


def churn_schedule(*, seed: int, workers: int, rounds: int, probability: float) -> tuple[Dropout, ...]:
    """Each worker drops in each round with `probability`, independently; sorted by round, then worker.

    Every (round, worker) pair draws the same numbers whether or not it drops, so that a higher probability only adds
    dropouts to the schedule of a lower one.
    """
    drops: list[Dropout] = []
    for round_number in range(1, rounds + 1):
        for worker in range(workers):
            stream = derived_stream(seed, "churn", round_number, worker)
            chance, place, away = stream.random(), stream.random(), stream.random()
            if chance < probability:
                span = MAX_PROGRESS_SHARE - MIN_PROGRESS_SHARE
                share = MIN_PROGRESS_SHARE + span * place
                drops.append(
                    Dropout(round=round_number, worker=worker, progress_share=share, away_share=0.25 + 1.25 * away)
                )
    return tuple(drops)


def kill_step(dropout: Dropout, inner_steps: int) -> int:
    """Inner step (1 is the first) at whose beginning the worker dies."""
    return min(inner_steps, max(1, 1 + int(dropout.progress_share * inner_steps)))


def byzantine_workers(*, seed: int, workers: int, count: int) -> tuple[int, ...]:
    """Which workers lie, ascending. A larger count keeps the liars of a smaller one."""
    return tuple(sorted(_in_drawn_order(seed, workers)[:count]))


def trusted_workers(*, seed: int, workers: int, count: int) -> tuple[int, ...]:
    """Which workers are founders, ascending: from the other end of the order in which workers become liars."""
    return tuple(sorted(_in_drawn_order(seed, workers)[workers - count :]))


def _in_drawn_order(seed: int, workers: int) -> list[int]:
    return sorted(range(workers), key=lambda worker: derived_stream(seed, "byzantine", worker).random())


def dropouts_of(schedule: Sequence[Dropout], worker: int) -> dict[int, Dropout]:
    """One worker's dropouts, by round."""
    return {drop.round: drop for drop in schedule if drop.worker == worker}
