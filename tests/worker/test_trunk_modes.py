"""A `lora` and a frozen trunk in a worker's hands: a pure function of the lease still, and small where it says so."""

from __future__ import annotations

import asyncio
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
from coordinator.run.folder import init_run
from coordinator.settings import RunSettings
from moe.export import export_checkpoint
from moe.full import initial_blocks
from moe.layout import Layout, block_tensor_specs, layout, submission_specs
from moe.presets import preset
from moe.shard import build_shard
from moe.weighing import weighed
from protocol.codecs import BF16, FP32
from protocol.errors import MalformedMessage
from protocol.ids import TRUNK, BlockId, Digest
from protocol.lease import Lease
from protocol.recipe import OPTIMIZERS
from protocol.tensor_headers import payload_size
from tests.worker.conftest import Swarm, served
from tests.worker.leases import lease_message, read_lease
from worker.allowance import lease_bytes
from worker.messages import EXIT_OK
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.optimizer import InnerOptimizer
from worker.train.replay import replay_lease
from worker.train.residuals import coded
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

Make = Callable[..., Lease]
Tokens = NDArray[np.int64]
DIGESTS = {BlockId("trunk"): Digest("0" * 64)}
MODES: tuple[dict[str, Any], ...] = (
    {"trunk": "frozen"},
    {"trunk": "lora", "lora_rank": 4},
    {"trunk": "lora", "lora_rank": 4, "masters": "bf16", "moments": "compact"},
)


