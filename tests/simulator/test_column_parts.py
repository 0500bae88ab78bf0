"""A run whose columns are cut by groups of layers, from its first lease to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from coordinator.datasets import prepare
from coordinator.engine.events import LeaseReplayed
from coordinator.engine.records import event_from_json
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from moe.config import config_from_json
from moe.export import export_checkpoint, import_checkpoint
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.layout import layout
from protocol.ids import WorkerId, column_block
from protocol.lease import Lease
from protocol.submission import Blocks
from simulator.adversaries.adversary import Adversary
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer
from worker.train.trainer import LeaseResult

CREW = tuple(Volunteer(name=str(number), max_columns=5) for number in range(4))
FOUNDER = Volunteer(name="founder", trusted=True, owner="ann", max_columns=7)
LIAR = CREW[0]


def test_it_trains_audits_refuses_a_liar_and_exports_the_whole_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from_json({**micro_values(FAMILIES["olmoe"]), "num_hidden_layers": 4})
    monkeypatch.setattr("moe.presets.preset", lambda *_names, **_options: config)
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # no power fails here, and disks are slow
    prepare([str(corpus)], tmp_path / "data")
    settings = RunSettings(
        preset="micro",
        data=str(tmp_path / "data"),
        column_parts=2,
        codec="int4",
        sequence_length=32,
        heldout_limit=64,
        screening_sequences=16,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": 3,
            "min_workers": len(CREW) + 1,
            "gather_s": 0.0,
            "heartbeat_interval_s": 1.0,
            "checkpoint_every": 0,
            "validate_every": 1,
            "inner": {"inner_steps": 5, "batch_sequences": 8, "warmup_rounds": 0, "frozen_dtype": "int4"},
            "audits": {"budget": 2.0},
            # in a model of 46,000 parameters an expert that gets no token is no lazy worker's (docs/log.md)
            "screening": {"min_column_norm_factor": 0.0},
        },
    )
    run = OpenedRun.open(init_run(tmp_path / "run", settings), STILL)
    assert run.engine.state.config.columns == run.layout.columns == 2 * run.layout.experts
    first = run.versions.load_blocks(run.versions.manifest(run.engine.state.manifest))
    leases: list[Lease] = []
    told: list[Any] = []
    pure = PureLeases(Shards(run.layout))

    def training(worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        leases.append(lease)
        return pure(worker, lease, start, sequences_NL)

    lies = {LIAR.worker: Adversary.of(attack="sign-flip", strength=None, seed=7, vocab_size=264)}
    swarm = VirtualSwarm(run, [*CREW, FOUNDER], training, seed=0, colluders=lies, on_verdict=told.append)
    swarm.play()
    state = run.engine.state
    losses = [one.val_loss for one in state.validations]
    assert state.version == 3
    assert losses[-1] < losses[0] - 1.0, losses
    assert not [one for one in told if not one.accepted and one.worker != LIAR.worker]
    assert any(not one.accepted for one in told if one.worker == LIAR.worker)
    assert max(len(lease.columns) for lease in leases) == 7 > run.layout.experts
    assert any(len({column % 2 for column in lease.columns}) == 2 for lease in leases), "of both groups of layers"
    audits = [one for one in map(event_from_json, (text for _, text in run.journal.read())) if isinstance(one, LeaseReplayed)]  # fmt: skip  # noqa: E501
    accused = {one.lease_id for one in state.accusations}
    assert [one for one in audits if one.lease_id not in accused]
    assert all(max(one.trunk, one.columns) < 1e-4 for one in audits if one.lease_id not in accused)

    last = run.versions.load_blocks(run.versions.manifest(state.manifest))
    moved = [
        column
        for column in range(run.layout.columns)
        if not all(
            torch.equal(tensor, first[at][name]) for at in [column_block(column)] for name, tensor in last[at].items()
        )
    ]
    assert moved == list(range(run.layout.columns))
    export_checkpoint(last, run.layout, tmp_path / "exported")
    found, blocks = import_checkpoint(tmp_path / "exported")
    assert len(blocks) == 1 + layout(found, "frozen").columns == 1 + run.layout.experts
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert sum(one.numel() for one in model.parameters()) == run.layout.parameters
    run.close()
