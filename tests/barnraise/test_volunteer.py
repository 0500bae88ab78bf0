"""A volunteer's commands where no worker runs, and what they leave for the next one; moments and spans as people write.

Where one runs: tests/worker/test_control.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from barnraise.cli import view, volunteer
from barnraise.cli.app import run
from protocol.amounts import parse_moment_s, parse_span_s
from protocol.errors import ConfigError
from worker.disk import worker_lock
from worker.identity import KeyOfRun, KeyOutcome
from worker.progress import QuietReporter
from worker.rules.file import PauseNote, note_pause, noted_pause
from worker.standing import LOG_FILE, WorkerStanding

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "runs" / "abc"
    folder.mkdir(parents=True)
    standing = WorkerStanding(QuietReporter(), folder / LOG_FILE)
    for number in range(5):
        standing.say("note", f"line {number}")
    (folder / "identity.pem").write_text("key")
    (folder / "blocks").mkdir()
    return tmp_path / "home"


def said(home: Path, *words: str) -> list[str]:
    return ["worker", *words, "--home", str(home)]


def test_nobody_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "finish", "leave"):
        assert run(said(home, verb)) == 1
        assert "`barnraise worker run` starts one" in capsys.readouterr().out
    assert run(said(home, "status", "--json")) == 1
    assert json.loads(capsys.readouterr().out) == {"workers": [], "paused_by_you": None}


async def test_silent_is_not_absent(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was stopped: the system takes the connection, and nobody reads what is said."""
    monkeypatch.setattr(volunteer, "ANSWER_S", 0.2)
    monkeypatch.setattr(view, "ANSWER_S", 0.2)
    place = home / "runs" / "abc" / "control" / "socket"
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as silent:
        monkeypatch.chdir(place.parent)  # a socket's path has no room for much
        silent.bind(place.name)
        silent.listen()
        assert await asyncio.to_thread(run, said(home, "status")) == 2
        assert "does not answer within 0 s" in capsys.readouterr().err
        assert await view.asked(home, "status") == [{"says": view.SILENT}]
    assert await view.asked(home, "status") == [], "and now it is absent"


def test_a_pause_waits_for_the_next_worker(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(said(home, "pause")) == 0
    assert noted_pause(home) == PauseNote()
    run(said(home, "status"))
    assert "it would be paused" in capsys.readouterr().out
    assert run(said(home, "pause", "--for", "2h")) == 0
    note = noted_pause(home)
    assert note is not None
    assert note.until_s is not None
    note_pause(home, PauseNote(until_s=1.0))
    capsys.readouterr()
    run(said(home, "status"))
    assert "paused" not in capsys.readouterr().out, "it is over by itself"
    assert run(said(home, "resume")) == 0
    assert noted_pause(home) is None
    for words in (("--for", "soon"), ("--until", "25:00"), ("--for", "2h", "--until", "18:00")):
        assert run(said(home, "pause", *words)) == 2
    assert noted_pause(home) is None


def test_the_log_is_shown_from_its_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(said(home, "logs", "-n", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("line ")[2] for line in lines] == ["3", "4"]
    assert run(said(home, "logs", "--json")) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == "line 0"
    assert run(said(home / "elsewhere", "logs")) == 1


def test_a_purge_deletes_what_runs_left_and_keeps_the_rules(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(said(home, "set", "when.idle_minutes", "5")) == 0
    assert run(said(home, "leave", "--purge")) == 2, "nobody is asked where nobody sits"
    assert (home / "runs" / "abc" / "identity.pem").exists()
    assert run(said(home, "leave", "--purge", "--yes")) == 0
    assert list((home / "runs").iterdir()) == []
    assert (home / "rules.toml").exists()


def test_every_run_is_asked_to_forget_once_nobody_works_there(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(said(home, "leave", "--forget")) == 0
    assert "takes part in no run" in capsys.readouterr().out
    asked: list[tuple[str, bool]] = []

    def outcome(run_id: str, gpu: str, error: ConfigError | None = None) -> KeyOutcome:
        key = KeyOfRun(gpu=gpu, run_id=run_id, run_name="", fingerprint="", worker="", public_key="")
        return KeyOutcome(key=key, error=error)

    failing: list[ConfigError | None] = [None]

    async def left(_: Path, run_there: str, *, forget: bool) -> list[KeyOutcome]:
        lock = worker_lock(home / "runs" / "abc" / "lock")
        lock.acquire()
        lock.release()
        asked.append((run_there, forget))
        return [outcome(run_there[0], ""), outcome(run_there[0], "cuda:1", failing[0])]

    monkeypatch.setattr("worker.identity.left", left)
    monkeypatch.setattr("worker.rejoin.known_runs", lambda *_: [object()])
    links = [SimpleNamespace(address=one, fingerprint="f") for one in ("a:1", "b:2")]
    monkeypatch.setattr("worker.rejoin.links_of", lambda text, *_: links if text == "" else [])
    assert run(said(home, "leave", "--forget", "--json")) == 0
    assert asked == [("a:1/#f", True), ("b:2/#f", True)]
    told = json.loads(capsys.readouterr().out)
    assert told == {"workers": [], "forgotten_by": ["a", "b"], "not_forgotten": []}
    failing[0] = ConfigError("its disk is full")
    assert run(said(home, "leave", "--forget", "--purge", "--yes")) == 1
    said_of_it = capsys.readouterr()
    assert "forgotten by a, b" in said_of_it.out
    assert "cuda:1 in b: its disk is full" in said_of_it.err
    assert (home / "runs" / "abc" / "identity.pem").exists(), "who is not forgotten yet has to ask again"


def test_rules_are_shown_and_set(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(said(home, "set", "when.programs", "steam")) == 0
    assert "when.programs was [] and is [steam]" in capsys.readouterr().out
    assert run(said(home, "rules", "--json")) == 0
    rules = {row["rule"]: row["value"] for row in json.loads(capsys.readouterr().out)["rules"]}
    assert rules["when.programs"] == ["steam"]
    assert run(said(home, "set", "when.nothing", "1")) == 2


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("18:00", "2026-11-27 18:00"),
        ("8:30", "2026-11-28 08:30"),
        ("12:00", "2026-11-28 12:00"),
        ("2026-12-24", "2026-12-24 00:00"),
        ("2026-12-24 18:00", "2026-12-24 18:00"),
    ],
)
def test_a_moment_is_the_next_of_its_kind(text: str, then: str) -> None:
    assert parse_moment_s(text, NOW) == datetime.fromisoformat(then).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("text", ["", "24:00", "18", "18:0", "soon", "2026-11-26", "²:00"])
def test_no_moment(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_moment_s(text, NOW)


def test_spans() -> None:
    assert [parse_span_s(text) for text in ("90s", "30min", "30 m", "2h", "1.5d")] == [90, 1800, 1800, 7200, 129600]
    for text in ("", "2", "h", "-1h", "nan h", "2 weeks", "1e9d"):
        with pytest.raises(ConfigError):
            parse_span_s(text)
