"""What every family must do, by its row alone; and a family that nobody has does it with one row more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import moe
from moe.blocks import merge_blocks, slice_blocks
from moe.config import config_from_json, config_to_json
from moe.export import export_checkpoint, import_checkpoint
from moe.families import FAMILIES, Family
from moe.families.keys import COMMON
from moe.full import full_model, initial_blocks
from moe.health import examine
from moe.layout import Layout, layout
from moe.planner import activation_bytes
from moe.routing import RouterTap
from moe.shard import build_shard
from moe.skeleton import model_class
from protocol.ids import TRUNK
from protocol.residency import ABSENT, FROZEN
from tests.moe import made_up

SMALL: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.3,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "norm_topk_prob": True,
    "attention_bias": True,
    "clip_qkv": 8.0,
    "head_dim": 8,
    "sliding_window": None,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
"""A small value of every key of every family; a row with a new key needs one here."""


@pytest.fixture(params=[*FAMILIES, made_up.ROW.model_type])
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    if request.param == made_up.ROW.model_type:
        made_up.tell_transformers()
        monkeypatch.setitem(FAMILIES, made_up.ROW.model_type, made_up.ROW)
    return FAMILIES[request.param]


@pytest.fixture
def values(family: Family) -> dict[str, Any]:
    missing = sorted(family.keys - SMALL.keys())
    assert not missing, f"tests/moe/test_families.py: SMALL needs a small value of {', '.join(missing)}"
    return {"model_type": family.model_type, **{key: SMALL[key] for key in family.keys}}


@pytest.fixture(params=[FROZEN, ABSENT])
def cut(values: dict[str, Any], request: pytest.FixtureRequest) -> Layout:
    return layout(config_from_json(values), request.param)


@pytest.fixture
def frozen(values: dict[str, Any]) -> Layout:
    return layout(config_from_json(values), FROZEN)


def fresh(cut: Layout) -> Any:
    return initial_blocks(config_from_json(cut.config_json), cut, 5)


def test_its_configuration_means_what_it_says(family: Family, values: dict[str, Any]) -> None:
    config = config_from_json(values)
    assert config_to_json(config) == values
    assert model_class(family.model_type).__name__ == family.class_name
    for key, spelt in family.spelt.items():
        assert getattr(config, spelt) == values[key]
    assert set(family.spelt) <= set(family.keys)
    assert family.expert_width in family.keys
    assert not set(family.own_keys) & set(COMMON)


def test_every_parameter_is_in_one_block_and_columns_are_its_experts(family: Family, cut: Layout) -> None:
    model = model_class(family.model_type)(config_from_json(cut.config_json))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    trunk, column = {spec.name: spec.shape for spec in cut.trunk}, {spec.name: spec.shape for spec in cut.column}
    assert {**trunk, **{name: (cut.columns, *shape) for name, shape in column.items()}} == shapes
    assert not trunk.keys() & column.keys()
    width, hidden = cut.config_json[family.expert_width], cut.config_json["hidden_size"]
    found = sorted(column.values())
    each = [(2 * width, hidden), (hidden, width), *([(hidden,)] if cut.residency == ABSENT else [])]
    assert found == sorted(each * SMALL["num_hidden_layers"])
    assert cut.parameters == sum(tensor.numel() for tensor in model.parameters())


def test_slices_merge_to_the_same_bits(family: Family, cut: Layout) -> None:
    torch.manual_seed(1)
    model = model_class(family.model_type)(config_from_json(cut.config_json))
    state = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    merged = merge_blocks(slice_blocks(state, cut), cut)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)


def gradients(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients by `transformers` alone, with its own loop over experts."""
    model.set_experts_implementation("eager")
    model.train()
    output = model(input_ids=tokens[:, :-1], output_router_logits=True)
    chosen = output.logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    loss = -chosen.mean() + SMALL["router_aux_loss_coef"] * output.aux_loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_shard_has_the_gradients_of_the_model_that_it_is_of(family: Family, cut: Layout, tokens: Any) -> None:
    held, blocks = [1, 3, 4], fresh(cut)
    shard = build_shard(cut, held, {block: blocks[block] for block in cut.needed_blocks(held)})
    parts = shard.loss(tokens)
    parts.total.backward()
    if cut.residency == FROZEN:
        whole, rows = full_model(cut, blocks), held
    else:
        whole = model_class(family.model_type)(config_from_json(family.shrunk(cut.config_json, len(held))))
        own = {spec.name: torch.stack([blocks[f"column.{c}"][spec.name] for c in held]) for spec in cut.column}
        whole.load_state_dict({**blocks[TRUNK], **own})
        rows = [0, 1, 2]
    loss, expected = gradients(whole, tokens)
    torch.testing.assert_close(parts.total.detach(), loss)
    columns = {spec.name for spec in cut.column}
    for name, parameter in shard.module.named_parameters():
        wanted = expected[name][rows] if name in columns else expected[name]
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_shard_learns_and_what_it_does_not_hold_stays(cut: Layout, tokens: Any, compute_dtype: Any) -> None:
    held, blocks = [0, 2], fresh(cut)
    shard = build_shard(cut, held, blocks, compute_dtype=compute_dtype)
    before = shard.loss(tokens).total.item()
    groups = shard.parameter_groups(1e-2, 1.0, 0.01)
    assert {"matrices", "fused", "head", "routers", "undecayed"} == {group["name"] for group in groups}
    optimizer = torch.optim.AdamW(groups)
    for _ in range(5):
        optimizer.zero_grad()
        shard.loss(tokens).total.backward()
        optimizer.step()
    after = shard.loss(tokens).total.item()
    assert after < 0.9 * before
    trained = shard.held_blocks()
    assert all(not torch.equal(trained[b][name], blocks[b][name]) for b in trained for name in trained[b])
    again = build_shard(cut, held, {**blocks, **trained}, compute_dtype=compute_dtype)
    assert again.loss(tokens).total.item() == after


