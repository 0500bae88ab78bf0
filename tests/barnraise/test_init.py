"""`coordinator init` on a terminal asks what it must; the settings it writes say what they mean; `coordinator plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from barnraise.cli import questions
from barnraise.cli.app import run
from coordinator.run.folder import RunFolder
from coordinator.settings_reference import commented, entries

SMALL = ("--set", "inner.inner_steps=2", "--set", "inner.batch_sequences=2")


def answers(monkeypatch: pytest.MonkeyPatch, *given: str) -> list[str]:
    """Somebody at a terminal who says this; what they were asked."""
    asked, left = [], list(given)

    def prompt(question: str, default: str, **_: Any) -> str:
        asked.append(question)
        return left.pop(0) or default

    monkeypatch.setattr(questions, "can_ask", lambda: True)
    monkeypatch.setattr(typer, "prompt", prompt)
    return asked


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text("".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(1200)))
    return path


def test_it_asks_for_what_was_not_given(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answers(monkeypatch, "", "no such file", str(text), "run.example.org")
    folder = tmp_path / "run"
    assert run(["coordinator", "init", str(folder), "--name", "ours", "--sequence-length", "32", *SMALL]) == 0
    said = capsys.readouterr().out
    assert f"barnraise coordinator run {folder}" in said
    assert f"barnraise coordinator invite {folder}" in said
    assert [question.split(":")[0].split(".")[0] for question in asked][:2] == ["Model", "Text to train on"]
    assert len(asked) == 4, "the name was given"
    made = RunFolder.open(folder).settings()
    assert (made.preset, made.name, made.host, made.advertised_hosts) == (
        "tiny",
        "ours",
        "0.0.0.0",
        ("run.example.org",),
    )
    written = (folder / "settings.toml").read_text()
    assert "# What people see. (edit it here; it counts from the next start on)\nname = " in written
    # What it will take, before anybody joins.
    assert run(["coordinator", "plan", str(folder), "--workers", "2", "--json"]) == 0
    two = json.loads(capsys.readouterr().out)
    assert run(["coordinator", "plan", str(folder), "--workers", "4", "--price", "2", "--watts", "100", "--json"]) == 0
    four = json.loads(capsys.readouterr().out)
    for less, more in zip(two["classes"], four["classes"], strict=True):
        assert more["tokens_a_day"] == pytest.approx(2 * less["tokens_a_day"])
        assert more["kwh_a_day"] == pytest.approx(2 * less["kwh_a_day"] * 100 / less["watts"])
        assert more["money_a_day"] == pytest.approx(2 * more["kwh_a_day"])
        assert less["up_bytes"] == more["up_bytes"] > 0
    assert run(["coordinator", "plan", str(folder), "--line", "fast"]) == 2
    assert run(["coordinator", "plan", str(folder)]) == 0
    assert "Reckoned, not measured" in capsys.readouterr().out


def test_nobody_is_asked_who_gave_a_model_or_sits_at_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch)
    assert run(["coordinator", "init", str(tmp_path / "run"), "--preset", "tiny", "--data", "no such file"]) == 2
    monkeypatch.setattr(questions, "can_ask", lambda: False)
    assert run(["coordinator", "init", str(tmp_path / "run"), "--data", "no such file"]) == 2
    assert asked == []


def test_every_setting_that_is_written_is_explained() -> None:
    lacking = [one.key for one in entries() if not one.meaning]
    assert commented("[engine.inner]\ninner_steps = 3\n").splitlines()[-1] == "inner_steps = 3"
    assert commented("[engine.inner]\ninner_steps = 3\n").count("#") >= 2
    assert len(lacking) < len(entries()) / 10, lacking
