"""Settings that are changed in the deterministic simulation: seeds hold, and what is planted is found."""

from __future__ import annotations

from simulator.deterministic.coordinator_bugs import set_before_durable
from simulator.deterministic.scenario import scenario_of
from simulator.deterministic.world import run_seed

SEEDS = [seed for seed in range(200) if scenario_of(seed).changes]


def test_seeds_that_change_settings_hold_and_do_change_them() -> None:
    outcomes = [run_seed(seed, trace=True) for seed in SEEDS]
    assert [(outcome.seed, outcome.violation) for outcome in outcomes if outcome.violation] == []
    changed = [one for one in outcomes if any("applied SettingChanged" in line for line in one.trace)]
    assert len(changed) > len(SEEDS) / 2
    assert sum(one.coordinator_kills for one in changed) > 5


def test_a_setting_that_is_applied_before_it_is_durable_is_found() -> None:
    with set_before_durable():
        found = next(outcome for outcome in map(run_seed, range(1000)) if outcome.violation is not None)
    assert run_seed(found.seed).violation is None
