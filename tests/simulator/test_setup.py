"""Options become settings; the folder is cleaned of what a simulation left, and of nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from coordinator.beginning import GOING_ON
from coordinator.engine.config import InnerRecipe
from moe.export import export_checkpoint
from moe.full import initial_blocks
from moe.layout import layout
from moe.presets import preset
from protocol.errors import ConfigError
from protocol.ids import RunId
from simulator.processes.live import SilentDisplay
from simulator.processes.options import SimulationOptions
from simulator.processes.outfolder import MARKER, OutFolder, next_free
from simulator.processes.setup import recipe_of, run_settings
from simulator.processes.swarm import run_simulation
from tests.killing import every_kill


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
        ({"dropout": 1.0}, "--dropout 1: give a probability from 0 to below 1"),
        ({"dropout": -0.5}, "--dropout -0.5: give a probability from 0 to below 1"),
        ({"dropout": float("nan")}, "--dropout nan"),
        ({"attack_strength": -1.0}, "--attack-strength -1"),
        ({"attack_strength": float("inf")}, "--attack-strength inf"),
        ({"workers": 2, "byzantine": 3}, "3 Byzantine workers of 2"),
        ({"workers": 3, "byzantine": 2, "trusted": 2}, "--trusted 2: at most all honest workers, which are 1"),
        ({"attack": "bribe"}, "sign-flip"),
        ({"engine": {"max_rounds": 3}}, "--rounds"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SimulationOptions(out=Path("x"), **change)  # type: ignore[arg-type]


def a_checkpoint(folder: Path) -> Path:
    config = preset("tiny")
    cut = layout(config, "frozen")
    export_checkpoint(initial_blocks(config, cut, 1), cut, folder)
    return folder


def test_a_swarm_goes_on_from_a_checkpoint_at_the_rates_that_init_gives_it(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path / "checkpoint")
    options = SimulationOptions(out=tmp_path / "out", checkpoint=checkpoint, inner=InnerRecipe(inner_steps=5))
    settings = run_settings(options)
    assert (settings.preset, settings.checkpoint) == (None, str(checkpoint))
    inner = recipe_of(options)
    assert {name: getattr(inner, name) for name in GOING_ON} == GOING_ON
    assert inner.inner_steps == 5
    with pytest.raises(ConfigError, match="not with both"):
        SimulationOptions(out=Path("x"), preset="tiny", checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preset": "gigantic"}, "no preset is called 'gigantic'; there are tiny"),
        ({"data": "/nonexistent"}, "no such file or folder"),
        ({"checkpoint": Path("/nonexistent")}, "is not a checkpoint folder"),
        ({"sequence_length": 131_072}, "the model reads at most"),
        ({"columns_per_worker": 9}, "at most 8 columns"),
        ({"columns_per_worker": 1, "residency": "absent"}, "holds 2 to 8 columns"),
        ({"residency": "frosty"}, "frozen"),
        ({"codec": "fp64"}, "bf16"),
        ({"engine": {"quorom": 2}}, "known are"),
    ],
)
def test_what_could_not_begin_is_said_before_anything_is_touched(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    options = SimulationOptions(out=tmp_path / "deep" / "out", **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says), SilentDisplay() as display:
        run_simulation(options, display)
    assert list(tmp_path.iterdir()) == []


def test_data_that_turns_out_to_be_nothing_leaves_nothing_behind_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = a_result(tmp_path / "out")
    for folder, replace in ((tmp_path / "new", False), (out, True)):
        options = SimulationOptions(out=folder, data=str(tmp_path / "empty"))
        with pytest.raises(ConfigError, match="found 0 different documents"), SilentDisplay() as display:
            run_simulation(options, display, replace=replace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]
    assert json.loads((out / "report.json").read_text()) == {"precious": True}
    assert (out / "work" / MARKER).exists()


def a_result(out: Path) -> Path:
    """What a finished simulation leaves."""
    folder = OutFolder(out)
    folder.begin()
    (out / "report.json").write_text('{"precious": true}')
    (out / "checkpoint").mkdir()
    (out / "notes.txt").write_text("mine")
    folder.close()
    return out


def test_a_result_is_replaced_only_where_that_is_asked_for_and_only_once_the_new_one_has_begun(tmp_path: Path) -> None:
    out = a_result(tmp_path / "out")
    folder = OutFolder(out)
    with pytest.raises(ConfigError, match=r"\(report\.json, checkpoint, work\).*--force"):
        folder.begin()
    assert folder.begin(replace=True) == ("report.json", "checkpoint", "work")
    assert [path.name for path in (out / "work").iterdir()] == [MARKER]
    folder.give_up()
    assert (out / "report.json").exists()
    assert (out / "checkpoint").is_dir()
    folder.begin(replace=True)
    folder.settle()
    folder.close()
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "work"]


def test_a_result_is_not_replaced_by_a_simulation_that_begins_with_it(tmp_path: Path) -> None:
    out = a_result(tmp_path / "out")
    (out / "checkpoint").rmdir()
    options = SimulationOptions(out=out, checkpoint=a_checkpoint(out / "checkpoint"))
    with pytest.raises(ConfigError, match=r"lies in .*, which --force replaces"), SilentDisplay() as display:
        run_simulation(options, display, replace=True)
    assert (out / "report.json").exists()


def test_killed_at_any_step_of_its_beginning_the_result_comes_back_or_the_new_one_has_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def begin() -> None:
        folder = OutFolder(out)
        folder.begin(replace=True)
        (out / "work" / "new").touch()
        folder.settle()

    def look(step: int) -> None:
        if (out / "work" / "new").exists() and not (out / ".former").exists():
            assert not (out / "report.json").exists(), step
        else:
            with pytest.raises(ConfigError, match="--force"):
                OutFolder(out).begin()
            assert (out / "report.json").exists(), step
            assert (out / "checkpoint").is_dir(), step
            assert not (out / "work" / "new").exists(), step
        assert (out / "notes.txt").read_text() == "mine", step
        shutil.rmtree(out)
        a_result(out)

    a_result(out)
    assert every_kill(begin, look) > 7


def test_two_simulations_never_work_in_one_folder(tmp_path: Path) -> None:
    first = OutFolder(tmp_path / "out")
    first.begin()
    with pytest.raises(ConfigError, match="another simulation works in"):
        OutFolder(tmp_path / "out").begin(replace=True)
    first.close()
    OutFolder(tmp_path / "out").begin(replace=True)


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no simulation left there"):
        OutFolder(tmp_path).begin(replace=True)
    assert (tmp_path / "work" / "thesis.txt").exists()


def test_without_a_folder_of_its_own_a_demonstration_takes_the_next_free_name(tmp_path: Path) -> None:
    assert next_free(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").touch()
    assert next_free(tmp_path / "demo") == tmp_path / "demo-3"
