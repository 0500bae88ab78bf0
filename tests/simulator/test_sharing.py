"""A version moves through a swarm with the real tracker and the real fetching side: honest workers, then liars."""

from __future__ import annotations

import pytest
import structlog

from simulator.holders import LIES, Gives
from simulator.virtual.sharing import spread

VERSION = (1_000_000, *(600_000,) * 10)
ALONE_S = 8 * sum(VERSION) / 12.5e6


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


@pytest.mark.parametrize("sharers", [2, 4, 8])
def test_a_version_leaves_the_coordinator_as_often_as_it_is_set_to(sharers: int) -> None:
    found = spread([Gives.BLOCKS] * sharers + [Gives.NOTHING] * (8 - sharers), VERSION)
    assert found.copies <= 2 * 1.05
    assert found.blamed == frozenset()


def test_one_copy_is_enough() -> None:
    assert spread([Gives.BLOCKS] * 8, VERSION, copies=1).copies <= 1.05


def test_where_nobody_shares_everybody_takes_everything_from_the_coordinator() -> None:
    found = spread([Gives.NOTHING] * 4, VERSION)
    assert found.copies == 4


def test_the_same_seed_is_the_same_swarm() -> None:
    swarm = [Gives.BLOCKS] * 3 + [Gives.GARBAGE]
    assert spread(swarm, VERSION, seed=5) == spread(swarm, VERSION, seed=5)


@pytest.mark.parametrize("lie", LIES)
def test_two_liars_of_eight_cost_no_more_than_a_copy_and_blame_nobody_else(lie: Gives) -> None:
    found = spread([lie] * 2 + [Gives.BLOCKS] * 6, VERSION)
    assert found.copies <= 3
    assert found.blamed == {0, 1}
    assert found.wall_s < ALONE_S + 4 * 20.0  # a stall of each, in each of few lanes


def test_all_four_kinds_at_once_and_half_of_the_others_share() -> None:
    found = spread([*LIES, *[Gives.BLOCKS] * 4, *[Gives.NOTHING] * 4], VERSION, seed=1)
    assert found.blamed <= {0, 1, 2, 3}
    assert found.copies <= 3
