"""The deterministic simulation: seeds hold, replay exactly, and find what is planted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from simulator.deterministic.outcome import Outcome
from simulator.deterministic.planted import PLANTED
from simulator.deterministic.planting import PlantedBug
from simulator.deterministic.world import run_seed

SEEDS_EACH_TIME = 110
SOAK_SEEDS = 20_000
MOST_SEEDS = 1000


def first_failure(seeds: range) -> Outcome | None:
    return next((outcome for outcome in map(run_seed, seeds) if outcome.violation is not None), None)


def test_no_seed_breaks_a_promise_and_the_seeds_are_worth_something() -> None:
    outcomes = [run_seed(seed) for seed in range(SEEDS_EACH_TIME)]
    assert [(outcome.seed, outcome.violation) for outcome in outcomes if outcome.violation] == []
    totals = Counter[str]()
    for outcome in outcomes:
        totals["acknowledged"] += outcome.acknowledged
        totals["versions"] += outcome.versions
        totals["coordinator_kills"] += outcome.coordinator_kills
        totals["worker_kills"] += outcome.worker_kills
        totals["blocks_between_workers"] += outcome.blocks_between_workers
    assert totals["versions"] > SEEDS_EACH_TIME
    assert totals["acknowledged"] > 2 * SEEDS_EACH_TIME
    assert totals["coordinator_kills"] > SEEDS_EACH_TIME / 4
    assert totals["worker_kills"] > SEEDS_EACH_TIME / 8
    assert totals["blocks_between_workers"] > 2 * SEEDS_EACH_TIME


@pytest.mark.parametrize("seed", [3, 4, 24, 105, 189])
def test_a_seed_replays_exactly_with_and_without_its_trace(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed, trace=True)
    assert (first.history, first.events, first.virtual_s) == (second.history, second.events, second.virtual_s)
    assert first.trace == ()
    assert second.trace
    assert second.trace == run_seed(seed, trace=True).trace


@pytest.mark.soak
def test_a_seed_replays_exactly_in_another_process_with_other_hashes() -> None:
    told = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "benchmarks.seeds", "--seed", "105", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        told.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(told) == 1


FOUND_EACH_TIME = (
    "reply-before-commit",
    "counted-again",
    "owner-seated-twice",
    "owner-votes-twice",
    "payload-without-sync",
    "wall-clock-decides",
    "suspend-unnoticed",
    "block-digest-unchecked",
    "banned-on-one-word",
    "banned-and-still-counted",
    "audited-bytes-dropped",
    "newcomer-weighs",
    "rounding-taken-for-a-lie",
    "rollback-keeps-the-liar",
    "busy-holder-blamed",
)


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.name, marks=[] if bug.name in FOUND_EACH_TIME else pytest.mark.soak) for bug in PLANTED],
)
def test_a_planted_bug_is_found_within_a_thousand_seeds(bug: PlantedBug) -> None:
    with bug.plant():
        found = first_failure(range(MOST_SEEDS))
    assert found is not None
    assert run_seed(found.seed).violation is None  # it is the bug that was found


def test_there_are_at_least_ten_planted_bugs() -> None:
    assert len({bug.name for bug in PLANTED}) >= 10


def test_a_failing_seed_prints_its_trace() -> None:
    with PLANTED[0].plant():
        found = first_failure(range(MOST_SEEDS))
        assert found is not None
        again = run_seed(found.seed, trace=True)
    assert again.violation == found.violation
    assert again.trace[0].startswith("scenario ")
    assert f"VIOLATION {found.violation}" in again.trace[-1]


@pytest.mark.soak
def test_many_seeds_hold() -> None:
    assert first_failure(range(SEEDS_EACH_TIME, SOAK_SEEDS)) is None


@pytest.mark.parametrize("seed", [3000292, 5000630])
def test_a_download_cancelled_just_as_its_time_is_up_ends_quietly(seed: int) -> None:
    """`wait_for` left the read running there, and closing what it read from was an error that ended the worker."""
    assert run_seed(seed).violation is None


def test_a_submission_whose_last_bytes_come_as_the_run_ends_is_refused_for_good() -> None:
    """It was refused in the engine's words before, and the volunteer told to keep what nobody would take."""
    assert run_seed(6004422).violation is None


def test_leases_shorter_than_the_coordinators_patience_do_not_end_in_vain_for_ever() -> None:
    """Two of three sharers were silent: how long nothing came was counted anew with each lease, of ten seconds."""
    assert run_seed(7002956).violation is None


@pytest.mark.parametrize("seed", [7002019, 7002809])
def test_each_of_more_liars_than_copies_costs_one(seed: int) -> None:
    """They take what the coordinator gives, and pass none of it on."""
    assert run_seed(seed).violation is None


@pytest.mark.parametrize("seed", [7011642, 7015204, 7017621])
def test_a_holder_that_has_just_let_go_of_a_block_is_not_avoided(seed: int) -> None:
    """A worker came for it before the coordinator had heard that it is gone."""
    assert run_seed(seed).violation is None


def test_a_holder_that_never_has_anything_does_not_cost_everybody_their_patience() -> None:
    """It is asked twice; when five seconds lay between, a silent one beside it made that too long."""
    assert run_seed(7016226).violation is None


def test_what_others_measured_in_vain_is_measured_here() -> None:
    """As the run ended, the engine wanted it from nobody else any more; what was queued had others' answers in it."""
    assert run_seed(546).violation is None