@pytest.fixture(params=MODES, ids=["frozen", "lora", "lora+bf16+compact"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(params=OPTIMIZERS)
def lease(request: pytest.FixtureRequest, make_lease: Make, mode: dict[str, Any]) -> Lease:
    return make_lease(optimizer=request.param, inner_steps=6, data_count=24, lora_seed=77, **mode)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    draw = np.random.default_rng(4)
    phrases = draw.integers(0, 256, (12, 17))
    return phrases[draw.integers(0, 12, 24)]


def shard_of(cut: Layout, blocks: Any, lease: Lease, **options: Any) -> Any:
    recipe = lease.recipe
    return build_shard(
        cut, lease.columns, blocks, seed=lease.seed, masters=recipe.masters, trunk=lease.trunk, **options
    )


def trained(cut: Layout, blocks: Any, lease: Lease, tokens: Tokens, **options: Any) -> Any:
    shard = shard_of(cut, blocks, lease)
    train_shard(shard, lease, tokens, **options)
    return pseudo_gradient_of(blocks, shard)


def test_a_replay_comes_to_the_same_bits_and_not_to_those_of_other_factors(
    small_layout: Layout, blocks_of: Any, lease: Lease, tokens: Tokens
) -> None:
    blocks = blocks_of(small_layout)
    once = trained(small_layout, blocks, lease, tokens, micro_batch=3)
    replay = replay_lease(small_layout, threads=1)
    for _ in range(2):  # the second time in the shard of the first
        again, _ = replay(lease, blocks, tokens, 3)
        assert replay_distance(once, again).largest == 0.0
    other, _ = replay(dataclasses.replace(lease, lora_seed=78), blocks, tokens, 3)
    assert (replay_distance(once, other).largest > 0.0) == (lease.recipe.trunk == "lora")
    again, _ = replay(lease, blocks, tokens, 3)
    assert replay_distance(once, again).largest == 0.0
    whole = dataclasses.replace(lease, recipe=dataclasses.replace(lease.recipe, trunk="trained"))
    assert len(replay(whole, blocks, tokens, 3)[0][TRUNK]) == len(small_layout.trunk), "in a shard of its own"


def test_a_restart_comes_to_the_same_bits(
    frozen_layout: Layout, blocks_of: Any, lease: Lease, tokens: Tokens, tmp_path: Path
) -> None:
    blocks = blocks_of(frozen_layout)
    keeper = partial(LeaseKeeper, LeaseStates(tmp_path), computation_of(lease, DIGESTS, "cpu"), every_s=0.0)

    def die(done: int, _loss: float | None) -> None:
        if done == 3:
            raise TrainingStopped("killed")

    with pytest.raises(TrainingStopped):
        trained(frozen_layout, blocks, lease, tokens, keeper=keeper(), on_step=die)
    torch.manual_seed(999)
    after = trained(frozen_layout, blocks, lease, tokens, keeper=keeper())
    assert replay_distance(after, trained(frozen_layout, blocks, lease, tokens)).largest == 0.0


def test_the_payload_is_what_the_lease_says_and_small(
    small_layout: Layout, blocks_of: Any, lease: Lease, tokens: Tokens
) -> None:
    blocks = blocks_of(small_layout)
    made = coded(
        dataclasses.replace(lease, codec="two_bit"), trained(small_layout, blocks, lease, tokens), lambda _: None
    )
    assert len(made.left) == len(lease.blocks)
    assert (TRUNK in lease.blocks) == (lease.recipe.trunk != "frozen")
    sent = payload_size(submission_specs(small_layout, lease.columns, lease.trunk), FP32)
    whole = payload_size(submission_specs(small_layout, lease.columns), FP32)
    columns = 2 * payload_size(block_tensor_specs(small_layout, lease.blocks[-1]), FP32)
    assert sent - columns < (whole - columns) / 4
    on_disk = lease_bytes(small_layout, "fp32", len(lease.columns), trunk=lease.trunk)[1]
    assert on_disk == 2 * sent
    assert lease.own[0] == TRUNK, "and yet it begins with the base version's own trunk"
    frozen = dataclasses.replace(lease, frozen=dataclasses.replace(lease.frozen, codec="int4"))
    assert frozen.codec_of(TRUNK) == "fp32"
    assert frozen.codec_of(BlockId("column.1")) == "int4"


def test_memory_is_what_the_planner_reckons(
    frozen_layout: Layout, blocks_of: Any, lease: Lease, tokens: Tokens
) -> None:
    shard = shard_of(frozen_layout, blocks_of(frozen_layout), lease, compute_dtype=torch.bfloat16)
    inner = InnerOptimizer(shard, lease.recipe, lease.seed)
    shard.loss(torch.from_numpy(tokens[:4])).total.backward()
    gradients = sum(one.grad.nbytes for one in shard.module.parameters() if one.grad is not None)
    trunk = [one for name, one in shard.module.named_parameters() if "mlp.experts" not in name]
    trunk += [one for name, one in shard.module.named_buffers() if name.endswith("lora_a")]
    inner.step(1.0)
    state = sum(value.nbytes for one in inner.parameters for key, value in inner.state_of(one).items() if key != "step")
    tensors = list(weighed(frozen_layout, len(lease.columns), lease.recipe))
    assert gradients == sum(one.gradient_bytes() for one in tensors)
    reckoned = sum(one.moment_bytes(lease.recipe) for one in tensors)
    assert state == pytest.approx(reckoned, rel=0.02)
    # but for the cast copies of what autocast multiplies, which lie in no parameter
    kept = [one for one in tensors if not one.is_expert]
    weights = sum(one.weight_bytes(lease.recipe, 2) - (2 * one.elements if one.group else 0) for one in kept)
    assert sum(one.nbytes for one in trunk) == weights


def test_a_worker_refuses_leases_that_are_none() -> None:
    with pytest.raises(MalformedMessage, match="trunk"):
        read_lease(lease_message(trunk="half"))
    with pytest.raises(MalformedMessage, match="lora_rank"):
        read_lease(lease_message(trunk="lora", lora_rank=0))
    with pytest.raises(MalformedMessage, match="residuals"):
        read_lease(lease_message(trunk="frozen", residuals=["", "", ""]))
    assert read_lease(lease_message(trunk="frozen", residuals=["", ""])).blocks == ("column.0", "column.2")
    assert read_lease(lease_message(trunk="lora", lora_rank=3, lora_seed=2**63)).trunk.seed == 2**63


@pytest.mark.parametrize("trunk", ["lora", "frozen"])
async def test_a_worker_and_a_coordinator_agree_on_it_over_the_wire(tmp_path: Path, corpus: Path, trunk: str) -> None:
    cut, base = layout(preset("tiny"), "frozen"), tmp_path / "base"
    export_checkpoint(initial_blocks(preset("tiny"), cut, 1), cut, base)
    settings = RunSettings(
        checkpoint=str(base), data=str(corpus), port=0, codec="bf16", sequence_length=32, heldout_limit=4,
        screening_sequences=4,
        engine={
            "max_rounds": 1, "gather_s": 0.0, "heartbeat_interval_s": 0.1, "heartbeat_misses": 100.0,
            "screening": {"enabled": False},
            "inner": {"inner_steps": 2, "batch_sequences": 2, "trunk": trunk, "lora_rank": 4},
        },
    )  # fmt: skip
    folder = await asyncio.to_thread(init_run, tmp_path / "run", settings)
    async with served(Swarm(folder, tmp_path)) as swarm:
        _, told, task = swarm.agent()
        async with asyncio.timeout(120):
            ended = await task
        assert (ended.exit_code, len(told.texts("submission_accepted"))) == (EXIT_OK, 1), told.events
        assert swarm.server is not None
        assert swarm.server._run is not None
        state = swarm.server._run.pump.engine.state
        (record,) = [one for one in state.leases.values() if one.verdict is not None]
        assert record.lease.trunk.mode == trunk
        sent = payload_size(submission_specs(cut, record.lease.columns, record.lease.trunk), BF16)
        assert record.payload_bytes == sent < payload_size(submission_specs(cut, record.lease.columns), BF16)
        assert state.version == 1
