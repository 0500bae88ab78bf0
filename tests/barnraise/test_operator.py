"""An operator's whole day by command line: make a run, serve it, let a worker join by itself, look, stop, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barnraise.cli.app import run as barnraise

ROOT = Path(__file__).parents[2]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands as processes of their own; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "barnraise", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a short command here, where everything heavy is imported already; its output."""

    def run_here(*arguments: str | Path) -> str:
        code = barnraise([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert code == 0, told.out + told.err
        return told.out

    return run_here


def corpus_in(folder: Path) -> Path:
    folder.mkdir()
    for source in sorted((ROOT / "barnraise" / "cli").glob("*.py")):
        (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def test_a_run_from_init_to_export(tmp_path: Path, start: Start, answer: Callable[..., str]) -> None:
    run, links = tmp_path / "run", tmp_path / "links"
    options = ["--data", corpus_in(tmp_path / "text"), "--rounds", "100000", "--sequence-length", "32", "--port", "0"]
    lease = ["--inner-steps", "2", "--batch", "2", "--replicas", "1", "--quorum", "1"]
    more = ["--set", "inner.schedule=linear", "--set", "inner.batch_sequences=1", "--set", "pace_tolerance=0.5"]
    init = ["coordinator", "init", run, *options, *lease, *more, "--if-missing", "--json"]
    made = json.loads(answer(*init))
    assert json.loads(answer(*init)) == made, "a second init left the run alone"
    engine = tomllib.loads((run / "settings.toml").read_text("utf-8"))["engine"]
    assert engine["inner"] == {"inner_steps": 2, "batch_sequences": 1, "schedule": "linear"}, "--set stands above"
    assert (engine["pace_tolerance"], engine["replicas"]) == (0.5, 1)

    coordinator = start("coordinator", "run", run, "--invites", "1", "--invites-to", links)
    worker = start(
        "worker", "join", "--links-from", links, "--home", tmp_path / "home", "--output", "json", "--threads", "1"
    )
    assert worker.stdout is not None
    seen: list[str] = []
    for line in iter(worker.stdout.readline, ""):
        seen.append(line)
        if "submission_accepted" in line:
            break
    assert "submission_accepted" in seen[-1], "".join(seen)

    status = json.loads(answer("status", run, "--json"))
    assert status["run_id"] == made["run_id"]
    assert status["submissions_accepted"] >= 1
    assert "round" in answer("status", run)
    invited = json.loads(answer("coordinator", "invite", run, "--count", "2", "--json"))["join_links"]
    assert len(set(invited)) == 2
    assert all(link.startswith("barnraise://127.0.0.1:") for link in invited)

    answer("coordinator", "stop", run, "--reason", "the day is over")
    told = worker.communicate(timeout=60)[0]
    assert worker.returncode == 0, told
    assert "the day is over" in told
    assert coordinator.wait(timeout=60) == 0

    answer("coordinator", "export", run, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
    assert answer("sample", tmp_path / "model", "--prompt", "def ", "--tokens", "8").startswith("def ")
