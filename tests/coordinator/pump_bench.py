"""A pump with a real journal, a clock of its own and a recorder for everything else; and a disk that is full."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.commands import Command, SlowCommand, ValidateVersion
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.events import (
    Event,
    RunCreated,
    VersionValidated,
    WorkerEnrolled,
)
from coordinator.engine.records import event_from_json, event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.pump import Pump, load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.store.journal import Journal
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


async def no_snapshot(*_: Any) -> None:
    """Keeps the journal whole, so that a test can read it."""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def kinds(events: Iterable[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


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
