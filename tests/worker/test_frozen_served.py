"""A run with frozen experts in 4 bits, over loopback TLS: workers of halves, and a coordinator that audits them all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import worker.train.training
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.phases import LeaseStatus
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings
from moe.rungs import Schedule
from moe.stand_ins import DECODED, DEVICE, MAPPED
from tests.worker.conftest import Swarm, served
from tests.worker.test_residuals_served import state_of
from worker.messages import EXIT_OK
from worker.train.replay import replay_lease


class AuditingSwarm(Swarm):
    """Whose coordinator computes leases again, as `barnraise coordinator serve` does."""

    async def start(self) -> None:
        self.server = CoordinatorServer(self.folder, replay=replay_lease(self.folder.layout(), threads=1))
        await self.server.start()
        (self.link,) = await self.server.create_invites()


@pytest.mark.parametrize("came_in", ["int4", "fp32"])
async def test_leases_are_accepted_and_audits_find_nothing_wherever_experts_lie(
    tmp_path: Path, corpus: Path, came_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers one keeps them coded, then decoded, the other in the files that they came in."""
    settings = RunSettings(
        preset="tiny",
        data=str(corpus),
        port=0,
        sequence_length=32,
        codec="fp32",
        heldout_limit=4,
        screening_sequences=4,
        engine={
            "max_rounds": 2,
            "min_workers": 2,
            "heartbeat_interval_s": 0.1,
            "heartbeat_misses": 100.0,
            "screening": {"enabled": False},
            "audits": {"budget": 8.0},
            "down": {"frozen_codec": came_in},
            "inner": {"inner_steps": 2, "batch_sequences": 4, "frozen_dtype": "int4"},
        },
    )
    places = iter([DEVICE, MAPPED, DECODED, MAPPED] * 2)
    used: list[str] = []

    def schedule(*_: Any) -> Schedule:
        used.append(next(places))
        return Schedule(2, place=used[-1])

    monkeypatch.setattr(worker.train.training, "schedule_that_fits", schedule)
    folder = await asyncio.to_thread(init_run, tmp_path / "run", settings)
    async with served(AuditingSwarm(folder, tmp_path)) as swarm:
        assert swarm.server is not None
        links = await swarm.server.create_invites(count=1)
        tasks = []
        for number, link in enumerate((swarm.link, *links)):
            swarm.link = link
            tasks.append(swarm.agent(f"home{number}", max_columns=4)[2])
        for task in tasks:
            assert (await asyncio.wait_for(task, 120)).exit_code == EXIT_OK
        await swarm.stop()
    state = state_of(folder)
    leases = [one for one in state.leases.values() if one.status is LeaseStatus.ACCEPTED]
    assert state.version == 2
    assert len(leases) >= 4
    assert all(one.lease.recipe.frozen_dtype == "int4" and len(one.lease.columns) == 4 for one in leases)
    assert {DEVICE, MAPPED} <= set(used)
    assert {one.lease.frozen.codec for one in leases} == ({"int4"} if came_in == "int4" else {""})
    assert all(one.audits and all(audit.passed for audit in one.audits) for one in leases)
    found = [audit for one in leases for audit in one.audits]
    assert [(audit.trunk, audit.columns) for audit in found] == [(0.0, 0.0)] * len(found), "on one machine: to the bit"
