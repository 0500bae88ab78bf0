from __future__ import annotations

import resource
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe.layout import ParamSpec, block_tensor_specs, layout, submission_specs
from moe.planner import held_bytes
from moe.presets import preset
from protocol.errors import ConfigError, LocalError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.recipe import Recipe
from protocol.residency import ABSENT, FROZEN


def test_every_parameter_lies_in_exactly_one_block(config, residency):
    model = AutoModelForCausalLM.from_config(config)
    cut = layout(config, residency)
    counted = sum(tensor.numel() for tensor in model.parameters())
    assert cut.parameters == counted
    assert cut.total_bytes == sum(cut.block_bytes(block) for block in cut.blocks) == 4 * counted
    names = [spec.name for spec in (*cut.trunk, *cut.column)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(set(names)) == len(names)


def test_routers_belong_to_the_trunk_when_frozen_and_to_the_columns_when_absent(config):
    frozen, absent = layout(config, FROZEN), layout(config, ABSENT)
    routers = [spec for spec in frozen.trunk if spec.name.endswith(".mlp.gate.weight")]
    assert routers
    assert not [spec for spec in absent.trunk if spec.name.endswith(".mlp.gate.weight")]
    rows = {spec.name: spec.shape for spec in absent.column}
    assert all(rows[spec.name] == spec.shape[1:] for spec in routers)


def test_a_dense_layer_and_tied_embeddings_are_trunk_and_counted_once(small_config):
    cut = layout(small_config("qwen3_moe"), FROZEN)
    trunk = {spec.name for spec in cut.trunk}
    assert "model.layers.1.mlp.gate_proj.weight" in trunk
    assert cut.tied == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert "lm_head.weight" not in trunk
    assert {spec.name.split(".")[2] for spec in cut.column} == {"0", "2"}


def test_trainable_memory_grows_by_one_column_at_a_time(config, residency):
    cut = layout(config, residency)
    column = cut.block_bytes(column_block(0))
    assert cut.trainable_bytes(2) - cut.trainable_bytes(1) == column
    adamw = Recipe(optimizer="adamw")
    step = held_bytes(cut, 3, recipe=adamw) - held_bytes(cut, 2, recipe=adamw)
    # Held: weights, gradients and two moments; a frozen column that is now held was there already.
    assert step == 4 * column - (column if residency == FROZEN else 0)
    half = held_bytes(cut, 2, compute_bytes=2)
    assert half != held_bytes(cut, 2)


def test_the_7b_shape_is_computed_without_allocating_it():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    cut = layout(preset("olmoe-7b"), FROZEN)
    assert time.perf_counter() - started < 5
    # Figures of OLMoE-1B-7B-0924: 6.92 billion parameters, 64 experts of 6.29 million in each of 16 layers.
    assert cut.parameters == 6_919_161_856
    assert cut.columns == 64
    assert cut.block_bytes(column_block(63)) == 4 * 16 * 3 * 2048 * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale < 200 << 20


def test_submission_specs_are_the_held_blocks_sorted_by_name(config, residency):
    cut = layout(config, residency)
    specs = submission_specs(cut, [3, 0])
    names = [spec.name for spec in specs]
    assert names == sorted(names)
    assert len(specs) == len(cut.trunk) + 2 * len(cut.column)
    assert {name.split("/")[0] for name in names} == {"trunk", "column.0", "column.3"}
    elements = sum(torch.Size(spec.shape).numel() for spec in specs)
    assert 4 * elements == cut.trainable_bytes(2)
    shapes = {spec.name: spec.shape for spec in specs}
    expert = next(spec for spec in cut.column if "down_proj" in spec.name)
    assert shapes[f"column.3/{expert.name}"] == expert.shape


def test_block_tensor_specs_name_one_block(config):
    cut = layout(config, FROZEN)
    assert [spec.name for spec in block_tensor_specs(cut, TRUNK)] == sorted(spec.name for spec in cut.trunk)


def test_needed_blocks_are_all_when_frozen_and_the_held_when_absent(config):
    assert layout(config, FROZEN).needed_blocks([1]) == layout(config, FROZEN).blocks
    assert layout(config, ABSENT).needed_blocks([3, 1]) == (TRUNK, BlockId("column.1"), BlockId("column.3"))


@pytest.mark.parametrize("columns", [[], [0, 0], [-1], [99]])
def test_wrong_columns_are_refused(config, columns):
    with pytest.raises(ConfigError, match="distinct columns"):
        layout(config, FROZEN).check_columns(columns)


def test_absent_refuses_fewer_columns_than_top_k(config):
    cut = layout(config, ABSENT)
    assert cut.check_columns(range(cut.top_k)) == tuple(range(cut.top_k))
    with pytest.raises(ConfigError, match=r"at least top-k = \d"):
        cut.check_columns(range(cut.top_k - 1))


def test_absent_refuses_gates_that_are_not_renormalised(small_config):
    config = small_config("olmoe")
    config.norm_topk_prob = False
    assert layout(config, FROZEN).columns == 6
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        layout(config, ABSENT)


def test_unknown_residency_and_unknown_architecture_are_refused(config):
    with pytest.raises(ConfigError, match="residency"):
        layout(config, "elsewhere")
    config.model_type = "llama"
    with pytest.raises(ConfigError, match="not supported"):
        layout(config, FROZEN)


def test_an_unknown_column_block_is_our_bug(config):
    with pytest.raises(LocalError, match="expert columns"):
        layout(config, FROZEN).block_specs(column_block(99))


def test_specs_know_their_bytes():
    assert ParamSpec(name="a", shape=(3, 5)).payload_bytes == 60
