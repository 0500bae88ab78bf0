"""What a pump makes of its journal: snapshots, and journals of other engines. Virtual time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine import engine as engine_module
from coordinator.engine.commands import GrantLease
from coordinator.engine.events import (
    LeaseRequested,
)
from coordinator.engine.records import event_to_json
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run import pump as pump_module
from coordinator.run.pump import load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.store.journal import Journal
from protocol.errors import ConfigError
from protocol.ids import WorkerId
from tests.coordinator.pump_bench import ANNA, SECRET, Setup, enrolled, until


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
