"""`barnraise worker appeal`, against a real coordinator: beside a running session, which it does not end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from barnraise.cli.app import run as run_command
from protocol.joinlink import JoinLink
from worker import appeal as asking
from worker.appeal import appeal
from worker.belongings import RunPlace


@pytest.mark.parametrize(("taken", "code"), [(True, 0), (False, 1)])
def test_the_answer_is_told_and_its_code_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: bool, code: int
) -> None:
    async def answer(lease_id: str, *, run: str, home: Path | None) -> asking.Appeal:
        assert (lease_id, run) == ("r1.1", "here:7")
        return asking.Appeal(gpu="", taken=taken, reason="so it is")

    monkeypatch.setattr(asking, "appeal", answer)
    assert run_command(["worker", "appeal", "r1.1", "--run", "here:7", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"gpu": "", "taken": taken, "reason": "so it is"}


def test_a_machine_that_is_in_no_run_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["worker", "appeal", "--home", str(tmp_path)]) == 2
    assert "not enrolled in any run" in capsys.readouterr().err


def test_what_the_coordinator_says_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, *_: Any) -> None: ...

        def connect(self, _: bytes) -> None: ...

        async def ask_audit(self, lease_id: str) -> Any:
            return SimpleNamespace(taken=True, reason="\x1b[31mred" + "x" * 10_000)

        async def close(self) -> None: ...

    place = SimpleNamespace(enrolment=lambda: SimpleNamespace(ca_pem=""), identity=lambda: None)
    (tmp_path / "enrolment.json").touch()
    there = RunPlace(gpu="", folder=tmp_path, link=JoinLink(host="h", port=1, fingerprint="0" * 64))
    monkeypatch.setattr(asking, "places_of", lambda *_: [there])
    monkeypatch.setattr("worker.home.open_home", lambda *_: place)
    monkeypatch.setattr("worker.client.CoordinatorClient", Client)
    answer = asyncio.run(appeal("", run="", home=tmp_path))
    assert "\x1b" not in answer.reason
    assert len(answer.reason) < 500
