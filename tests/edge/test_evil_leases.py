"""The worker's edge: a coordinator that asks for absurd things, or says what would steer a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from protocol.v1 import barnraise_pb2 as pb
from tests.edge.evil_coordinator import Meeting, field

NAN = float("nan")
ABSURD: dict[str, dict[str, Any]] = {
    "learning_rate": {"recipe__learning_rate": 1e30},
    "no number": {"recipe__learning_rate": NAN},
    "router_lr_scale": {"recipe__router_lr_scale": 1e9},
    "warmup_steps": {"recipe__warmup_steps": 2**31},
    "adam_beta1": {"recipe__adam_beta1": 1.0},
    "adam_beta2": {"recipe__adam_beta2": 1.5},
    "adam_eps": {"recipe__adam_eps": 0.0},
    "clip_norm": {"recipe__clip_norm": -1.0},
    "selection_bias_rate": {"recipe__selection_bias_rate": 1e9},
    "optimizer": {"recipe__optimizer": "sgd"},
    "masters": {"recipe__masters": "fp8"},
    "moments": {"recipe__moments": "none"},
    "frozen_dtype": {"recipe__frozen_dtype": "int2"},
    "trunk": {"recipe__trunk": "half"},
    "lora_rank": {"recipe__lora_rank": 2**20},
    "lora_lr_scale": {"recipe__lora_lr_scale": 1e9},
    "clipping": {"recipe__clipping": "none"},
    "muon_learning_rate": {"recipe__muon_learning_rate": 1e9},
    "muon_momentum": {"recipe__muon_momentum": 1.0},
    "weight_decay": {"recipe__weight_decay": 1e9},
    "inner_steps": {"inner_steps": 200_000, "data__count": 400_000},
    "batch_sequences": {"batch_sequences": 100_000, "data__count": 200_000},
    "data count": {"data__count": 2**40},
    "all of the data": {"tokens of the data range": None, "inner_steps": 10_000, "batch_sequences": 10_000,
                        "data__count": 10**8},
    "ttl_s": {"ttl_s": 1e12},
    "no time": {"ttl_s": NAN},
    "no columns": {"columns": []},
    "an invalid column": {"columns": [0, 10**6]},
    "columns out of order": {"columns": [1, 0]},
    "too many columns": {"columns": list(range(8)) * 2},
    "lease_id that is a path": {"lease_id": "../../etc/passwd\n"},
    "lease_id without end": {"lease_id": "r" * 65},
    "no lease_id": {"lease_id": ""},
}  # fmt: skip
"""Each is within every other bound, so that only the one that it names refuses it."""


@pytest.mark.parametrize("changes", ABSURD.values(), ids=ABSURD)
async def test_an_absurd_lease_is_refused_and_named(meeting: Meeting, changes: dict[str, Any]) -> None:
    named = next(iter(changes)).removeprefix("recipe__").replace("__", ".")
    changes = {name: value for name, value in changes.items() if value is not None}
    meeting.evil.bent["AcquireLease"] = field(**{f"lease__{name}": value for name, value in changes.items()})
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert f"sent {named} = " in ended.reason
    assert "Download" not in meeting.evil.asked


def _always(reply: Any) -> Callable[[Any], Any]:
    return lambda _: reply


async def test_being_told_to_wait_no_time_for_ever_does_not_spin(meeting: Meeting) -> None:
    for pause_s in (0.0, -1.0, float("nan")):
        meeting.evil.bent["AcquireLease"] = _always(pb.AcquireLeaseReply(wait=pb.Wait(retry_after_s=pause_s)))
        meeting.evil.asked.clear()
        task = meeting.start()
        async with asyncio.timeout(10):
            while "AcquireLease" not in meeting.evil.asked:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)
        assert meeting.evil.asked.count("AcquireLease") <= 8
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_invalid_heartbeat_interval_is_replaced(meeting: Meeting) -> None:
    meeting.evil.bent["AcquireLease"] = lambda _: pb.AcquireLeaseReply(wait=pb.Wait(retry_after_s=60.0))
    for interval_s in (0.0, -1.0, float("nan")):
        session = meeting.evil._OpenSession(pb.OpenSessionRequest())
        session.heartbeat_interval_s = interval_s
        meeting.evil.bent["OpenSession"] = _always(session)
        meeting.evil.asked.clear()
        meeting.told.events.clear()
        task = meeting.start()
        await meeting.saw("waiting")
        async with asyncio.timeout(10):
            while "Heartbeat" not in meeting.evil.asked:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)
        assert meeting.evil.asked.count("Heartbeat") <= 12
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_it_says_cannot_steer_the_terminal(meeting: Meeting, capsys: pytest.CaptureFixture[str]) -> None:
    from worker.progress import LiveReporter, make_reporter

    evil_text = "\x1b]0;owned\x07\x1b[2J\r\nfake line\u202e"
    verdicts = [pb.Verdict(lease_id=evil_text, outcome=pb.Verdict.REJECTED, reason=evil_text)] * 5000
    meeting.evil.bent["AcquireLease"] = lambda _: pb.AcquireLeaseReply(
        over=pb.RunOver(reason=evil_text), verdicts=verdicts
    )
    meeting.evil.bent["OpenSession"] = field(run__name=evil_text)
    reporter = make_reporter("plain")
    meeting.told = reporter  # type: ignore[assignment]
    ended = await meeting.end()
    assert ended.reason.isprintable()  # where whoever asks shows it without a reporter
    reporter.say("raw", evil_text)
    reporter.say("end", ended.reason)
    LiveReporter().say("raw", evil_text)
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert len(shown.splitlines()) < 100
    assert all(character.isprintable() for line in shown.split("\n") for character in line)
