"""How a worker stands: a sentence for every state, what is remembered, and a log that stays small."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from worker import standing as module
from worker.policy import Permission
from worker.progress import QuietReporter
from worker.standing import LOG_FILE, WorkerStanding, log_lines, sentence
from worker.states import State

YES = Permission(allowed=True)
BATTERY = Permission(allowed=False, reason="on battery", stops_training=True)
METERED = Permission(allowed=False, reason="the connection is metered")


def heard() -> WorkerStanding:
    standing = WorkerStanding(QuietReporter())
    standing.say("lease_granted", "round 3: …", lease="r3.1", round=3)
    for step in (1, 2, 3):
        standing.step(step, 10, 2.5, 800.0)
    assert standing.present is not None
    standing.present.begun_s = 100.0
    return standing


@pytest.mark.parametrize(
    ("state", "permission", "facts", "said"),
    [
        (State.OPENING, YES, {}, "looking for the coordinator at here:1"),
        (State.IDLE, YES, {}, "waiting for work"),
        (State.IDLE, YES, {"sends": True}, "waiting for work; sending what it finished before"),
        (State.FETCHING, YES, {}, "fetching what the next lease needs"),
        (State.HELD_UP, YES, {"sends": True}, "sending what it finished"),
        (State.PAUSED, BATTERY, {}, "paused: on battery"),
        (State.PAUSED, BATTERY, {"holds": True}, "paused: on battery; its lease waits at the last saved step"),
        (State.OPENING, BATTERY, {}, "paused: on battery"),
        (State.RETURNING, BATTERY, {}, "handing a lease back; no new work after that: on battery"),
        (State.LEAVING, YES, {}, "leaving"),
    ],
)
def test_a_sentence_says_what_why_and_until_when(
    state: State, permission: Permission, facts: dict[str, bool], said: str
) -> None:
    assert sentence(state, permission, WorkerStanding(QuietReporter()), address="here:1", **facts) == said


def test_a_full_disk_is_told_for_as_long_as_it_is() -> None:
    standing = WorkerStanding(QuietReporter())
    standing.say("no_room", "paused: the disk is full", reason="the disk is full")
    assert sentence(State.FETCHING, YES, standing, address="") == "paused: the disk is full"
    standing.say("fetched", "fetched 3 MiB")
    assert sentence(State.FETCHING, YES, standing, address="") == "fetching what the next lease needs"


def test_in_training_it_says_how_far_and_how_long() -> None:
    said = sentence(State.TRAINING, YES, heard(), address="", now_s=120.0)
    assert said == "training: step 3 of 10, loss 2.500, 800 tokens/s, about 70 s left"
    said = sentence(State.TRAINING, METERED, heard(), address="", now_s=120.0)
    assert said.endswith("left; no new work after that: the connection is metered")
    assert sentence(State.TRAINING, BATTERY, heard(), address="").startswith("paused: on battery; its lease waits")
    assert "first step" in sentence(State.TRAINING, YES, WorkerStanding(QuietReporter()), address="")


def test_the_coordinators_words_and_trouble_are_remembered() -> None:
    standing = WorkerStanding(QuietReporter())
    standing.say("waiting", "waiting: two are training", reason="two are training")
    assert sentence(State.IDLE, YES, standing, address="") == "waiting: two are training"
    standing.say("unavailable", "Nobody answers at here:1.")
    assert sentence(State.OPENING, YES, standing, address="") == "Nobody answers at here:1."
    standing.say("planned", "all columns fit")
    assert "measuring" in sentence(State.OPENING, YES, standing, address="x")
    standing.say("session_opened", "connected")
    assert sentence(State.OPENING, YES, standing, address="x") == "looking for the coordinator at x"


def test_verdicts_are_counted_and_the_last_ones_kept() -> None:
    standing = WorkerStanding(QuietReporter())
    for number in range(7):
        outcome = "rejected" if number == 3 else "accepted"
        standing.say(f"submission_{outcome}", f"work {number}", lease=f"r{number}")
    assert (standing.accepted, standing.rejected) == (6, 1)
    assert [verdict["lease"] for verdict in standing.verdicts] == ["r2", "r3", "r4", "r5", "r6"]


def test_the_log_is_private_bounded_and_outlives_torn_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 2000)
    standing = WorkerStanding(QuietReporter(), tmp_path / LOG_FILE)
    for number in range(100):
        standing.say("note", f"line {number}")
    assert stat.S_IMODE((tmp_path / LOG_FILE).stat().st_mode) == 0o600
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"torn\n[]\n{"text": 3}\n')
    assert [entry["text"] for entry in log_lines(tmp_path, 5)] == ["line 98", "line 99"]


def test_a_disk_that_takes_no_log_costs_nothing_else(tmp_path: Path) -> None:
    WorkerStanding(QuietReporter(), tmp_path / "nowhere" / LOG_FILE).say("note", "heard all the same")
