"""Options become settings; the folder is cleaned of what a simulation left, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.engine.config import InnerRecipe
from protocol.errors import ConfigError
from protocol.ids import RunId
from simulator.options import SimulationOptions
from simulator.setup import MARKER, clean_folder, recipe_of, run_settings


def test_options_become_settings() -> None:
    options = SimulationOptions(out=Path("x"), workers=8, rounds=7, seed=3, inner=InnerRecipe(inner_steps=5))
    settings = run_settings(options)
    config = settings.engine_config(run_id=RunId("r"), columns=8, train_sequences=100)
    assert (config.max_rounds, config.min_workers, config.inner.inner_steps) == (7, 8, 5)
    assert settings.sim_secret_from_seed
    assert settings.port == 0
    assert config.screening.enabled
    assert run_settings(options).seed == settings.seed
    assert run_settings(SimulationOptions(out=Path("x"), seed=4)).seed != settings.seed


def test_any_engine_setting_stands_above_the_options() -> None:
    given = {"inner": {"schedule": "constant"}, "quorum": 3, "screening": {"enabled": True}}
    options = SimulationOptions(out=Path("x"), undefended=True, inner=InnerRecipe(inner_steps=5), engine=given)
    config = run_settings(options).engine_config(run_id=RunId("r"), columns=8, train_sequences=100)
    assert (config.inner.schedule, config.inner.inner_steps, config.quorum) == ("constant", 5, 3)
    assert config.screening.enabled
    assert recipe_of(options) == config.inner


def test_engine_settings_that_cannot_be_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="warmup_rounds must be below max_rounds") as refusal:
        run_settings(SimulationOptions(out=Path("x"), rounds=2, engine={"inner": {"warmup_rounds": 2}}))
    assert "\n" not in str(refusal.value)


def test_undefended_is_a_plain_mean_without_screening() -> None:
    settings = run_settings(SimulationOptions(out=Path("x"), undefended=True))
    config = settings.engine_config(run_id=RunId("r"), columns=8, train_sequences=100)
    assert config.rule == "mean"
    assert not config.clip_to_median
    assert not config.screening.enabled


def test_a_rule_can_be_chosen_and_a_wrong_one_is_told_at_once() -> None:
    settings = run_settings(SimulationOptions(out=Path("x"), rule="nnm+krum"))
    assert settings.engine["rule"] == "nnm+krum"
    with pytest.raises(ConfigError, match=r"unknown rule 'krumm'; expected mean, .* `nnm\+` or `bucketing\+`"):
        SimulationOptions(out=Path("x"), rule="krumm")


def test_a_single_worker_is_enough() -> None:
    table = run_settings(SimulationOptions(out=Path("x"), workers=1)).engine
    assert (table["replicas"], table["quorum"], table["min_workers"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": 0}, "at least 1 worker"),
        ({"rounds": 0}, "at least 1 round"),
        ({"dropout": 1.0}, "probability"),
        ({"workers": 2, "byzantine": 3}, "3 Byzantine workers of 2"),
        ({"attack": "bribe"}, "sign-flip"),
        ({"engine": {"max_rounds": 3}}, "--rounds"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SimulationOptions(out=Path("x"), **change)  # type: ignore[arg-type]


def test_an_earlier_simulation_is_cleaned_away(tmp_path: Path) -> None:
    clean_folder(tmp_path / "out")
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "checkpoint").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    clean_folder(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["notes.txt", "work"]
    assert [path.name for path in (tmp_path / "out" / "work").iterdir()] == [MARKER]


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no simulation left there"):
        clean_folder(tmp_path)
    assert (tmp_path / "work" / "thesis.txt").exists()
