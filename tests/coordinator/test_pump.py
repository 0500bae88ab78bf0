"""The pump: durable before applied, applied before executed, answered last; restarts; failures. Virtual time."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import structlog

from coordinator.engine import engine as engine_module
from coordinator.engine.commands import Command, GrantLease, SlowCommand, ValidateVersion
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    CommandFailed,
    CommandTrouble,
    CoordinatorResumed,
    Event,
    LeaseRequested,
    RunCreated,
    SubmissionCommitted,
    VersionValidated,
    WorkerEnrolled,
    WorkerSeen,
    WorkerSilent,
)
from coordinator.engine.records import event_from_json, event_to_json
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run import pump as pump_module
from coordinator.run.pump import Pump, load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.store.journal import Journal
from coordinator.store.ports import Snapshot
from protocol.errors import ConfigError, IllegalEvent, LocalError, Unavailable
from protocol.ids import Digest, RunId, WorkerId
from protocol.storage import storage_trouble

SECRET = b"s" * 32
ANNA = WorkerId("a" * 32)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Recorder:
    """Observer, dispatcher and executor at once; remembers the order of everything."""

    failure: Exception = OSError(28, "No space left on device")

    def __init__(self, journal_path: Path) -> None:
        self._path = journal_path
        self.log: list[str] = []
        self.durable_when_applied: list[bool] = []
        self.executed: list[str] = []
        self.fail_times = 0

    def event(self, event: Event) -> None:
        journal = Journal.open(self._path, writable=False)  # what another process would find after a crash right now
        self.durable_when_applied.append(event_to_json(event) in {record for _, record in journal.read()})
        journal.close()
        self.log.append(type(event).__name__)

    def command(self, command: Command, at_s: float) -> None:
        self.log.append(f"-> {type(command).__name__}")

    def dispatch(self, command: Command) -> None:
        self.log.append(f"do {type(command).__name__}")

    def execute(self, command: SlowCommand) -> Event:
        self.executed.append(command.command_id)
        if self.fail_times > 0:
            self.fail_times -= 1
            raise self.failure
        assert isinstance(command, ValidateVersion)
        return VersionValidated(
            at_s=1000.0, command_id=command.command_id, version=command.version, val_loss=5.5, val_loss_se=0.1
        )


def enrolled(worker: WorkerId = ANNA) -> WorkerEnrolled:
    return WorkerEnrolled(at_s=1000.0, worker=worker, name="anna", trusted=False, max_columns=2, tokens_per_s=0.0)


class Setup:
    def __init__(self, folder: Path, limits: PumpLimits | None = None) -> None:
        self.limits = limits
        self.path = folder / "journal.sqlite"
        self.clock = Clock()
        self.news: list[Event] = []
        journal = Journal.create(self.path, engine_version=ENGINE_VERSION)
        config = EngineConfig(
            run_id=RunId("run"), columns=2, train_sequences=1000, gather_s=0.0,
            inner=InnerRecipe(inner_steps=2, batch_sequences=2),
        )  # fmt: skip
        created = RunCreated(at_s=1000.0, engine_version=ENGINE_VERSION, config=config, base_manifest=Digest("0" * 64))
        journal.append([event_to_json(created)])
        journal.close()

    def open(self) -> tuple[Pump, Recorder, Journal]:
        journal = Journal.open(self.path)
        engine, _ = load_engine(journal, SECRET)
        recorder = Recorder(self.path)
        pump = Pump(
            engine,
            journal,
            work=recorder,
            dispatch=recorder.dispatch,
            observer=recorder,
            clock=self.clock,
            clock_news=self.take_news,
            limits=self.limits,
        )
        pump.start()
        return pump, recorder, journal

    def take_news(self) -> list[Event]:
        news, self.news = self.news, []
        return news

    def events(self) -> list[Event]:
        journal = Journal.open(self.path, writable=False)
        events = [event_from_json(record) for _, record in journal.read()]
        journal.close()
        return events


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(Pump, "_save_snapshot", no_snapshot)
    return Setup(tmp_path)


async def no_snapshot(*_: Any) -> None:
    """Keeps the journal whole, so that a test can read it."""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def kinds(events: Iterable[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


async def test_durable_before_applied_applied_before_executed_answered_last(setup: Setup) -> None:
    pump, recorder, journal = setup.open()
    await pump.submit(enrolled())
    commands = await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert kinds(commands) == ["GrantLease"]
    mine = [line for line in recorder.log if "Validat" not in line]
    assert mine == ["WorkerEnrolled", "LeaseRequested", "-> GrantLease", "do GrantLease"]
    assert all(recorder.durable_when_applied)
    await pump.stop()
    journal.close()


async def test_what_queued_up_shares_one_commit(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    pump, _, journal = setup.open()
    sizes: list[int] = []
    append = journal.append

    def counting(records: list[str]) -> int:
        sizes.append(len(records))
        return append(records)

    monkeypatch.setattr(journal, "append", counting)
    workers = [WorkerId(f"{number:032x}") for number in range(50)]
    await asyncio.gather(*(pump.submit(enrolled(worker)) for worker in workers))
    assert sum(sizes) >= 50
    assert len(sizes) <= 4
    await pump.stop()
    journal.close()


async def test_an_illegal_event_is_refused_and_skipped_alike_by_every_replay(setup: Setup) -> None:
    pump, recorder, journal = setup.open()
    await pump.submit(enrolled())
    with pytest.raises(IllegalEvent, match="enrolled already"):
        await pump.submit(enrolled())
    await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert "WorkerEnrolled" in recorder.log
    before = pump.engine.snapshot()
    await pump.stop()
    journal.close()
    again = Journal.open(setup.path)
    engine, _ = load_engine(again, SECRET)
    assert engine.snapshot() == before
    again.close()


async def test_heartbeats_leave_no_record(setup: Setup) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    position = journal.last_position
    pump.seen(WorkerSeen(at_s=1001.0, worker=ANNA, inner_step=3))
    pump.seen(WorkerSeen(at_s=1001.0, worker=WorkerId("f" * 32)))  # nobody we know: noted in the log only
    assert pump.engine.last_seen[ANNA].inner_step == 3
    await pump.submit(LeaseRequested(at_s=1001.0, worker=ANNA))
    assert not [event for event in setup.events()[position:] if isinstance(event, WorkerSeen)]
    await pump.stop()
    journal.close()


async def test_silence_is_found_and_journalled(setup: Setup) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    setup.clock.now_s += 1e4
    other = WorkerId("b" * 32)
    await pump.submit(enrolled(other))  # any event makes the pump look at the clock
    await until(lambda: any(isinstance(event, WorkerSilent) for event in setup.events()))
    (record,) = pump.engine.state.leases.values()
    assert record.status == "expired"
    await pump.stop()
    journal.close()


async def test_a_gap_is_recorded_before_what_came_after_it(setup: Setup) -> None:
    """The machine slept for three hours, and the first thing that reaches it is the commit of who trained meanwhile."""
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    (grant,) = await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert isinstance(grant, GrantLease)
    setup.clock.now_s += 3 * 3600.0
    setup.news = [CoordinatorResumed(at_s=setup.clock.now_s, gap_s=3 * 3600.0)]
    await pump.submit(
        SubmissionCommitted(
            at_s=setup.clock.now_s, worker=ANNA, lease_id=grant.lease.lease_id, digest=Digest("1" * 64),
            payload_bytes=1, codec="fp32", inner_steps_done=grant.lease.inner_steps, train_loss_first=2.0,
            train_loss_last=1.0, train_s=10.0,
        )
    )  # fmt: skip
    assert pump.engine.state.leases[grant.lease.lease_id].status == "committed"
    assert kinds(setup.events())[-2:] == ["CoordinatorResumed", "SubmissionCommitted"]
    await pump.stop()
    journal.close()


async def test_a_gap_that_could_not_be_recorded_still_goes_first(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    append, full = journal.append, [True]

    def sometimes(records: list[str]) -> int:
        if full[0]:
            raise storage_trouble(errno.ENOSPC, setup.path)
        return append(records)

    monkeypatch.setattr(journal, "append", sometimes)
    setup.clock.now_s += 1e4
    setup.news = [CoordinatorResumed(at_s=setup.clock.now_s, gap_s=1e4)]
    asked = LeaseRequested(at_s=setup.clock.now_s, worker=ANNA)
    with pytest.raises(Unavailable):
        await pump.submit(asked)
    full[0] = False
    await pump.submit(asked)
    assert kinds(setup.events())[-2:] == ["CoordinatorResumed", "LeaseRequested"]
    await pump.stop()
    journal.close()


async def test_pending_commands_are_done_again_after_a_restart_and_everybody_is_greeted(setup: Setup) -> None:
    pump, first, journal = setup.open()
    await pump.submit(enrolled())
    await until(lambda: not pump.engine.pending)
    assert first.executed == ["validate:v0"]
    await pump.stop()
    journal.close()
    # Cut the result out: the process died after the command, before its event.
    journal = Journal.open(setup.path)
    records = [record for _, record in journal.read() if "VersionValidated" not in record]
    journal.close()
    for path in tuple(setup.path.parent.glob("journal.sqlite*")):
        path.unlink()
    journal = Journal.create(setup.path, engine_version=ENGINE_VERSION)
    journal.append(records)
    journal.close()
    pump, second, journal = setup.open()
    await until(lambda: not pump.engine.pending)
    assert second.executed == ["validate:v0"]
    await until(lambda: any(isinstance(event, CoordinatorResumed) for event in setup.events()))
    await pump.stop()
    journal.close()


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


async def test_a_bug_in_the_engine_stops_the_pump_and_everybody_hears(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, _, journal = setup.open()
    await until(lambda: not pump.engine.pending)

    def broken(_: Engine, __: Event) -> list[Command]:
        raise KeyError("a bug")

    monkeypatch.setattr(Engine, "handle", broken)
    with pytest.raises(LocalError, match="a bug"):
        await pump.submit(enrolled())
    with pytest.raises(KeyError):
        await pump.failed
    with pytest.raises(Unavailable):
        await pump.submit(enrolled())
    await pump.stop()
    journal.close()


class FullDisk:
    """Stands before a journal's `append` and lets nothing through until there is room."""

    def __init__(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self.refused = 0
        self._append = journal.append
        monkeypatch.setattr(journal, "append", self._try)

    def _try(self, records: list[str]) -> int:
        if self.full:
            self.refused += 1
            raise storage_trouble(errno.ENOSPC, Path("journal.sqlite"))
        return self._append(records)


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


async def test_a_submitter_that_goes_away_does_not_take_its_event_along(setup: Setup) -> None:
    pump, _, journal = setup.open()
    task = asyncio.ensure_future(pump.submit(enrolled()))
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: ANNA in pump.engine.state.workers)
    await pump.stop()
    journal.close()


