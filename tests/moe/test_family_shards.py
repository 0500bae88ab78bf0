"""What a shard of every family does, by its row alone: gradients, learning, and what can be looked into."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.config import config_from_json
from moe.families import FAMILIES, Family
from moe.full import full_model
from moe.health import examine
from moe.layout import Layout
from moe.planner import activation_bytes
from moe.routing import RouterTap
from moe.shard import build_shard
from moe.skeleton import model_class
from protocol.ids import TRUNK, column_block
from protocol.residency import FROZEN
from tests.moe import made_up
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]
"""Columns of a shard: as many of each group, where there are groups."""


@pytest.fixture(params=["olmoe", "mixtral", "qwen3_moe", made_up.ROW.model_type])
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    made_up.tell_transformers()
    monkeypatch.setitem(FAMILIES, made_up.ROW.model_type, made_up.ROW)
    return FAMILIES[request.param]


def gradients(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients by `transformers` alone, with its own loop over experts."""
    model.set_experts_implementation("eager")
    model.train()
    output = model(input_ids=tokens[:, :-1], output_router_logits=True)
    chosen = output.logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    loss = -chosen.mean() + 0.3 * output.aux_loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_shard_has_the_gradients_of_the_model_that_it_is_of(family: Family, cut: Layout, tokens: Any) -> None:
    held, blocks = HELD, fresh(cut)
    shard = build_shard(cut, held, {block: blocks[block] for block in cut.needed_blocks(held)})
    parts = shard.loss(tokens)
    parts.total.backward()
    if cut.residency == FROZEN:
        whole, rows = full_model(cut, blocks), held
    else:
        whole = model_class(family.model_type)(config_from_json(family.shrunk(cut.config_json, len(held))))
        own = {spec.name: torch.stack([blocks[column_block(c)][spec.name] for c in held]) for spec in cut.column}
        whole.load_state_dict({**blocks[TRUNK], **own})
        rows = list(range(len(held)))
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
