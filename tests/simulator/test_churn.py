"""The dropout schedule: seeded, monotone in its probability, and about as frequent as asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.processes.churn import (
    Dropout,
    byzantine_workers,
    churn_schedule,
    dropouts_of,
    kill_step,
    trusted_workers,
)


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    first = churn_schedule(seed=1, workers=8, rounds=20, probability=0.2)
    assert first == churn_schedule(seed=1, workers=8, rounds=20, probability=0.2)
    assert first != churn_schedule(seed=2, workers=8, rounds=20, probability=0.2)


def test_a_known_schedule_stays_what_it_was() -> None:
    # A published report names only its seed: the same seed must mean the same dropouts in every later release.
    drops = churn_schedule(seed=0, workers=4, rounds=3, probability=0.3)
    assert [(drop.round, drop.worker) for drop in drops] == [(1, 0), (1, 1), (3, 3)]
    assert byzantine_workers(seed=0, workers=8, count=2) == (3, 4)


@given(st.integers(0, 10**6), st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_higher_probability_only_adds_dropouts(seed: int, low: float, more: float) -> None:
    few = churn_schedule(seed=seed, workers=4, rounds=4, probability=low)
    many = churn_schedule(seed=seed, workers=4, rounds=4, probability=low + more)
    assert set(few) <= set(many)


def test_the_rate_is_about_the_probability() -> None:
    drops = churn_schedule(seed=3, workers=20, rounds=200, probability=0.2)
    assert 0.18 < len(drops) / 4000 < 0.22
    assert all(0.15 <= drop.progress_share <= 0.85 and drop.away_share > 0 for drop in drops)


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.15, 20, 4), (0.85, 20, 18), (0.5, 1, 1), (0.85, 2, 2)])
def test_a_worker_dies_within_its_lease(share: float, steps: int, expected: int) -> None:
    assert kill_step(Dropout(round=1, worker=0, progress_share=share, away_share=1.0), steps) == expected


def test_one_workers_dropouts_by_round() -> None:
    drops = churn_schedule(seed=3, workers=3, rounds=9, probability=0.5)
    merged = sorted((d for w in range(3) for d in dropouts_of(drops, w).values()), key=lambda d: (d.round, d.worker))
    assert tuple(merged) == drops


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_more_liars_keep_the_liars_of_fewer(seed: int, count: int) -> None:
    few = byzantine_workers(seed=seed, workers=8, count=count)
    assert len(few) == count
    assert set(few) <= set(byzantine_workers(seed=seed, workers=8, count=count + 1))


@given(st.integers(0, 10**6), st.integers(0, 8))
def test_nobody_is_a_liar_and_a_founder(seed: int, liars: int) -> None:
    founders = trusted_workers(seed=seed, workers=8, count=8 - liars)
    assert sorted((*founders, *byzantine_workers(seed=seed, workers=8, count=liars))) == list(range(8))
