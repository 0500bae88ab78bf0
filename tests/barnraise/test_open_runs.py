"""An open run begins only with somebody to vouch for strangers, and every status says what is computed again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from barnraise.cli.app import run as barnraise
from coordinator.run.folder import RunFolder
from protocol.joinlink import JoinLink
from tests.served import write_text

Answer = Callable[..., tuple[int, str, str]]

NO_AUDITS = ["--set", "audits.budget=0"]
BY_OTHERS = ["--set", "audits.by_coordinator=false"]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command here; its exit code, output and errors, each on one line."""

    def run_here(*arguments: str | Path) -> tuple[int, str, str]:
        code = barnraise([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, " ".join(told.err.split())

    return run_here


@pytest.fixture
def init(tmp_path: Path, answer: Answer) -> Answer:
    """`coordinator init` of a small run, which is in `tmp_path / "run"`."""
    text = tmp_path / "text"
    text.mkdir()
    write_text(text)

    def begin(*options: str) -> tuple[int, str, str]:
        data = ["--data", text, "--sequence-length", "32"]
        return answer("coordinator", "init", tmp_path / "run", *data, *options)

    return begin


@pytest.mark.parametrize(("steps", "told"), [("10", False), ("200", True)])
def test_leases_too_long_to_be_decided_are_told_at_the_beginning_and_when_they_become_so(
    tmp_path: Path, init: Answer, answer: Answer, steps: str, told: bool
) -> None:
    code, _, errors = init(
        "--set", "audits.budget=1", "--set", f"inner.inner_steps={steps}", "--set", "inner.batch_sequences=1"
    )
    assert (code, "audits.decisive_steps" in errors) == (0, told)
    run = tmp_path / "run"
    assert ("audits.decisive_steps" in answer("status", run)[1]) is told
    assert "audits.decisive_steps" not in answer("coordinator", "set", run, "quorum", "2")[2]
    assert "audits.decisive_steps" in answer("coordinator", "set", run, "inner.inner_steps", "100")[2]


def budget_of(run: Path) -> float | None:
    engine = tomllib.loads((run / "settings.toml").read_text("utf-8"))["engine"]
    return engine.get("audits", {}).get("budget")


def test_an_open_run_computes_leases_again_and_a_closed_one_says_that_it_does_not(
    tmp_path: Path, init: Answer, answer: Answer
) -> None:
    assert init("--open")[0] == 0
    run = tmp_path / "run"
    assert budget_of(run) == 1.0
    told = answer("status", run)[1]
    assert "leases are computed again by the coordinator or trusted workers, 1 a round at most" in told
    run.rename(tmp_path / "open")
    assert init()[0] == 0
    assert budget_of(run) is None
    assert "none: no lease is computed again (audits.budget is 0)" in answer("status", run)[1]


@pytest.mark.parametrize("nobody", [NO_AUDITS, BY_OTHERS])
def test_an_open_run_in_which_nobody_vouches_for_strangers_is_refused_with_what_to_do(
    tmp_path: Path, init: Answer, answer: Answer, nobody: list[str]
) -> None:
    code, _, said = init("--open", *nobody)
    assert code == 2
    for way_out in ("audits.budget", "--founders 1", "--accept-unaudited"):
        assert way_out in said
    assert not (tmp_path / "run").exists()
    assert init("--open", *nobody, "--accept-unaudited")[0] == 0
    assert "nobody vouches for what strangers send" in answer("status", tmp_path / "run")[1]


def test_a_codec_that_missed_its_goal_needs_a_word_that_it_is_wanted(tmp_path: Path, init: Answer) -> None:
    code, _, said = init("--codec", "top_k", "--set", "rule=mean")
    assert (code, "--accept-lossy" in said) == (2, True)
    assert not (tmp_path / "run").exists()
    assert init("--codec", "top_k", "--set", "rule=mean", "--accept-lossy")[0] == 0


def test_founders_get_links_of_their_own_at_once(tmp_path: Path, init: Answer) -> None:
    code, out, _ = init("--open", *NO_AUDITS, "--founders", "2", "--json")
    assert code == 0
    invites = [JoinLink.parse(text).invite or "" for text in json.loads(out)["join_links"]]
    registry = RunFolder.open(tmp_path / "run").registry()
    members = [registry.redeem(one, bytes([n]) * 32, f"founder {n}", now_s=0.0) for n, one in enumerate(invites)]
    registry.close()
    assert [member.trusted for member in members] == [True, True]


def test_one_link_for_many_is_for_no_founders(tmp_path: Path, init: Answer, answer: Answer) -> None:
    assert init("--open")[0] == 0
    invite = ["coordinator", "invite", tmp_path / "run", "--uses", "50"]
    code, out, _ = answer(*invite)
    assert (code, len(out.split())) == (0, 1)
    code, _, said = answer(*invite, "--trusted")
    assert code == 2
    assert "founders have a link each" in said


def test_a_founders_link_needs_a_port_to_name(tmp_path: Path, init: Answer) -> None:
    code, _, said = init("--founders", "1", "--port", "0")
    assert code == 2
    assert "--port" in said
    assert not (tmp_path / "run").exists()
