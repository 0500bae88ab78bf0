"""Submissions measured by trusted workers, over loopback TLS: what they find is what the coordinator would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.commands import Command
from coordinator.engine.events import Event, SubmissionMeasured
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.state import EngineState
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings
from tests.worker.conftest import Swarm

Settings = Callable[..., RunSettings]


@pytest.fixture
def settings(corpus: Path) -> Settings:
    def make(**delegation: Any) -> RunSettings:
        table = {
            "max_rounds": 2, "gather_s": 0.0, "min_workers": 3, "heartbeat_interval_s": 0.1, "heartbeat_misses": 100.0,
            "inner": {"inner_steps": 4, "batch_sequences": 4, "learning_rate": 0.003, "warmup_steps": 0},
            "delegation": {"sequences": 32, "wait_s": 20.0, **delegation},
        }  # fmt: skip
        small: dict[str, Any] = {"heldout_limit": 4, "screening_sequences": 32, "sequence_length": 32, "port": 0}
        return RunSettings(preset="tiny", data=str(corpus), codec="int8", **small, engine=table)

    return make


@contextlib.asynccontextmanager
async def served(root: Path, settings: RunSettings) -> AsyncIterator[Swarm]:
    made = Swarm(await asyncio.to_thread(init_run, root / "run", settings), root)
    await made.start()
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await made.stop()


async def crew(swarm: Swarm) -> list[asyncio.Task[Any]]:
    """One whom nobody knows, and two trusted ones of different owners who offer to measure."""
    assert swarm.server is not None
    found = []
    for name, trusted in (("stranger", False), ("anna", True), ("ben", True)):
        (swarm.link,) = await swarm.server.create_invites(trusted=trusted)
        found.append(swarm.agent(name, name=name, measures=trusted)[2])
    return found


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)


def watched(swarm: Swarm) -> tuple[EngineState, list[SubmissionMeasured]]:
    """The engine's state, and what is measured from now on."""
    assert swarm.server is not None
    engine, seen = swarm.server._opened().pump.engine, list[SubmissionMeasured]()
    handle = engine.handle

    def handled(event: Event) -> list[Command]:
        if isinstance(event, SubmissionMeasured):
            seen.append(event)
        return handle(event)

    vars(engine)["handle"] = handled
    return engine.state, seen


async def test_all_gains_are_measured_by_others_and_all_twice(tmp_path: Path, settings: Settings) -> None:
    async with served(tmp_path, settings(checked_share=1.0)) as swarm:
        state, measured = watched(swarm)
        await ended(await crew(swarm))
    assert len(measured) == 6
    by_stranger = [event for event in measured if event.measured_by is not None and len(event.answers) == 2]
    assert by_stranger, "two trusted workers of other owners measure a stranger's"
    assert state.totals.gains_false == 0
    assert state.totals.gains_checked >= 2
    assert state.totals.gains_delegated >= 2
    assert all(record.status is LeaseStatus.ACCEPTED for record in state.leases.values())
    assert all(worker.trusted for worker in state.workers.values() if worker.name != "stranger")
