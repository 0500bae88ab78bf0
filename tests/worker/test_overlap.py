"""A worker trains its next lease while the last one's bytes are on their way, over loopback TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.folder import init_run
from coordinator.settings import RunSettings
from protocol.ids import LeaseId
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import Swarm, served
from worker.agent import Agent
from worker.sending import Line
from worker.states import State


@pytest.fixture
async def three(tmp_path: Path, corpus: Path) -> AsyncIterator[Swarm]:
    """Rounds of three workers that go on once two have delivered."""
    settings = RunSettings(
        preset="tiny",
        data=str(corpus),
        port=0,
        sequence_length=32,
        heldout_limit=4,
        screening_sequences=4,
        engine={
            "max_rounds": 3,
            "min_workers": 3,
            "min_grace_s": 0.0,
            "grace_share": 0.0,
            "heartbeat_interval_s": 0.1,
            "heartbeat_misses": 100.0,
            "inner": {"inner_steps": 2, "batch_sequences": 2},
            "screening": {"enabled": False},
        },
    )
    folder = await asyncio.to_thread(init_run, tmp_path / "run", settings)
    async with served(Swarm(folder, tmp_path)) as made:
        yield made


class SlowLine:
    """Keeps an agent's uploads from beginning until it is released."""

    def __init__(self, agent: Agent) -> None:
        self.begun: list[str] = []
        self.released = asyncio.Event()
        client: Any = agent._joining.client
        self._upload: Callable[..., Awaitable[Any]] = client.upload
        client.upload = self

    async def __call__(self, header: pb.UploadHeader, *arguments: Any) -> Any:
        self.begun.append(header.lease_id)
        await self.released.wait()
        return await self._upload(header, *arguments)


async def test_the_next_lease_is_trained_while_the_last_one_is_sent(three: Swarm) -> None:
    go_on = threading.Event()

    def patient(lease: Any, sequences: Any) -> Any:
        assert lease.round == 1 or go_on.wait(30)  # the others' second leases wait, so that the round stays open
        return sequences

    slow, said, task = three.agent("slow")
    await said.saw("session_opened")
    line = SlowLine(slow)
    for name in ("second", "third"):
        assert three.server is not None
        (three.link,) = await three.server.create_invites()
        three.agent(name, batch_hook=patient)
    try:
        await said.saw("trained", 2)
        assert "uplink" in await said.saw("note")
        assert slow.state is State.HELD_UP
        first, second = LeaseId(line.begun[0]), slow._session.lease_id
        assert line.begun == [first], "one submission at a time"
        assert said.texts("uploaded") == []
        assert (slow._session.line.state, slow._session.line.lease_id) == (Line.SENDING, first)
        assert [one.lease_id for one in slow._outbox.all()] == [first, second]
        assert three.server is not None
        assert three.server._run is not None
        statuses = {one.lease.lease_id: one.status for one in three.server._run.pump.engine.state.leases.values()}
        assert {statuses[first], statuses[LeaseId(second or "")]} == {"committed"}
        line.released.set()
        await said.saw("uploaded", 2)
        assert line.begun[:2] == [first, second]
    finally:
        go_on.set()
    async with asyncio.timeout(60):
        assert (await task).exit_code == 0