async def test_a_snapshot_replaces_the_events_it_covers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = PumpLimits(snapshot_every=3)
    setup = Setup(tmp_path, limits)
    pump, _, journal = setup.open()
    for number in range(7):
        await pump.submit(enrolled(WorkerId(f"{number:032x}")))
    assert journal.latest_snapshot() is not None
    state = pump.engine.snapshot()
    await pump.stop()
    assert list(journal.read()) == []  # a clean stop leaves a snapshot and nothing to replay
    journal.close()
    pump, _, journal = setup.open()
    assert pump.engine.snapshot() == state
    granted = await pump.submit(LeaseRequested(at_s=1000.0, worker=WorkerId(f"{0:032x}")))
    assert any(isinstance(command, GrantLease) for command in granted)
    await pump.stop()
    journal.close()


async def test_events_go_on_while_a_snapshot_is_written_and_it_is_of_its_own_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = PumpLimits(snapshot_every=3, snapshot_slice=1)
    go_on = asyncio.Event()
    pieces = SnapshotText.pieces
    sleep = asyncio.sleep

    async def held(delay_s: float) -> None:
        if delay_s == 0:
            await go_on.wait()
        await sleep(delay_s)

    setup = Setup(tmp_path, limits)
    pump, _, journal = setup.open()
    monkeypatch.setattr(asyncio, "sleep", held)
    for number in range(3):
        await pump.submit(enrolled(WorkerId(f"{number:032x}")))
    for number in range(3, 9):  # more than a snapshot's worth, beside the one that stands still
        await pump.submit(enrolled(WorkerId(f"{number:032x}")))
    assert journal.latest_snapshot() is None
    go_on.set()
    await until(lambda: journal.latest_snapshot() is not None)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    snapshot = journal.latest_snapshot()
    assert snapshot is not None
    assert snapshot.position < journal.last_position
    enrolled_then = len(json.loads(snapshot.state)["workers"])
    assert enrolled_then < 9, "what came later is not in it"
    state = pump.engine.snapshot()
    assert load_engine(journal, SECRET)[0].snapshot() == state, "it and the events after it are everything"
    assert "".join(pieces(SnapshotText(), pump.engine.state)) == json.dumps(state, separators=(",", ":"))
    await pump.stop()
    journal.close()


