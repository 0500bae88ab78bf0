"""The pump when something fails: slow work, the engine itself, a disk that is full. Virtual time."""

from __future__ import annotations

import asyncio
import errno
import gc
from pathlib import Path

import pytest
import structlog

from coordinator.engine.commands import Command
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    CommandFailed,
    CommandTrouble,
    CoordinatorResumed,
    Event,
    WorkerSilent,
)
from coordinator.run.pump import load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.store.journal import Journal
from coordinator.store.ports import Snapshot
from protocol.errors import LocalError, Unavailable
from protocol.ids import WorkerId
from protocol.storage import storage_trouble
from tests.coordinator.pump_bench import ANNA, SECRET, FullDisk, Recorder, Setup, enrolled, until


async def test_a_failed_command_is_told_and_tried_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.limits = PumpLimits(retry_first_s=0.0)
    original = Recorder.__init__

    def failing(self: Recorder, path: Path) -> None:
        original(self, path)
        self.fail_times = 2

    monkeypatch.setattr(Recorder, "__init__", failing)
    pump, recorder, journal = setup.open()
    await until(lambda: not pump.engine.pending)
    assert recorder.executed == ["validate:v0"] * 3
    failures = [event for event in setup.events() if isinstance(event, CommandFailed)]
    assert len(failures) == 2
    assert "No space left" in failures[0].error
    assert {failure.trouble for failure in failures} == {CommandTrouble.MACHINE}
    await pump.stop()
    journal.close()


