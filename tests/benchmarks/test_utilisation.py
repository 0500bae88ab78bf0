"""Utilisation's rows: nothing that is moved is assumed, and the 100M preset's workers train 95 % of the time."""

from __future__ import annotations

from benchmarks.utilisation import ASSUMED, MODELS, USUAL, row, systems
from coordinator.engine.down_config import DownConfig
from coordinator.run.lease_length import RATIO
from moe.layout import block_tensor_specs, submission_specs
from protocol.codecs import codec_named
from protocol.tensor_headers import payload_size


def test_bytes_are_the_codecs_own() -> None:
    model = MODELS[1]
    moved, cut = systems(model), model.layout
    up = payload_size(submission_specs(cut, range(model.columns)), codec_named("ternary"))
    assert moved["ternary"].up_bytes == moved["frugal"].up_bytes == up
    blocks = {block: payload_size(block_tensor_specs(cut, block), codec_named("int4")) for block in cut.blocks}
    held = blocks[cut.blocks[0]] + 8 * blocks[cut.blocks[1]]
    every = DownConfig().frozen_every
    assert abs(moved["int4"].down_bytes - held - (sum(blocks.values()) - held) / every) < 1.0


def test_workers_of_the_100m_preset_train_95_percent_of_the_time() -> None:
    model = MODELS[0]
    moved = systems(model)
    lease_s = RATIO * moved["int4"].transfer_s(ASSUMED)
    shares = {
        name: float(str(row(model, name, USUAL, moved[name], lease_s, rounds=8, coordinator_s=0.0)["training"]))
        for name in ("before", "int4", "frugal", "bound")
    }
    assert 0.945 < shares["int4"] < shares["bound"] < 0.97
    assert shares["before"] < 0.9 < 0.96 < shares["frugal"]
    slowed = row(model, "int4", USUAL, moved["int4"], lease_s, rounds=8, coordinator_s=0.5 * lease_s)
    assert float(str(slowed["training"])) < 0.7