def test_export_and_import_are_a_round_trip_through_transformers(frozen: Layout, tmp_path: Path, tokens: Any) -> None:
    blocks = fresh(frozen)
    export_checkpoint(blocks, frozen, tmp_path / "checkpoint")
    config, back = import_checkpoint(tmp_path / "checkpoint")
    assert config_to_json(config) == frozen.config_json
    assert all(torch.equal(back[b][name], blocks[b][name]) for b in blocks for name in blocks[b])
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, output_loading_info=True
    )
    opened, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        theirs = opened(input_ids=tokens).logits
        assert torch.equal(theirs, full_model(frozen, blocks)(input_ids=tokens).logits)


def test_its_routers_and_experts_can_be_looked_into(frozen: Layout, tokens: Any) -> None:
    model = full_model(frozen, fresh(frozen))
    with torch.no_grad():
        plain = model(input_ids=tokens).logits
        with RouterTap(model, held=range(frozen.columns)) as tap:
            tapped = model(input_ids=tokens).logits
            assert set(tap.take()) == {0, 1}
    torch.testing.assert_close(tapped, plain)  # the same routing, computed by us
    health = examine(model, tokens, batch=4, column_sets=[(0, 2, 3)])
    assert all(sum(layer.routed) == 4 * 16 * frozen.top_k for layer in health.layers)
    weights = 3 * 32 * frozen.config_json[frozen.family.expert_width]
    assert health.random_cosine == pytest.approx(weights**-0.5)
    assert health.drift is not None
    assert health.drift.changed > 0
    assert activation_bytes(frozen, 100) > activation_bytes(frozen, 50) > 0


def test_the_families_are_named_in_the_table_alone() -> None:
    """And in presets, where the shape of one published model is meant."""
    root = Path(moe.__file__).parents[1]
    allowed = {root / "moe" / "families" / "table.py", root / "moe" / "presets.py"}
    rooms = ("aggregation", "barnraise", "benchmarks", "coordinator", "moe", "protocol", "simulator", "worker")
    found = [
        f"{path.relative_to(root)}: {name}"
        for room in rooms
        for path in (root / room).rglob("*.py")
        if path not in allowed
        for name in FAMILIES
        if name.replace("_", "") in path.read_text().lower().replace("_", "").replace("olmoe-7b", "")
    ]
    assert not found, "a family's name belongs in moe/families/table.py alone, prose included"
