"""Columns cut by groups of layers: the same model in more blocks, of which a shard may hold those of some layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe.blocks import merge_blocks, slice_blocks
from moe.config import config_from_json
from moe.export import checkpoint_blocks, export_checkpoint, inspect_checkpoint
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.frozen_bytes import frozen_bytes
from moe.full import full_model, load_blocks
from moe.layout import Layout, layout
from moe.planner import ANY_HOST, Burden, Memory, planned
from moe.presets import preset
from moe.published import published
from moe.shard import ShardModel, build_shard
from moe.stand_ins import DECODED, DEVICE, MAPPED, StandIns
from moe.streams import read_whole
from moe.weighing import weighed
from protocol.errors import ConfigError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.recipe import Recipe
from protocol.submission import Blocks
from tests.moe.conftest import fresh

ROWS = ("olmoe", "mixtral", "qwen3_moe", "gpt_oss", "dbrx", "deepseek_v3", "ernie4_5_moe")
"""Stacked, tied, with biases, flat and turned, with selection biases, with shared experts."""
DEEPER = {
    "deepseek_v3": {"num_hidden_layers": 3},
    "ernie4_5_moe": {"num_hidden_layers": 3, "moe_layer_end_index": 2},
}
"""Those that begin with a layer without experts."""
SHARDS = ((0,), (1, 2), (1, 3, 5), (0, 2, 4, 6))


def cut_in_two(row: str) -> tuple[Layout, Layout]:
    """A small model of two layers with experts, or more: whole columns, and in as many parts."""
    config = config_from_json({**micro_values(FAMILIES[row]), **DEEPER.get(row, {})})
    whole = layout(config, "frozen")
    assert whole.expert_layers > 1
    return whole, layout(config, "frozen", whole.expert_layers)


def gradients(shard: ShardModel, tokens: Tensor) -> tuple[float, dict[BlockId, dict[str, Tensor]]]:
    """Loss, and by block what `held` would give of weights."""
    loss = shard.loss(tokens).total
    loss.backward()
    with torch.no_grad():
        for parameter in shard.module.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return float(loss.detach()), shard.held_blocks()


@pytest.mark.parametrize("row", ROWS)
def test_it_is_the_same_model_in_more_blocks(row: str) -> None:
    whole, cut = cut_in_two(row)
    assert cut.experts == whole.columns
    assert cut.columns == whole.columns * len(cut.parts)
    assert cut.total_bytes == whole.total_bytes
    assert cut.column == whole.column
    first, second = merge_blocks(fresh(whole), whole), merge_blocks(fresh(cut), cut)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), "whatever it is cut into"
    again = slice_blocks(second, cut)
    model, at = full_model(cut, again), column_block(3)
    load_blocks(model, cut, {at: {name: tensor + 1 for name, tensor in again[at].items()}})
    changed = slice_blocks(model.state_dict(), cut)
    assert changed[at].keys() == again[at].keys()
    for block in cut.blocks:
        for name, tensor in changed[block].items():
            torch.testing.assert_close(tensor, again[block][name] + (block == at), rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [DECODED, MAPPED])
@pytest.mark.parametrize("row", ROWS)
def test_what_is_held_gets_the_gradient_that_it_would_get_if_all_were(row: str, place: str, tokens: Any) -> None:
    """In whichever layers it lies, of whatever kind experts are, wherever the others lie."""
    _, cut = cut_in_two(row)
    blocks = fresh(cut)
    loss, expected = gradients(build_shard(cut, range(cut.columns), blocks), tokens)
    for held in SHARDS:
        shard = build_shard(cut, held, blocks, stand_ins=StandIns(place=place))
        still: Blocks = {block: {n: t.clone() for n, t in tensors.items()} for block, tensors in shard.held()}
        assert still.keys() == {TRUNK, *map(column_block, held)}
        assert all(torch.equal(t, blocks[block][n]) for block, tensors in still.items() for n, t in tensors.items())
        seen = {id(one) for group in shard.parameter_groups(1.0, 1.0, 0.0) for one in group["params"]}
        assert all(one.numel() for one in shard.parameters() if id(one) in seen), "nothing empty is to be stepped"
        got, found = gradients(shard, tokens)
        assert got == pytest.approx(loss, rel=1e-5)
        for block, tensors in found.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(tensor, expected[block][name], rtol=1e-3, atol=1e-5)


def test_a_shard_takes_other_blocks_and_coded_ones_lie_in_as_many_bytes_as_planned(tokens: Any) -> None:
    _, cut = cut_in_two("olmoe")
    blocks, stand_ins, held = fresh(cut), StandIns(dtype="int4", place=DEVICE), cut.crowded(3)
    other = {block: {name: 2 * tensor for name, tensor in tensors.items()} for block, tensors in blocks.items()}
    shard = build_shard(cut, held, blocks, stand_ins=stand_ins)
    shard.load(other)
    expected = gradients(build_shard(cut, held, other, stand_ins=stand_ins), tokens)
    loss, found = gradients(shard, tokens)
    assert loss == expected[0]
    assert all(torch.equal(t, expected[1][block][n]) for block, tensors in found.items() for n, t in tensors.items())
    store: Any = shard._apart
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for layer in store._store._layers for pieces in layer.values() for t in pieces}  # fmt: skip  # noqa: E501
    planned_bytes = frozen_bytes(cut, 3, stand_ins).device
    assert sum(memory.values()) + store._workspaces[0].nbytes == planned_bytes


def test_what_is_exported_is_what_whole_columns_export(tmp_path: Path) -> None:
    """Byte for byte, and it comes back cut either way."""
    whole, cut = cut_in_two("gpt_oss")
    for name, one in (("whole", whole), ("cut", cut)):
        export_checkpoint(fresh(one), one, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert all((tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes() for file in files)
    found, expected = inspect_checkpoint(tmp_path / "cut"), fresh(cut)
    for block, tensors in checkpoint_blocks(found, cut):
        for name, tensor in tensors.items():
            value = tensor if isinstance(tensor, Tensor) else read_whole(tensor)
            assert torch.equal(value, expected[block][name])


@pytest.mark.parametrize("parts", [0, 3, 5, 2**32 - 1])
def test_parts_of_unequal_layers_are_refused_with_the_reason(parts: int) -> None:
    with pytest.raises(ConfigError, match=rf"2 layers have experts, and as many must lie in each part, got {parts}"):
        layout(preset("tiny"), "frozen", parts)
    with pytest.raises(ConfigError, match=r"residency frozen"):
        layout(preset("tiny"), "absent", 2)


def test_a_plan_counts_the_worst_layer_and_all_columns() -> None:
    """A shard's columns may all lie in the same layers."""
    cut = layout(preset("tiny"), "frozen", 2)
    tensors = [one for one in weighed(cut, 9) if one.is_expert]
    assert sum(one.elements for one in tensors) == 9 * cut.block_bytes(column_block(0)) // 4
    assert max(one.rows for one in tensors) == cut.experts == 8
    assert {one.layer: one.rows for one in tensors} == {0: 8, 1: 1}


def test_a_quarter_column_of_mixtral_trains_on_24_gb_and_the_plan_says_so() -> None:
    recipe = Recipe(masters="bf16", moments="compact", frozen_dtype="int4")

    def on_a_card(parts: int) -> Any:
        cut = layout(published("Mixtral-8x7B"), "frozen", parts)
        load = Burden(layout=cut, recipe=recipe, sequence_length=512, compute_bytes=2, on_gpu=True, codec="int4")
        return planned(load, Memory(24 << 30, ANY_HOST), (1,))

    assert "With columns cut into 4 parts (column_parts), 1 of 32 would fit" in on_a_card(1).reason
    assert (on_a_card(4).columns, on_a_card(4).fits) == (1, True)