async def test_a_day_of_failures_is_survived(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.limits = PumpLimits(retry_first_s=0.0)
    monkeypatch.setattr(Recorder, "failure", OSError(28, "No space left on device"))
    pump, recorder, journal = setup.open()
    recorder.fail_times = 1
    pump._slow._attempts["validate:v0"] = 1440
    await until(lambda: not pump.engine.pending or pump.failed.done())
    assert not pump.failed.done()
    await pump.stop()
    journal.close()


class OfAnotherLibrary(Exception):
    """As safetensors' own: of no kind that is known."""


@pytest.mark.parametrize(
    "failure",
    [ZeroDivisionError("0 / 0"), KeyError("w"), IndexError(), OverflowError(), OfAnotherLibrary("\x1b[31m" * 900)],
)
async def test_no_exception_of_slow_work_stops_the_pump(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    setup.limits = PumpLimits(retry_first_s=0.0)
    monkeypatch.setattr(Recorder, "failure", failure)
    pump, recorder, journal = setup.open()
    with structlog.testing.capture_logs() as logs:
        recorder.fail_times = 2
        await until(lambda: not pump.engine.pending)
    failures = [event for event in setup.events() if isinstance(event, CommandFailed)]
    assert {failure.trouble for failure in failures} == {CommandTrouble.CONTENT}
    assert all(failure.error.isprintable() and 0 < len(failure.error) <= 500 for failure in failures)
    assert not pump.failed.done()
    at_length = [line for line in logs if line["event"] == "command_failed"]
    assert len(at_length) == 1, "the same again is not told at length again"
    await pump.stop()
    journal.close()


def broken(_: Engine, __: Event) -> list[Command]:
    raise KeyError("a bug")


async def test_a_bug_in_the_engine_stops_the_pump_and_everybody_hears(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, _, journal = setup.open()
    await until(lambda: not pump.engine.pending)

    monkeypatch.setattr(Engine, "handle", broken)
    with pytest.raises(LocalError, match="a bug"):
        await pump.submit(enrolled())
    with pytest.raises(KeyError):
        await pump.failed
    with pytest.raises(Unavailable):
        await pump.submit(enrolled())
    await pump.stop()
    journal.close()


async def fails_beside_a_caller_who_went_away(setup: Setup) -> None:
    pump, _, journal = setup.open()
    await until(lambda: not pump.engine.pending)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "handle", broken)
        caller = asyncio.create_task(pump.submit(enrolled()))
        await asyncio.sleep(0)
        caller.cancel()
        await until(pump.failed.done)
        await pump.stop()
    journal.close()


async def test_nothing_complains_of_callers_who_went_away_before_the_pump_stopped(setup: Setup) -> None:
    """asyncio would log an error that nobody came for, with a traceback, whenever memory is next collected."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    await fails_beside_a_caller_who_went_away(setup)
    gc.collect()
    assert not complaints


async def test_a_full_disk_refuses_instead_of_promising_and_goes_on_when_there_is_room(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, recorder, journal = setup.open()
    await until(lambda: not pump.engine.pending)
    disk = FullDisk(journal, monkeypatch)
    with pytest.raises(Unavailable, match="disk is full: make room"):
        await pump.submit(enrolled())
    assert ANNA not in pump.engine.state.workers
    assert "WorkerEnrolled" not in recorder.log
    assert pump.stalled is not None
    disk.full = False
    await pump.submit(enrolled())
    assert ANNA in pump.engine.state.workers
    assert pump.stalled is None
    await pump.stop()
    journal.close()


async def test_what_the_pump_itself_owes_the_journal_is_recorded_once_there_is_room(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.limits = PumpLimits(stall_retry_s=0.0)
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    await until(lambda: not pump.engine.pending)
    await pump.stop()
    journal.close()
    pump, _, journal = setup.open()  # the greeting is due, and proposed once only
    disk = FullDisk(journal, monkeypatch)
    await until(lambda: disk.refused >= 2)
    disk.full = False
    await until(lambda: any(isinstance(event, CoordinatorResumed) for event in setup.events()))
    assert sum(isinstance(event, CoordinatorResumed) for event in setup.events()) == 1
    await pump.stop()
    journal.close()


async def test_what_time_called_for_while_the_disk_was_full_is_of_the_moment_when_there_is_room(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that such an event grants would else begin, and perhaps end, before its worker hears of it."""
    setup.limits = PumpLimits(stall_retry_s=0.0)
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    await until(lambda: not pump.engine.pending)
    disk = FullDisk(journal, monkeypatch)
    setup.clock.now_s += 1000.0  # she is silent, which nobody can write down
    pump._wake.set()
    await until(lambda: disk.refused >= 2)
    setup.clock.now_s += 3600.0
    refused = disk.refused
    await until(lambda: disk.refused >= refused + 2)  # what was on its way to the disk when the clock moved is back
    disk.full = False
    await until(lambda: any(isinstance(event, WorkerSilent) for event in setup.events()))
    (silent,) = (event for event in setup.events() if isinstance(event, WorkerSilent))
    assert silent.at_s == setup.clock.now_s
    await pump.stop()
    journal.close()


async def test_the_result_of_slow_work_outlives_a_full_disk(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.limits = PumpLimits(stall_retry_s=0.0)
    pump, recorder, journal = setup.open()
    disk = FullDisk(journal, monkeypatch)
    await until(lambda: disk.refused >= 2)
    disk.full = False
    await until(lambda: not pump.engine.pending)
    assert recorder.executed == ["validate:v0"], "done once: only its report was tried again"
    await pump.stop()
    journal.close()


async def test_a_snapshot_that_does_not_fit_is_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = PumpLimits(snapshot_every=2)
    setup = Setup(tmp_path, limits)
    pump, _, journal = setup.open()

    def full(_: Snapshot) -> None:
        raise storage_trouble(errno.ENOSPC, setup.path)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "save_snapshot", full)
        for number in range(5):
            await pump.submit(enrolled(WorkerId(f"{number:032x}")))
        await until(lambda: not pump.engine.pending)
        state = pump.engine.snapshot()
        await pump.stop()
    journal.close()
    journal = Journal.open(setup.path)
    assert journal.latest_snapshot() is None
    assert load_engine(journal, SECRET)[0].snapshot() == state
    journal.close()
