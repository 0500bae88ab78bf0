"""What a shard of every family does, by its row alone: gradients, learning, and what can be looked into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moe.blocks import joined
from moe.config import config_from_json
from moe.families import FAMILIES, Family
from moe.full import full_model
from moe.health import examine
from moe.layout import Layout
from moe.passing import activation_bytes
from moe.routing import RouterTap, why_not_within
from moe.shard import build_shard
from moe.skeleton import model_class
from protocol.errors import ConfigError
from protocol.ids import TRUNK, column_block
from protocol.residency import ABSENT, FROZEN
from tests.moe import made_up
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]
LIKE_NONE_BEFORE = ["olmoe", "gpt_oss", "dbrx", "nemotron_h", "deepseek_v3", "ernie4_5_moe", made_up.ROW.model_type]
"""Plain, with biases and transposed, flattened, ungated, with a selection bias, with one that has another dimension."""


def gradients(model: Any, family: Family, coefficient: float, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Loss and gradients by `transformers` alone, with its own loop over experts."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    model.train()
    asked = {"output_router_logits": True} if family.balance == "class" else {}
    output = model(input_ids=tokens[:, :-1], use_cache=False, **asked)
    loss = -output.logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()
    if family.balance == "class":
        loss = loss + coefficient * output.aux_loss
    elif family.balance == "ours":
        told = model.base_model(input_ids=tokens[:, :-1], use_cache=False, output_router_logits=True).router_logits
        logits = tuple(one.log() if family.answers_shares else one for one in told)
        values = model.config.get_text_config()
        top_k = getattr(values, family.spelt.get("num_experts_per_tok", "num_experts_per_tok"))
        balance = load_balancing_loss_func(tuple(one.flatten(0, -2) for one in logits), logits[0].shape[-1], top_k)
        loss = loss + coefficient * balance
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def rows_of(whole: Tensor, cut: Layout, columns: list[int]) -> Tensor:
    """The experts' rows of a tensor that has them in its first dimension, flattened or not."""
    return whole.view(cut.columns, -1, *whole.shape[1:])[columns].flatten(0, 1)


def test_a_shard_has_the_gradients_of_the_model_that_it_is_of(family: Family, cut: Layout, tokens: Any) -> None:
    blocks = fresh(cut)
    shard = build_shard(cut, HELD, {block: blocks[block] for block in cut.needed_blocks(HELD)})
    parts = shard.loss(tokens)
    parts.total.backward()
    experts = {spec.name for spec in cut.column if family.is_expert(spec.name)}
    whole: Any
    if cut.residency == FROZEN:
        whole = full_model(cut, blocks)
    else:
        whole = model_class(family.model_type)(config_from_json(family.shrunk(cut.config_json, len(HELD))))
        own = {
            spec.name: joined([blocks[column_block(c)][spec.name] for c in HELD], spec.name, cut) for spec in cut.column
        }
        whole.load_state_dict({**blocks[TRUNK], **own})
    loss, expected = gradients(whole, family, shard.balance_coefficient, tokens)
    torch.testing.assert_close(parts.total.detach(), loss)
    for name, parameter in shard.module.named_parameters():
        wanted = expected[name]
        if wanted is None:
            assert parameter.grad is None
            continue
        if name in experts and cut.residency == FROZEN:
            wanted = rows_of(wanted, cut, HELD)
        assert parameter.grad is not None
        assert float(wanted.abs().max()) > 0
        got = parameter.grad.reshape(wanted.shape)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5 * float(wanted.abs().max()), msg=name)


def test_what_is_not_held_is_not_trained_and_not_copied(family: Family, frozen: Layout, tokens: Any) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen))
    shard.loss(tokens).total.backward()
    behind = {name: tensor for name, tensor in shard.module.named_buffers() if name.endswith("_all")}
    assert len(behind) == len(frozen.column)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in behind.values())
    tensors = dict(shard.module.named_parameters())
    assert all(tensors[name.removesuffix("_all")].data_ptr() == tensor.data_ptr() for name, tensor in behind.items())


