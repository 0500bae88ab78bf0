"""Steps and frozen columns through a real worker and a real coordinator: what comes, and what audits come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings
from protocol.ids import TRUNK, Digest
from tests.worker.conftest import Swarm, served
from worker.client import CoordinatorClient
from worker.messages import EXIT_OK
from worker.train.replay import replay_lease

ROUNDS = 4


class Audited(Swarm):
    """Its coordinator computes leases again."""

    async def start(self) -> None:
        self.server = CoordinatorServer(self.folder, replay=replay_lease(self.folder.layout()))
        await self.server.start()
        (self.link,) = await self.server.create_invites()


@pytest.fixture
async def audited(tmp_path: Path, corpus: Path) -> AsyncIterator[Audited]:
    engine: dict[str, Any] = {
        "max_rounds": ROUNDS, "gather_s": 0.0, "heartbeat_interval_s": 0.1, "heartbeat_misses": 100.0,
        "inner": {"inner_steps": 2, "batch_sequences": 2}, "screening": {"enabled": False},
        "audits": {"budget": 4.0}, "down": {"frozen_every": 2},
    }  # fmt: skip
    settings = RunSettings(preset="tiny", data=str(corpus), port=0, sequence_length=32, codec="fp32",
                           heldout_limit=4, screening_sequences=4, engine=engine)  # fmt: skip
    async with served(Audited(await asyncio.to_thread(init_run, tmp_path / "run", settings), tmp_path)) as made:
        yield made


async def test_later_rounds_come_by_steps_and_are_computed_again_to_the_same(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Digest] = []
    block = CoordinatorClient.block

    def counted(self: CoordinatorClient, digest: Digest, payload_bytes: int, offset: int) -> Any:
        came.append(digest)
        return block(self, digest, payload_bytes, offset)

    monkeypatch.setattr(CoordinatorClient, "block", counted)
    _, recorder, task = audited.agent(max_columns=4)
    async with asyncio.timeout(120):
        assert (await task).exit_code == EXIT_OK
    assert len(recorder.texts("submission_accepted")) == ROUNDS
    assert recorder.texts("no_steps") == []
    assert audited.server is not None
    run = audited.server._run
    assert run is not None
    state, versions = run.pump.engine.state, run.versions
    latest = versions.manifest(state.manifest)
    steps = [step.digest for step in latest.deltas[TRUNK]]
    assert len(steps) == ROUNDS
    assert set(steps[1:]) <= set(came), "each version but the last was leased, and its trunk came by its step"
    whole = {step.base for step in latest.deltas[TRUNK]} & set(came)
    first = versions.manifest_digest(0)
    assert first is not None
    assert whole == {versions.manifest(first).blocks[TRUNK].digest}, "only the first trunk came whole"
    leases = [record.lease for record in state.leases.values()]
    assert {lease.frozen.codec for lease in leases} == {"int4"}
    assert {int(lease.frozen.version) for lease in leases} == {0, 1, 2}, "two of four, while the rate is high"
    (worker,) = state.workers.values()
    assert worker.audits_passed >= 1
    assert worker.audits_failed == 0
