"""Frozen experts in codes: a lease of such a run is a pure function still, wherever a machine keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregation.replayed import replay_distance
from moe.layout import Layout, block_tensor_specs
from moe.shard import build_shard
from moe.stand_ins import DECODED, DEVICE, MAPPED, StandIns
from protocol.codecs import FP32, codec_named
from protocol.encoded_block import EncodedBlock
from protocol.ids import BlockId, Digest, Version
from protocol.lease import FrozenColumns, Lease
from protocol.tensors import encode_tensors, encoded_tensors
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.mapped import mapped_block
from worker.train.replay import replay_lease
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

Make = Callable[..., Lease]
Tokens = NDArray[np.int64]
Given = Mapping[BlockId, Mapping[str, Tensor]]
DIGESTS = {BlockId("trunk"): Digest("0" * 64)}


@pytest.fixture
def tokens() -> Tokens:
    return np.random.default_rng(4).integers(0, 256, (40, 17))


@pytest.fixture(params=["fp32", "int8", "int4"])
def came_in(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["int8", "int4"])
def lease(request: pytest.FixtureRequest, make_lease: Make, came_in: str) -> Lease:
    frozen = FrozenColumns(version=Version(0), codec="" if came_in == "fp32" else came_in)
    return make_lease(frozen_dtype=request.param, inner_steps=10, data_count=40, optimizer="muon", frozen=frozen)


def fetched(folder: Path, cut: Layout, blocks: Given, lease: Lease) -> dict[BlockId, EncodedBlock]:
    """As a worker has them: in the files that they were fetched into."""
    found = {}
    for block, tensors in blocks.items():
        codec = codec_named(lease.codec_of(block))
        (path := folder / block).write_bytes(encode_tensors(tensors, codec))
        found[block] = mapped_block(path, block_tensor_specs(cut, block), codec)
    return found


def kept_here(cut: Layout, blocks: Given, lease: Lease) -> Given:
    """As a coordinator has them: held ones decoded, and what stands in for the others in its store."""
    found: dict[BlockId, Mapping[str, Tensor]] = {}
    for block, tensors in blocks.items():
        codec = codec_named(lease.codec_of(block))
        payload = memoryview(bytearray(encode_tensors(tensors, codec)))
        encoded = encoded_tensors(payload, block_tensor_specs(cut, block), codec)
        found[block] = tensors if codec is FP32 else EncodedBlock(encoded)
    return found


def trained(cut: Layout, start: Given, lease: Lease, tokens: Tokens, place: str, **options: Any) -> Any:
    stand_ins = StandIns(dtype=lease.recipe.frozen_dtype, place=place)
    shard = build_shard(cut, lease.columns, start, seed=lease.seed, stand_ins=stand_ins)
    shard.recompute(on=place == MAPPED)
    train_shard(shard, lease, tokens, **options)
    return pseudo_gradient_of(start, shard)


def test_a_replay_comes_to_the_same_bits_as_every_worker(
    frozen_layout: Layout, blocks_of: Any, lease: Lease, tokens: Tokens, tmp_path: Path
) -> None:
    blocks = blocks_of(frozen_layout)
    start = fetched(tmp_path, frozen_layout, blocks, lease)
    replay = replay_lease(frozen_layout, threads=1)
    again, _ = replay(lease, kept_here(frozen_layout, blocks, lease), tokens, 3)
    for place in (DECODED, DEVICE, MAPPED):
        sent = trained(frozen_layout, start, lease, tokens, place, micro_batch=3)
        assert replay_distance(sent, again).largest == 0.0, place


def test_a_replay_in_another_dtype_is_another_computation(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, tokens: Tokens
) -> None:
    """The shard of the last replay is no use to one of another dtype."""
    blocks, replay = blocks_of(frozen_layout), replay_lease(frozen_layout, threads=1)
    leases = [make_lease(frozen_dtype=dtype, inner_steps=10, data_count=40) for dtype in ("compute", "int8", "int4")]
    found = [replay(one, blocks, tokens, 4)[0] for one in (*leases, *leases)]
    for one, other in zip(found[:3], found[3:], strict=True):
        assert replay_distance(one, other).largest == 0.0
    assert 0.0 < replay_distance(found[0], found[1]).largest < replay_distance(found[0], found[2]).largest


def test_a_restart_on_another_rung_comes_to_the_same_bits(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, tokens: Tokens, tmp_path: Path
) -> None:
    """Progress is of the lease, not of where its frozen experts lay."""
    lease = make_lease(frozen_dtype="int4", inner_steps=10, data_count=40, optimizer="muon", masters="bf16")
    start = fetched(tmp_path, frozen_layout, blocks_of(frozen_layout), lease)
    keeper = partial(
        LeaseKeeper, LeaseStates(tmp_path / "progress"), computation_of(lease, DIGESTS, "cpu"), every_s=0.0
    )

    def die(done: int, _loss: float | None) -> None:
        if done == 5:
            raise TrainingStopped("killed")

    def run(place: str, **options: Any) -> Any:
        stand_ins = StandIns(dtype="int4", place=place)
        shard = build_shard(frozen_layout, lease.columns, start, seed=lease.seed, masters="bf16", stand_ins=stand_ins)
        train_shard(shard, lease, tokens, **options)
        return pseudo_gradient_of(start, shard)

    with pytest.raises(TrainingStopped):
        run(DEVICE, keeper=keeper(), on_step=die)
    torch.manual_seed(999)
    assert replay_distance(run(MAPPED, keeper=keeper()), run(DECODED)).largest == 0.0
