"""`barnraise coordinator calibrate`: what it measures on a tiny run, and that it sets what it says, journalled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise.calibration import Calibration, MeasuredDistance, tolerance_for
from barnraise.cli.app import run as barnraise
from coordinator.run.changing import setting_rows
from coordinator.run.folder import RunFolder

OPTIONS = ("--rounds", "9", "--sequence-length", "16", "--inner-steps", "2", "--batch", "3", "--codec", "fp32")
Answer = Callable[..., tuple[int, str]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    def run_here(*arguments: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        code = barnraise([str(argument) for argument in arguments])
        return code, capsys.readouterr().out

    return run_here


@pytest.fixture
def run_folder(tmp_path: Path, answer: Answer) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        (text / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    assert answer("coordinator", "init", tmp_path / "run", "--data", text, *OPTIONS)[0] == 0
    return tmp_path / "run"


def tolerance_of(folder: Path) -> Any:
    return next(row.next_value for row in setting_rows(RunFolder.open(folder)) if row.key == "audits.tolerance")


def test_it_says_which_tolerance_follows_and_sets_it(run_folder: Path, answer: Answer) -> None:
    before = tolerance_of(run_folder)
    code, told = answer("coordinator", "calibrate", run_folder, "--leases", "1", "--json")
    found = json.loads(told)
    assert (code, found["set"], tolerance_of(run_folder)) == (0, None, before), "asked only"
    honest = {one["what"]: one for one in found["honest"]}
    assert honest["whole batch, 1 thread"]["trunk"] == 0.0, "on one machine it is the same bits"
    assert honest["2 at a time, 1 thread"]["trunk"] > 0.0, "a batch that is cut is rounded otherwise"
    assert found["farthest_honest"] < 1e-3 < found["nearest_lie"]
    bf16 = honest["whole batch, 1 thread, bf16"]
    assert bf16["trunk"] > 100 * found["farthest_honest"]
    assert not bf16["counts"]
    assert found["tolerance"] == tolerance_for(found["farthest_honest"], found["nearest_lie"])

    code, told = answer("coordinator", "calibrate", run_folder, "--leases", "1", "--set", "--json")
    again = json.loads(told)
    assert (code, again["tolerance"]) == (0, found["tolerance"]), "the same leases, so the same answer"
    assert again["set"]["value"] == found["tolerance"] == tolerance_of(run_folder)
    assert not again["set"]["served"]


def test_it_shows_people_both_margins_and_the_command(run_folder: Path, answer: Answer) -> None:
    code, told = answer("coordinator", "calibrate", run_folder, "--leases", "1", "--steps", "1")
    assert code == 0
    assert "learning rate 2 % higher" in told
    assert f"barnraise coordinator set {run_folder} audits.tolerance" in told
    assert "audits.tolerance is now: 0.02" in told


def test_where_lies_hide_in_rounding_nothing_is_set(run_folder: Path, answer: Answer) -> None:
    options = ("--leases", "1", "--with-bf16", "--set", "--json")
    code, told = answer("coordinator", "calibrate", run_folder, *options)
    found = json.loads(told)
    assert (code, found["holds"], found["set"]) == (1, False, None)
    assert tolerance_of(run_folder) == 0.02


def test_a_lease_longer_than_the_data_is_refused(run_folder: Path, answer: Answer) -> None:
    assert answer("coordinator", "calibrate", run_folder, "--steps", "1000000")[0] == 2


@pytest.mark.parametrize(
    ("honest", "lie", "expected"), [(0.0, 0.02, 0.002), (1e-6, 0.0213, 0.0022), (0.001, 0.0213, 0.01), (0, 0, 1e-6)]
)
def test_honest_work_comes_first(honest: float, lie: float, expected: float) -> None:
    assert tolerance_for(honest, lie) == pytest.approx(expected)


def test_margins_are_finite_where_nothing_differs() -> None:
    same = MeasuredDistance(what="same", trunk=0.0, columns=0.0, counts=True)
    lie = MeasuredDistance(what="lie", trunk=0.02, columns=0.03, counts=True)
    found = Calibration(
        run_id="r",
        version=0,
        device="cpu",
        optimizer="muon",
        codec="fp32",
        inner_steps=1,
        leases=1,
        honest=(same,),
        lies=(lie,),
        tolerance=0.003,
        tolerance_now=0.02,
    )
    assert found.margins(0.003) == (pytest.approx(30_000), pytest.approx(10))
