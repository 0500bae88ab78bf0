"""A device that is lost in the middle of a lease, against a real coordinator: the next process goes on with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

import worker.train.training
from worker.messages import EXIT_DEVICE_LOST, EXIT_OK
from worker.train.trainer import train_shard


async def test_the_next_process_goes_on_where_the_lost_one_was(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lives: list[int] = []

    def train(*given: Any, on_step: Any, **how: Any) -> Any:
        life = len(lives)
        lives.append(life)

        def watched(done: int, loss: float | None) -> None:
            on_step(done, loss)
            if life == 0 and done == 2:  # what the first step left was kept before the second
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")

        return train_shard(*given, on_step=watched, **how)

    monkeypatch.setattr(worker.train.training, "train_shard", train)
    _, _, task = swarm.agent(keep_progress_every_s=0.0)
    async with asyncio.timeout(60):
        assert (await task).exit_code == EXIT_DEVICE_LOST
    before = set(swarm.server._run.pump.engine.state.leases)
    assert len(before) == 1
    _, second, task = swarm.agent(keep_progress_every_s=0.0)
    async with asyncio.timeout(60):
        assert (await task).exit_code == EXIT_OK
    assert len(second.texts("taken_up")) == 1
    assert second.steps == [2], "what came before is not done again"
    assert "accepted" in second.texts("submission_accepted")[0]
    assert set(swarm.server._run.pump.engine.state.leases) == before, "no other lease was burnt"
