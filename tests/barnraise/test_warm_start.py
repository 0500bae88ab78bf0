"""Training in one place: stopped and taken up it is the same training, and its checkpoint begins a run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from barnraise.cli.app import run
from barnraise.cli.pretrain import _multiply
from barnraise.pretrain.central import cosine
from barnraise.pretrain.warm_start import Interrupted, WarmStart, warm_start
from coordinator.datasets import Dataset, prepare
from coordinator.run.folder import RunFolder
from protocol.errors import ConfigError

WANTED = WarmStart(steps=5, batch_sequences=2, sequence_length=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare([str(corpus)], tmp_path_factory.mktemp("data") / "prepared")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stopped_after", [0, 1, 4])
def test_stopped_and_taken_up_it_is_the_same_training(dataset: Dataset, tmp_path: Path, stopped_after: int) -> None:
    whole = warm_start(WANTED, dataset, tmp_path / "whole")
    done: list[int] = []
    stopping = {
        "on_step": lambda step, _loss: done.append(step),
        "should_stop": lambda: len(done) == stopped_after,
    }
    with pytest.raises(Interrupted):
        warm_start(WANTED, dataset, tmp_path / "cut", **stopping)  # type: ignore[arg-type]
    assert not (tmp_path / "cut" / "config.json").exists()
    resumed = warm_start(WANTED, dataset, tmp_path / "cut", on_step=lambda step, _loss: done.append(step))
    assert done == [1, 2, 3, 4, 5]
    assert resumed.val_loss == whole.val_loss
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "cut" / ".partial").exists()


def test_in_micro_batches_it_is_the_same_up_to_rounding(dataset: Dataset, tmp_path: Path) -> None:
    whole = warm_start(WANTED, dataset, tmp_path / "whole")
    cut = warm_start(dataclasses.replace(WANTED, micro_batch=1), dataset, tmp_path / "cut")
    assert cut.val_loss == pytest.approx(whole.val_loss, rel=1e-5)


def test_what_matrices_are_multiplied_in_is_named(dataset: Dataset, tmp_path: Path) -> None:
    """On a GPU bf16 by default; weights stay fp32, so what comes out is near."""
    whole = warm_start(WANTED, dataset, tmp_path / "whole")
    rounded = warm_start(dataclasses.replace(WANTED, multiply="bf16"), dataset, tmp_path / "bf16")
    assert rounded.val_loss != whole.val_loss
    assert rounded.val_loss == pytest.approx(whole.val_loss, rel=0.02)
    assert _multiply("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ConfigError, match="auto, fp32 or bf16"):
        _multiply("fp16", torch.device("cpu"))


def test_what_was_saved_for_other_settings_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        warm_start(WANTED, dataset, tmp_path / "out", should_stop=lambda: True)
    with pytest.raises(ConfigError, match=r"out/\.partial holds a training of other settings"):
        warm_start(dataclasses.replace(WANTED, seed=1), dataset, tmp_path / "out")


def test_a_folder_that_exists_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        warm_start(WANTED, dataset, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_command_makes_a_checkpoint_that_begins_a_run(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "checkpoint"
    sizes = ["--steps", "2", "--batch", "2", "--sequence-length", "16", "--device", "cpu"]
    assert run(["pretrain", "--out", str(out), "--data", str(dataset.folder), *sizes, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 2
    assert math.isfinite(told["val_loss"])
    again = ["--checkpoint", str(out), "--out", str(tmp_path / "further"), "--data", str(dataset.folder)]
    assert run(["pretrain", *again, *sizes, "--json"]) == 0
    start = ["coordinator", "init", str(tmp_path / "run"), "--checkpoint", str(out), "--data", str(dataset.folder)]
    assert run(start) == 0
    assert RunFolder.open(tmp_path / "run").settings().checkpoint == str(out)


@pytest.mark.parametrize("steps", [1, 2, 100, 1000])
def test_the_rate_rises_to_its_peak_and_ends_at_its_share(steps: int) -> None:
    rate = cosine(0.1, steps)
    rates = [rate(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0, rel=0.05)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 if steps > 1 else 1.0)
