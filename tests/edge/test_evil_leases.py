"""The worker's edge: a coordinator that asks for absurd things, or says what would steer a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from protocol.v1 import barnraise_pb2 as pb
from tests.edge.evil_coordinator import Meeting, field


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e30},
        {"learning_rate": float("nan")},
        {"adam_beta2": 1.5},
        {"clip_norm": -1.0},
        {"optimizer": "sgd"},
        {"muon_learning_rate": 1e9},
        {"muon_momentum": 1.0},
        {"weight_decay": float("inf")},
        {"inner_steps": 2**31},
        {"batch_sequences": 2**31},
        {"data__count": 2**40},
        {"ttl_s": 1e12},
        {"columns": [0, 10**6]},
        {"columns": [1, 0]},
        {"columns": list(range(8)) * 2},
        {"lease_id": "../../etc/passwd\n"},
    ],
)
async def test_an_absurd_lease_is_refused_and_named(meeting: Meeting, changes: dict[str, Any]) -> None:
    meeting.evil.bent["AcquireLease"] = field(**{f"lease__{name}": value for name, value in changes.items()})
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert next(iter(changes)).replace("__", ".") in ended.reason
    assert "Download" not in meeting.evil.asked


async def test_being_told_to_wait_no_time_for_ever_does_not_spin(meeting: Meeting) -> None:
    for pause_s in (0.0, -1.0, float("nan")):
        meeting.evil.bent["AcquireLease"] = lambda _, s=pause_s: pb.AcquireLeaseReply(wait=pb.Wait(retry_after_s=s))
        meeting.evil.asked.clear()
        task = meeting.start()
        await asyncio.sleep(0.4)
        assert 1 <= meeting.evil.asked.count("AcquireLease") <= 8
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_heartbeat_interval_that_is_none_is_replaced(meeting: Meeting) -> None:
    meeting.evil.bent["AcquireLease"] = lambda _: pb.AcquireLeaseReply(wait=pb.Wait(retry_after_s=60.0))
    for interval_s in (0.0, -1.0, float("nan")):
        session = meeting.evil._OpenSession(pb.OpenSessionRequest())
        session.heartbeat_interval_s = interval_s
        meeting.evil.bent["OpenSession"] = lambda _, s=session: s
        meeting.evil.asked.clear()
        meeting.told.events.clear()
        task = meeting.start()
        await meeting.saw("waiting")
        await asyncio.sleep(0.4)
        assert 1 <= meeting.evil.asked.count("Heartbeat") <= 12
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_it_says_cannot_steer_the_terminal(meeting: Meeting, capsys: pytest.CaptureFixture[str]) -> None:
    from worker.progress import make_reporter

    evil_text = "\x1b]0;owned\x07\x1b[2J\r\nfake line\u202e"
    verdicts = [pb.Verdict(lease_id=evil_text, outcome=2, reason=evil_text)] * 5000
    meeting.evil.bent["AcquireLease"] = lambda _: pb.AcquireLeaseReply(
        over=pb.RunOver(reason=evil_text), verdicts=verdicts
    )
    meeting.evil.bent["OpenSession"] = field(run__name=evil_text)
    reporter = make_reporter("plain")
    meeting.told = reporter  # type: ignore[assignment]
    ended = await meeting.end()
    reporter.say("raw", evil_text)
    reporter.say("end", ended.reason)
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert len(shown.splitlines()) < 100
    assert all(character.isprintable() for line in shown.split("\n") for character in line)
