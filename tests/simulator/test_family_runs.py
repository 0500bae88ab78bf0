"""Two rounds of a run, and a lease computed again, of every family that a run can train: by its row alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aggregation.replayed import replay_distance
from coordinator.datasets import prepare
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from moe.config import config_from_json
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.full import initial_blocks
from moe.layout import layout
from moe.selection import layer_of
from moe.shard import build_shard
from protocol.ids import Digest, LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from protocol.residency import ABSENT, FROZEN
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.replay import replay_lease
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

ROUNDS, STEPS, BATCH = 2, 3, 2
AWAY = ("olmoe", "gpt_oss", "dbrx", "kolibri1", "minimax_m2", "ernie4_5_moe", "lfm2_moe", "inkling2_text")
"""Each with something of its own in what is cut by columns; gradients of all are in tests/moe/test_family_shards.py."""
CREW = tuple(Volunteer(name=str(number), max_columns=4) for number in range(2))


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare([str(corpus)], folder)
    return folder


def opened(folder: Path, data: Path, residency: Any) -> OpenedRun:
    settings = RunSettings(
        preset="micro",
        data=str(data),
        residency=residency,
        sequence_length=16,
        heldout_limit=2,
        screening_sequences=2,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": ROUNDS,
            "min_workers": len(CREW),
            "gather_s": 0.0,
            "heartbeat_interval_s": 1.0,
            "checkpoint_every": 0,
            "validate_every": 0,
            "screening": {"enabled": False},
            "outer_learning_rate": 0.7,
            "outer_momentum": 0.5,
            "inner": {"inner_steps": STEPS, "batch_sequences": BATCH},
        },
    )
    return OpenedRun.open(init_run(folder, settings), STILL)


def a_lease(run: OpenedRun) -> tuple[Lease, Any]:
    """One of the run's leases, and its sequences."""
    record = next(record for record in run.engine.state.leases.values() if len(record.lease.columns) < 6)
    data = record.lease.data
    return record.lease, run.dataset.sequences(data.seed, data.start, data.count, 16).astype("int64")


@pytest.mark.parametrize(
    ("name", "residency"), [*((name, FROZEN) for name in FAMILIES), *((name, ABSENT) for name in AWAY)]
)
def test_two_rounds_and_a_lease_again_to_the_bit(
    name: str, residency: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = micro_values(FAMILIES[name])
    config = config_from_json(values)
    monkeypatch.setattr("moe.presets.preset", lambda *_names, **_options: config)
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # no power fails here, and disks are slow
    run = opened(tmp_path / "run", data, residency)
    first = run.versions.load_blocks(run.versions.manifest(run.engine.state.manifest))
    swarm = VirtualSwarm(run, CREW, PureLeases(Shards(run.layout)), seed=0)
    while not run.engine.state.leases:
        swarm.advance()
    lease, sequences = a_lease(run)
    swarm.play()
    assert run.engine.state.version == ROUNDS
    assert run.engine.state.totals.submissions_accepted == ROUNDS * len(CREW)
    last = run.versions.load_blocks(run.versions.manifest(run.engine.state.manifest))
    moved = {name for block in last for name in last[block] if not torch.equal(last[block][name], first[block][name])}
    trained = {spec.name for spec in (*run.layout.trunk, *run.layout.column)}
    assert run.layout.selection_biases <= moved
    assert len(moved) > 0.5 * len(trained), "all but what its class gives no gradient: indexers of sparse attention"

    shard = build_shard(run.layout, lease.columns, first, seed=lease.seed)
    train_shard(shard, lease, sequences)
    sent = pseudo_gradient_of(first, shard)
    again, _ = replay_lease(run.layout)(lease, first, sequences, 0)
    assert replay_distance(sent, again).largest == 0.0
    in_parts, _ = replay_lease(run.layout)(lease, first, sequences, 1)
    rate = lease.recipe.selection_bias_rate
    for block, tensors in sent.items():
        for tensor in run.layout.selection_biases & tensors.keys():
            assert layer_of(tensor) >= 0
            steps = tensors[tensor] / rate
            torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3, msg="whole moves of the rate")
            assert float(steps.abs().max()) <= STEPS
            torch.testing.assert_close(in_parts[block][tensor], tensors[tensor], msg="however the batch is cut")
    run.close()


@pytest.mark.parametrize("name", ["deepseek_v3", "minimax_m2", "afmoe"])
def test_a_restart_in_mid_lease_takes_up_the_biases(name: str, tmp_path: Path) -> None:
    cut = layout(config_from_json(micro_values(FAMILIES[name])), FROZEN)
    blocks = initial_blocks(config_from_json(cut.config_json), cut, 3)
    lease = Lease(
        lease_id=LeaseId("r1.1"), round=RoundNumber(1), base_version=Version(0), columns=(0, 2, 3),
        data=DataRange(seed=0, start=0, count=8), seed=5, inner_steps=4, batch_sequences=2, recipe=Recipe(),
    )  # fmt: skip
    sequences = np.random.default_rng(1).integers(0, 256, (8, 17))
    states = LeaseStates(tmp_path)
    computation = computation_of(lease, {block: Digest("0" * 64) for block in cut.blocks}, "cpu")

    def sent(killed_after: int) -> Any:
        def die(done: int, _loss: float | None) -> None:
            if killed_after and done == killed_after + 1:
                raise TrainingStopped("killed")

        shard = build_shard(cut, lease.columns, blocks, seed=lease.seed)
        keeper = LeaseKeeper(states, computation, every_s=0.0)
        with contextlib.suppress(TrainingStopped):
            train_shard(shard, lease, sequences, keeper=keeper if killed_after else None, on_step=die)
        if killed_after:
            shard = build_shard(cut, lease.columns, blocks, seed=lease.seed)
            train_shard(shard, lease, sequences, keeper=LeaseKeeper(states, computation, every_s=0.0))
        return pseudo_gradient_of(blocks, shard)

    assert replay_distance(sent(2), sent(0)).largest == 0.0
