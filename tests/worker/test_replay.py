"""A lease computed again: bit for bit on the same machine, within rounding on another, far from what no lease says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aggregation.replayed import replay_distance
from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from protocol.ids import BlockId, Digest
from protocol.lease import Lease
from protocol.recipe import OPTIMIZERS
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.replay import replay_lease
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

Make = Callable[..., Lease]
DIGESTS = {BlockId("trunk"): Digest("0" * 64)}
FP32_NOISE = 1e-4
"""What honest machines may differ by, at most; a lie that is worth something is at ten times that and more."""


@pytest.fixture
def tokens() -> NDArray[np.int64]:
    """Something that can be learnt: of noise, gradients are so small that Muon's normalising makes much of rounding."""
    draw = np.random.default_rng(4)
    phrases = draw.integers(0, 256, (12, 17))
    return phrases[draw.integers(0, 12, 40)]


@pytest.fixture(params=OPTIMIZERS)
def lease(request: pytest.FixtureRequest, make_lease: Make) -> Lease:
    return make_lease(optimizer=request.param, inner_steps=10, data_count=40)


class Worker:
    """Trains a lease as a volunteer's machine does."""

    def __init__(self, model_layout: Layout, blocks: Any, lease: Lease, tokens: NDArray[np.int64]) -> None:
        self._layout, self._blocks, self._lease, self._tokens = model_layout, blocks, lease, tokens

    def sends(self, lease: Lease | None = None, tokens: NDArray[np.int64] | None = None, **options: Any) -> Any:
        lease, tokens = lease or self._lease, self._tokens if tokens is None else tokens
        shard = build_shard(self._layout, lease.columns, self._blocks, seed=lease.seed)
        train_shard(shard, lease, tokens, **options)
        return pseudo_gradient_of(self._blocks, shard)

    def sends_after_restart(self, folder: Path, after: int, before: int, then: int) -> Any:
        """Killed after step `after`, having trained `before` sequences at a time; `then` when it is back."""
        keeper = partial(LeaseKeeper, LeaseStates(folder), computation_of(self._lease, DIGESTS, "cpu"), every_s=0.0)

        def die(done: int, _loss: float | None) -> None:
            if done == after + 1:
                raise TrainingStopped("killed")

        with pytest.raises(TrainingStopped):
            self.sends(keeper=keeper(), micro_batch=before, on_step=die)
        torch.manual_seed(999)
        return self.sends(keeper=keeper(), micro_batch=then)


@pytest.fixture
def worker(small_layout: Layout, blocks_of: Any, lease: Lease, tokens: NDArray[np.int64]) -> Worker:
    return Worker(small_layout, blocks_of(small_layout), lease, tokens)


@pytest.fixture
def again(small_layout: Layout, blocks_of: Any, lease: Lease, tokens: NDArray[np.int64]) -> Callable[..., Any]:
    def replayed(micro_batch: int = 0, threads: int = 1) -> Any:
        return replay_lease(small_layout, threads=threads)(lease, blocks_of(small_layout), tokens, micro_batch)[0]

    return replayed


def test_on_the_same_machine_it_is_the_same_bits(worker: Worker, again: Any) -> None:
    assert replay_distance(worker.sends(), again()).largest == 0.0
    assert replay_distance(worker.sends(micro_batch=3), again(micro_batch=3)).largest == 0.0


@pytest.mark.parametrize(("micro_batch", "threads"), [(1, 1), (3, 1), (0, 2), (2, 2)])
def test_on_another_machine_only_rounding_differs(worker: Worker, again: Any, micro_batch: int, threads: int) -> None:
    assert replay_distance(worker.sends(), again(micro_batch, threads)).largest < FP32_NOISE


@pytest.mark.parametrize(("before", "then"), [(4, 4), (4, 1), (1, 3)])
def test_a_restart_in_mid_lease_is_not_seen(worker: Worker, again: Any, tmp_path: Path, before: int, then: int) -> None:
    sent = worker.sends_after_restart(tmp_path, 4, before, then)
    assert replay_distance(sent, again()).largest < FP32_NOISE


def test_running_out_of_memory_in_mid_lease_is_not_seen(
    worker: Worker, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = ShardModel.loss, 0

    def short_of_memory(shard: ShardModel, tokens_BL: torch.Tensor, *counts: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise torch.OutOfMemoryError("no memory")
        return honest(shard, tokens_BL, *counts)

    with monkeypatch.context() as patched:
        patched.setattr(ShardModel, "loss", short_of_memory)
        sent = worker.sends()
    assert replay_distance(sent, again()).largest < FP32_NOISE


def test_what_no_lease_says_is_far(worker: Worker, again: Any, lease: Lease, tokens: NDArray[np.int64]) -> None:
    recipe, replayed = lease.recipe, again()
    faster = dataclasses.replace(
        recipe, learning_rate=recipe.learning_rate * 1.02, muon_learning_rate=recipe.muon_learning_rate * 1.02
    )
    shorter = dataclasses.replace(lease, inner_steps=9, data=dataclasses.replace(lease.data, count=36))
    lies = {
        "a rate 2 % higher": worker.sends(dataclasses.replace(lease, recipe=faster)),
        "a step fewer": worker.sends(shorter, tokens[:36]),
        "other data": worker.sends(tokens=tokens[::-1].copy()),
    }
    assert all(replay_distance(lie, replayed).largest > 100 * FP32_NOISE for lie in lies.values())


def test_a_shard_is_kept_between_leases_and_forgotten_after_a_failure(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: NDArray[np.int64]
) -> None:
    blocks, stopping = blocks_of(frozen_layout), False
    replay = replay_lease(frozen_layout, should_stop=lambda: stopping)
    lease, other = make_lease(), make_lease(columns=(1, 3))
    first, _ = replay(lease, blocks, sequences, 0)
    kept = replay._shard
    assert replay_distance(replay(lease, blocks, sequences, 0)[0], first).largest == 0.0
    assert replay._shard is kept
    replay(other, blocks, sequences, 0)
    assert replay._shard is not kept
    stopping = True
    with pytest.raises(TrainingStopped):
        replay(lease, blocks, sequences, 0)
    assert replay._shard is None


def test_the_number_of_threads_is_put_back(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: NDArray[np.int64]
) -> None:
    before, seen = torch.get_num_threads(), set[int]()

    def look() -> bool:
        seen.add(torch.get_num_threads())
        return False

    replay = replay_lease(frozen_layout, threads=2, should_stop=look)
    replay(make_lease(), blocks_of(frozen_layout), sequences, 0)
    assert seen == {2}
    assert torch.get_num_threads() == before
