"""Columns that are not held are encoded anew by how far the rates went, and as often in all as the setting says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.config import EngineConfig
from coordinator.engine.down_config import WHOLE, DownConfig
from coordinator.engine.refreshing import down_in
from protocol.ids import RoundNumber
from tests.coordinator.engine.test_schedules import config_of, configs, rates_of

quick = settings(max_examples=150, deadline=None, derandomize=True)


def encoded_in(config: EngineConfig, withheld: frozenset[int] = frozenset()) -> list[int]:
    """The rounds in which an executor would encode columns anew (coordinator/work/publishing.py)."""
    made, old, version = [], 0, 0
    for number in range(1, config.max_rounds + 1):
        if number in withheld:
            continue
        version += 1
        if version - old >= down_in(config, RoundNumber(number)).frozen_every:
            made.append(number)
            old = version
    return made


def mean_distance(config: EngineConfig, rounds: list[int]) -> float:
    """How far the rates went, in the mean of all leases, since what a lease has was encoded."""
    rates, gone, total = rates_of(config), 0.0, 0.0
    for number in range(1, config.max_rounds + 1):  # a round's leases begin from the version before
        gone = 0.0 if number - 1 in rounds else gone + (rates[number - 2] if number > 1 else 0.0)
        total += gone
    return total / config.max_rounds


@quick
@given(configs(), st.sampled_from((1, 2, 3, 6, 12, 50)))
def test_a_run_has_no_more_of_them_than_the_setting_gives(config, every):
    config = replace(config, down=DownConfig(frozen_every=every))
    assert len(encoded_in(config)) <= config.max_rounds // every


@pytest.mark.parametrize("every", [2, 3, 6, 12])
def test_a_constant_rate_has_them_at_even_distances(every):
    config = replace(config_of(120, schedule="constant"), down=DownConfig(frozen_every=every))
    rounds = encoded_in(config)
    assert len(rounds) == 120 // every
    distances = {after - before for before, after in pairwise([0, *rounds])}
    assert max(distances) - min(distances) <= 1


@pytest.mark.parametrize("rounds", [40, 200])
def test_a_falling_rate_has_most_of_them_at_first(rounds):
    config = replace(config_of(rounds), down=DownConfig())
    there = encoded_in(config)
    assert len(there) == rounds // 6
    distances = [after - before for before, after in pairwise([0, *there, rounds])]
    assert max(distances[:2]) < 6 < min(distances[-2:])
    assert all(after - before >= -1 for before, after in pairwise(distances)), "by a round, as rounds are whole"


@pytest.mark.parametrize("every", [6, 12])
def test_the_same_number_of_them_leaves_columns_nearer_than_at_even_distances(every):
    config = replace(config_of(120), down=DownConfig(frozen_every=every))
    even = mean_distance(config, list(range(every, 121, every)))
    assert mean_distance(config, encoded_in(config)) < 0.85 * even


def test_every_version_is_every_version():
    config = replace(config_of(20), down=DownConfig(frozen_every=1))
    assert encoded_in(config) == list(range(1, 21))
    assert {down_in(replace(config, down=WHOLE), RoundNumber(number)) for number in range(1, 21)} == {WHOLE}


def test_a_round_that_made_no_version_puts_it_off_to_the_next():
    config = replace(config_of(60), down=DownConfig())
    rounds = encoded_in(config)
    off = rounds[2]
    assert encoded_in(config, frozenset({off}))[2] == off + 1
    assert encoded_in(config, frozenset({off - 1})) == rounds


def test_nothing_hangs_on_how_long_the_run_is():
    config = replace(config_of(10**6), down=DownConfig())
    first, last = (down_in(config, RoundNumber(number)).frozen_every for number in (10, 10**7))
    assert first <= 6 < last, "after the end, too"
