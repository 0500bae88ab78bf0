from __future__ import annotations

import pytest
import torch

from moe.full import full_model, initial_blocks, sequence_losses
from moe.layout import layout
from moe.passing import activation_bytes, sequences_at_once
from moe.planner import held_bytes, plan
from moe.presets import preset
from moe.shard import build_shard
from protocol.residency import ABSENT, FROZEN
from tests.live_tensors import LiveTensors


def test_more_memory_never_holds_fewer_columns(config, residency):
    cut = layout(config, residency)
    everything = plan(cut, 1 << 40, batch_sequences=2, sequence_length=16)
    assert everything.fits
    assert everything.columns == cut.columns
    last = 0
    for share in range(1, 41):
        found = plan(cut, everything.needed_bytes * share // 40, batch_sequences=2, sequence_length=16)
        assert found.columns >= last or not found.fits
        assert found.fits == (found.needed_bytes <= found.memory_bytes)
        last = found.columns if found.fits else last
    assert last == cut.columns


def test_what_fits_is_the_largest_that_fits(config):
    cut = layout(config, FROZEN)
    needed = plan(cut, 1 << 40, batch_sequences=64, sequence_length=16).needed_bytes
    found = plan(cut, needed - 1, batch_sequences=64, sequence_length=16)
    assert (found.columns, found.recomputed) == (cut.columns, True), "time is given for a column"
    assert found.needed_bytes < needed
    assert "computed again" in found.reason
    fewer = plan(cut, found.needed_bytes - 1, batch_sequences=64, sequence_length=16)
    assert fewer.columns < cut.columns
    assert "one more would need" in fewer.reason


def test_lines_add_up_to_what_the_layout_says(config, residency):
    cut = layout(config, residency)
    for compute_bytes in (2, 4):
        found = plan(cut, 1 << 40, batch_sequences=2, sequence_length=16, compute_bytes=compute_bytes)
        by_part = {line.part: line.memory_bytes for line in found.lines if line.where == "device"}
        assert set(by_part) == {"weights", "gradients", "moments", "frozen", "passing", "reserve"}
        assert sum(by_part.values()) == found.needed_bytes
        passing, reserve = by_part.pop("passing"), by_part.pop("reserve")
        assert sum(by_part.values()) == held_bytes(cut, found.columns, compute_bytes=compute_bytes)
        assert passing >= activation_bytes(cut, 32, compute_bytes)
        assert reserve > 0
        beside = {line.part: line.memory_bytes for line in found.lines if line.where == "host"}
        assert sum(beside.values()) == found.needed.host
        assert bool(beside) == (compute_bytes == 2), "a CPU has no memory beside its own"
        assert found.mapped_bytes == sum(cut.block_bytes(block) for block in cut.needed_blocks(range(found.columns)))


def test_what_cannot_fit_says_why(config):
    cut = layout(config, ABSENT)
    found = plan(cut, 1000, batch_sequences=2, sequence_length=16)
    assert not found.fits
    assert found.columns == cut.top_k
    assert "top-k" in found.reason
    assert "needed" in found.reason


def test_the_7b_shape_on_a_24_gib_gpu():
    absent = preset("olmoe-7b")
    absent.norm_topk_prob = True
    frozen = plan(layout(absent, FROZEN), 48 << 30, batch_sequences=1, sequence_length=1024, compute_bytes=2)
    assert frozen.fits
    assert 1 <= frozen.columns < 64
    rest = plan(layout(absent, ABSENT), 48 << 30, batch_sequences=1, sequence_length=1024, compute_bytes=2)
    assert rest.columns >= frozen.columns
    assert rest.needed.host < frozen.needed.host, "what is absent lies nowhere; what is frozen, beside the card"


@pytest.mark.parametrize("name", ["tiny"])
def test_activations_are_an_upper_estimate(name):
    """Bytes that backward really keeps, counted at the seam where autograd saves them."""
    config = preset(name)
    cut = layout(config, FROZEN)
    shard = build_shard(cut, [0, 1, 2, 3], initial_blocks(config, cut, 1))
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 256, (4, 129))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = shard.loss(tokens)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*shard.module.parameters(), *shard.module.buffers())}
    kept = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert parts.total.requires_grad
    assert kept <= activation_bytes(cut, 4 * 128) <= 3 * kept


def test_as_many_held_out_sequences_go_at_once_as_memory_holds():
    large, small = layout(preset("olmoe-7b"), FROZEN), layout(preset("tiny"), FROZEN)
    assert sequences_at_once(small, 32, 128, 256 << 20) == 32, "what is small is as it was"
    assert sequences_at_once(large, 32, 1024, 256 << 20) == 1, "one at the least"
    assert 2 <= sequences_at_once(large, 32, 64, 256 << 20) < 32


def test_what_passes_is_an_upper_estimate():
    config = preset("tiny")
    cut = layout(config, FROZEN)
    model = full_model(cut, initial_blocks(config, cut, 1))
    tokens = torch.randint(0, 256, (16, 129))
    with LiveTensors() as live:
        sequence_losses(model, tokens, 16)
    assert sequences_at_once(cut, 99, 128, live.peak_bytes) <= 16
    assert sequences_at_once(cut, 99, 128, 4 * live.peak_bytes) > 16, "and not beyond all measure"