async def test_a_journal_of_another_engine_is_not_replayed(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.sqlite", engine_version=ENGINE_VERSION + 1)
    with pytest.raises(ConfigError, match="engine version"):
        load_engine(journal, SECRET)
    journal.close()
    journal = Journal.create(tmp_path / "empty.sqlite", engine_version=ENGINE_VERSION)
    with pytest.raises(ConfigError, match="does not begin"):
        load_engine(journal, SECRET)
    journal.close()


async def stopped_run(folder: Path) -> Setup:
    setup = Setup(folder)
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    await until(lambda: not pump.engine.pending)
    await pump.stop()
    journal.close()
    return setup


async def test_a_run_of_an_older_engine_goes_on_if_it_was_stopped_cleanly_and_the_step_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = await stopped_run(tmp_path)
    newer = ENGINE_VERSION + 1
    for module in (pump_module, engine_module):
        monkeypatch.setattr(module, "ENGINE_VERSION", newer)

    def rename(state: dict[str, Any]) -> dict[str, Any]:
        state["workers"][ANNA]["name"] = "migrated"
        return state

    journal = Journal.open(setup.path)
    with pytest.raises(ConfigError, match="release that began it"):
        load_engine(journal, SECRET, {})
    engine, _ = load_engine(journal, SECRET, {ENGINE_VERSION: rename})
    assert engine.state.workers[ANNA].name == "migrated"
    assert journal.engine_version == newer
    load_engine(journal, SECRET, {})  # once is enough: what was written is the new engine's
    journal.close()


async def test_events_of_an_older_engine_are_never_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = await stopped_run(tmp_path)
    journal = Journal.open(setup.path)
    journal.append([event_to_json(LeaseRequested(at_s=1001.0, worker=ANNA))])  # after the snapshot: it was killed
    for module in (pump_module, engine_module):
        monkeypatch.setattr(module, "ENGINE_VERSION", ENGINE_VERSION + 1)
    with pytest.raises(ConfigError, match="not stopped cleanly"):
        load_engine(journal, SECRET, {ENGINE_VERSION: lambda state: state})
    journal.close()