def test_selection_biases_move_by_whole_batches_and_no_optimizer_sees_them(cut: Layout, tokens: Any) -> None:
    if not cut.selection_biases:
        pytest.skip("it has none")
    shard = build_shard(cut, HELD, fresh(cut))
    seen = {id(tensor) for group in shard.parameter_groups(1.0, 1.0, 0.5) for tensor in group["params"]}
    assert not seen & {id(bias) for bias in shard.selection_biases}
    assert len(shard.selection_biases) == len(cut.selection_biases)
    whole = shard.loss(tokens).chosen
    assert whole is not None
    assert whole.sum(dim=1).tolist() == [4 * 16 * cut.top_k] * len(shard.selection_biases)
    parts = [shard.loss(part).chosen for part in tokens.split(1)]
    assert torch.equal(sum(part for part in parts if part is not None), whole)  # type: ignore[arg-type]
    before = [bias.clone() for bias in shard.selection_biases]
    shard.move_selection_biases(whole, 0.25)
    experts = whole.shape[1]
    for bias, was, counts in zip(shard.selection_biases, before, whole, strict=True):
        expected = 0.25 * torch.sign(counts.sum() / experts - counts.double())
        torch.testing.assert_close((bias - was).flatten(), expected.float())
    after = shard.loss(tokens).chosen
    assert after is not None
    assert not torch.equal(after, whole), "they are what experts are chosen by"
    held = shard.held_blocks()
    moved = {name for block in held.values() for name in block if name in cut.selection_biases}
    assert moved == cut.selection_biases
    again = build_shard(cut, HELD, {**fresh(cut), **held})
    assert again.loss(tokens).total.item() == shard.loss(tokens).total.item()


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", LIKE_NONE_BEFORE, indirect=True)
def test_a_shard_learns_and_what_it_does_not_hold_stays(cut: Layout, tokens: Any, compute_dtype: Any) -> None:
    held, blocks = [0, 2], fresh(cut)
    shard = build_shard(cut, held, blocks, compute_dtype=compute_dtype)
    before = shard.loss(tokens).total.item()
    groups = shard.parameter_groups(1e-2, 1.0, 0.01)
    trained_by_gradients = {id(tensor) for tensor in shard.parameters()}
    assert {id(tensor) for group in groups for tensor in group["params"]} == trained_by_gradients
    optimizer = torch.optim.AdamW(groups)
    for _ in range(5):
        optimizer.zero_grad()
        shard.loss(tokens).total.backward()
        optimizer.step()
    after = shard.loss(tokens).total.item()
    assert after < 0.95 * before
    trained = shard.held_blocks()
    by_gradients = {name for name, tensor in shard.module.named_parameters() if tensor.requires_grad}
    assert all(
        not torch.equal(trained[b][name], blocks[b][name]) for b in trained for name in trained[b].keys() & by_gradients
    )
    again = build_shard(cut, held, {**blocks, **trained}, compute_dtype=compute_dtype)
    assert again.loss(tokens).total.item() == after
    shard.load({block: blocks[block] for block in cut.needed_blocks(held)})
    assert shard.loss(tokens).total.item() == before


def test_its_routers_and_experts_can_be_looked_into(family: Family, frozen: Layout, tokens: Any) -> None:
    model = full_model(frozen, fresh(frozen))
    values = frozen.config_json
    with torch.no_grad():
        plain = model(input_ids=tokens, use_cache=False).logits
        with RouterTap(model) as tap:
            tapped = model(input_ids=tokens, use_cache=False).logits
            layers = tap.take()
        assert torch.equal(tapped, plain)
        assert len(layers) == frozen.expert_layers
        if why_not_within(values):
            with pytest.raises(ConfigError):
                RouterTap(model, held=range(frozen.columns))
        else:
            with RouterTap(model, held=range(frozen.columns)):
                torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, plain)
    health = examine(model, tokens, batch=4, column_sets=[(0, 2, 3)])
    assert all(sum(layer.routed) == 4 * 16 * frozen.top_k for layer in health.layers)
    assert (health.drift is None) == bool(why_not_within(values))
    if health.drift is not None:
        assert health.drift.changed > 0
        assert health.drift.kl >= 0
    assert activation_bytes(frozen, 100) > activation_bytes(frozen, 50) > 0


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "kolibri1", "minimax_m2", "ernie4_5_moe"], indirect=True)
def test_routing_within_columns_is_what_the_smaller_model_does(family: Family, values: Any, tokens: Any) -> None:
    from moe.layout import layout

    cut = layout(config_from_json(values), ABSENT)
    blocks = fresh(cut)
    shard = build_shard(cut, HELD, {block: blocks[block] for block in cut.shard_blocks(HELD)}).eval()
    model = full_model(cut, blocks)
    with torch.no_grad(), RouterTap(model, held=HELD) as tap:
        within = model(input_ids=tokens, use_cache=False).logits
        assert {int(c) for one in tap.take().values() for c in one.chosen.unique()} <= set(HELD)
        torch.testing.assert_close(within, shard.module(input_ids=tokens, use_cache=False).logits)


def test_routers_that_learn_from_no_gate_are_told() -> None:
    from moe.families.micro import micro_values

    for name, told in (("mixtral", True), ("granitemoe", True), ("jamba", False)):
        for top_k in (1, 2):
            values = micro_values(FAMILIES[name], num_experts_per_tok=top_k)
            remarks = " ".join(FAMILIES[name].remarks(values))
            assert ("renormalised to 1" in remarks) == (told and top_k == 1), name


def test_the_families_are_all_here() -> None:
    assert set(LIKE_NONE_BEFORE[:-1]) <= FAMILIES.keys()
