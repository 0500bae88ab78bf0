"""An attack in a file of one's own: found by its path and name, or refused with what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from simulator.adversaries.byzfl import BYZFL_ATTACKS, byzfl_module
from simulator.adversaries.files import attack_named, whole_name
from simulator.processes.options import SimulationOptions
from tests.simulator import made_up_attack

MADE_UP = Path(made_up_attack.__file__)
NONE = """
from simulator.adversaries.attack import Attack
half = 0.5
BACKWARDS = Attack(does="nothing")
"""


def test_an_attack_is_found_in_its_file() -> None:
    found = attack_named(f"{MADE_UP}:ROW")
    assert found.does == made_up_attack.ROW.does
    assert found.forge is not None


def test_the_command_takes_it_and_names_it_so_that_another_process_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MADE_UP.parent)
    options = SimulationOptions(out=Path("x"), byzantine=1, attack=f"{MADE_UP.name}:ROW")
    assert options.attack == f"{MADE_UP}:ROW" == whole_name(f"{MADE_UP.name}:ROW")
    assert whole_name("sign-flip") == "sign-flip"


@pytest.mark.parametrize(
    ("content", "row", "message"),
    [
        (None, "ROW", "there is no such file"),
        (NONE, "FORWARDS", r"there is no `FORWARDS` in it; it has BACKWARDS"),
        (NONE, "half", r"`half` is float, not Attack in it; it has BACKWARDS"),
        ("", "ROW", "there is no `ROW` in it; it has none: see CONTRIBUTING.md"),
        ("import no_such_module_at_all", "ROW", "the file does not load: ModuleNotFoundError"),
        ("def f(:", "ROW", "the file does not load: SyntaxError"),
        ("raise SystemExit(3)", "ROW", "the file does not load: SystemExit"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: str | None, row: str, message: str) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        attack_named(f"{path}:{row}")
    with pytest.raises(ConfigError, match=message):
        SimulationOptions(out=Path("x"), byzantine=1, attack=f"{path}:{row}")


def test_an_unknown_attack_of_byzfl_is_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"byzfl:NoSuch.*byzfl:ALittleIsEnough"):
        attack_named("byzfl:NoSuch")


def test_every_attack_of_byzfl_that_looks_at_vectors_is_there_or_named_as_left_out() -> None:
    theirs = {name for name, value in vars(byzfl_module("attacks")).items() if isinstance(value, type)}
    left_out = {"Optimal_InnerProductManipulation", "Optimal_ALittleIsEnough", "LabelFlipping"}
    ours = {name.removeprefix("byzfl:") for name in BYZFL_ATTACKS}
    assert {name for name in theirs if name not in {"Average", "Clipping"}} == ours | left_out
