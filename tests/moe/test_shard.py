from __future__ import annotations

import time
from typing import Any, cast

import pytest
import torch
from torch import nn

from moe.blocks import merge_blocks
from moe.config import config_from_json, config_to_json
from moe.full import full_model, initial_blocks
from moe.layout import layout
from moe.presets import preset
from moe.shard import build_shard
from moe.skeleton import model_class
from protocol.errors import ConfigError, LocalError
from protocol.ids import TRUNK, column_block, column_of
from protocol.residency import ABSENT, FROZEN


def reference_gradients(model, coefficient, tokens):
    """Loss and gradients by `transformers` alone, written without any of our loss."""
    model.train()
    output = model(input_ids=tokens[:, :-1], output_router_logits=True)
    log_probability = output.logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    loss = -log_probability.mean() + coefficient * output.aux_loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(got, expected, name):
    # fp32 sums in another order: a few units in the last place of the largest entry.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()), msg=name)


@pytest.fixture
def cut(config, residency):
    return layout(config, residency)


@pytest.mark.parametrize("columns", [[2], [0, 3], [1, 2, 3]])
def test_frozen_gradients_are_those_of_the_whole_model(config, tokens, columns):
    config.router_aux_loss_coef = 0.3
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 5)
    whole = full_model(cut, blocks)
    expected_loss, expected = reference_gradients(whole, 0.3, tokens)
    shard = build_shard(cut, columns, blocks)
    parts = shard.loss(tokens)
    parts.total.backward()
    torch.testing.assert_close(parts.total.detach(), expected_loss)
    named = dict(shard.module.named_parameters())
    assert named.keys() == expected.keys()
    for spec in cut.trunk:
        assert_close(named[spec.name].grad, expected[spec.name], spec.name)
    for spec in cut.column:
        assert named[spec.name].shape[0] == len(columns)
        assert_close(named[spec.name].grad, expected[spec.name][columns], spec.name)


def test_an_eager_whole_model_agrees_too(config, tokens):
    """The same against the plain loop over experts, which shares no code with grouped multiplication."""
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 6)
    whole = full_model(cut, blocks)
    whole.set_experts_implementation("eager")
    _, expected = reference_gradients(whole, float(config.router_aux_loss_coef), tokens)
    shard = build_shard(cut, [1, 3], blocks)
    shard.loss(tokens).total.backward()
    for name, parameter in shard.module.named_parameters():
        rows = expected[name] if parameter.shape == expected[name].shape else expected[name][[1, 3]]
        assert_close(parameter.grad, rows, name)


def test_frozen_experts_pass_gradients_on_and_get_none(config, tokens):
    cut = layout(config, FROZEN)
    shard = build_shard(cut, [0], initial_blocks(config, cut, 5))
    shard.loss(tokens).total.backward()
    frozen = {name: tensor for name, tensor in shard.module.named_buffers() if name.endswith("_all")}
    assert len(frozen) == len(cut.column)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in frozen.values())
    # Router rows of frozen experts and the embedding of every token seen learn from what those experts answered.
    routers = [p for name, p in shard.module.named_parameters() if name.endswith("mlp.gate.weight")]
    assert all(router.grad is not None and router.grad[1:].abs().sum() > 0 for router in routers)


def test_an_absent_shard_is_a_smaller_valid_model_of_the_same_class(config, tokens):
    cut = layout(config, ABSENT)
    blocks = initial_blocks(config, cut, 5)
    held = list(range(cut.columns - cut.top_k, cut.columns))
    shard = build_shard(cut, held, {block: blocks[block] for block in cut.shard_blocks(held)})
    assert type(shard.module) is model_class(config.model_type)
    assert sum(p.numel() for p in shard.module.parameters()) * 4 == cut.trainable_bytes(len(held))
    smaller = model_class(config.model_type)(
        config_from_json({**config_to_json(config), "num_experts": len(held)}),
    )
    state = merge_blocks(blocks, cut)
    rows = {spec.name: state[spec.name][held] for spec in cut.column}
    smaller.load_state_dict({**state, **rows}, strict=True)
    expected_loss, expected = reference_gradients(smaller, float(config.router_aux_loss_coef), tokens)
    parts = shard.loss(tokens)
    parts.total.backward()
    torch.testing.assert_close(parts.total.detach(), expected_loss)
    for name, parameter in shard.module.named_parameters():
        assert_close(parameter.grad, expected[name], name)


def test_the_optimizer_sees_exactly_what_is_held(config, cut, residency):
    columns = range(1, 1 + cut.top_k)
    shard = build_shard(cut, columns, initial_blocks(config, cut, 5))
    groups = {group["name"]: group for group in shard.parameter_groups(1e-3, 0.1, 0.01)}
    seen = [parameter for group in groups.values() for parameter in group["params"]]
    assert len({id(parameter) for parameter in seen}) == len(seen)
    assert 4 * sum(parameter.numel() for parameter in seen) == cut.trainable_bytes(cut.top_k)
    assert groups["routers"]["lr"] == pytest.approx(1e-4)
    assert groups["undecayed"]["weight_decay"] == 0
    assert all(parameter.requires_grad for parameter in seen)


def test_decay_and_steps_leave_frozen_experts_as_they_were(config, tokens):
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 5)
    shard = build_shard(cut, [3, 1], blocks)
    frozen = {name: tensor[2:].clone() for name, tensor in shard.module.named_buffers() if name.endswith("_all")}
    train(shard, tokens, steps=3, weight_decay=0.5)
    now = dict(shard.module.named_buffers())
    assert all(torch.equal(now[name][2:], before) for name, before in frozen.items())
    after = shard.held_blocks()
    assert all(not torch.equal(after[b][name], blocks[b][name]) for b in after for name in after[b])


def train(shard, tokens, *, steps=2, weight_decay=0.01, **kwargs):
    optimizer = torch.optim.AdamW(shard.parameter_groups(1e-2, 0.1, weight_decay), **kwargs)
    for _ in range(steps):
        optimizer.zero_grad()
        shard.loss(tokens).total.backward()
        optimizer.step()


@pytest.mark.parametrize("kwargs", [{"fused": True}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_step_is_in_the_next_forward(config, cut, residency, tokens, kwargs, compute_dtype):
    """Weights that are shared or cast could go stale: a shard built anew from the trained blocks must agree."""
    blocks = initial_blocks(config, cut, 5)
    columns = range(cut.top_k)
    shard = build_shard(cut, columns, blocks, compute_dtype=compute_dtype)
    first = shard.loss(tokens).total.item()
    train(shard, tokens, steps=3, **kwargs)
    anew = build_shard(cut, columns, {**blocks, **shard.held_blocks()}, compute_dtype=compute_dtype)
    assert shard.loss(tokens).total.item() == anew.loss(tokens).total.item() < first


def test_experts_really_compute_in_bf16_and_weights_stay_fp32(config, cut, tokens, monkeypatch):
    seen = set()
    from moe import experts

    plain = cast(Any, experts).grouped_mm

    def watched(left, right, **kwargs):
        seen.add((left.dtype, right.dtype))
        return plain(left, right, **kwargs)

    monkeypatch.setattr(experts, "grouped_mm", watched)
    blocks = initial_blocks(config, cut, 5)
    for columns in (range(cut.top_k), range(cut.columns)):
        shard = build_shard(cut, columns, blocks, compute_dtype=torch.bfloat16)
        exact = shard.held_blocks()
        assert all(torch.equal(exact[b][name], blocks[b][name]) for b in exact for name in exact[b])
        shard.loss(tokens).total.backward()
        assert seen == {(torch.bfloat16, torch.bfloat16)}
        assert all(p.grad is not None and p.dtype == p.grad.dtype == torch.float32 for p in shard.parameters())


def skew_routers(blocks, cut):
    """Every token carries a constant that the routers read: all of them go to the first experts."""
    blocks[TRUNK]["model.embed_tokens.weight"][:, 0] = 3.0
    for block, tensors in blocks.items():
        for name, tensor in tensors.items():
            if name.endswith("mlp.gate.weight"):
                column = column_of(block)
                tensor[..., 0] = -torch.arange(cut.columns) / 2 if column is None else -column / 2


def test_the_balance_loss_is_part_of_the_loss_and_evens_the_load(config, cut, tokens):
    config.router_aux_loss_coef = 0.5
    cut = layout(config, cut.residency)
    blocks = initial_blocks(config, cut, 5)
    skew_routers(blocks, cut)
    shard = build_shard(cut, range(cut.columns), blocks)
    before = shard.loss(tokens)
    assert before.total.item() == pytest.approx(before.nll.item() + 0.5 * before.balance.item())
    assert before.balance.item() > 1.2 * cut.top_k
    routers = next(group for group in shard.parameter_groups(0.0, 1.0, 0.0) if group["name"] == "routers")
    optimizer = torch.optim.Adam(routers["params"], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        shard.loss(tokens).total.backward()
        optimizer.step()
    assert shard.loss(tokens).balance.item() < 0.85 * before.balance.item()


def test_loading_blocks_is_building_anew(config, cut, tokens):
    one, other = initial_blocks(config, cut, 1), initial_blocks(config, cut, 2)
    columns = range(cut.top_k)
    for dtype in (None, torch.bfloat16):
        shard = build_shard(cut, columns, one, compute_dtype=dtype)
        train(shard, tokens)
        shard.load({block: other[block] for block in cut.needed_blocks(columns)})
        anew = build_shard(cut, columns, other, compute_dtype=dtype)
        assert shard.loss(tokens).total.item() == anew.loss(tokens).total.item()


def test_columns_in_any_order_are_the_same_shard(config, cut, tokens):
    blocks = initial_blocks(config, cut, 1)
    left = build_shard(cut, [3, 0, 2], blocks)
    right = build_shard(cut, (0, 2, 3), blocks)
    assert left.columns == right.columns == (0, 2, 3)
    assert left.loss(tokens).total.item() == right.loss(tokens).total.item()


def test_a_shard_shares_no_memory_with_the_blocks_it_was_built_from(config, cut, tokens):
    blocks = initial_blocks(config, cut, 1)
    before = {(b, name): tensor.clone() for b, tensors in blocks.items() for name, tensor in tensors.items()}
    shard = build_shard(cut, range(cut.columns), blocks)
    held = shard.held_blocks()
    train(shard, tokens)
    assert all(torch.equal(blocks[b][name], tensor) for (b, name), tensor in before.items())
    assert all(torch.equal(held[b][name], tensor) for (b, name), tensor in before.items())


def test_what_is_missing_or_wrong_is_refused(config, cut, residency):
    blocks = initial_blocks(config, cut, 1)
    with pytest.raises(LocalError, match="trunk"):
        build_shard(cut, [0, 1, 2], {b: t for b, t in blocks.items() if b != TRUNK})
    if residency == FROZEN:
        with pytest.raises(LocalError, match=r"column\.3"):
            build_shard(cut, [0], {b: t for b, t in blocks.items() if b != column_block(3)})
    else:
        with pytest.raises(ConfigError, match="top-k"):
            build_shard(cut, [0], blocks)
    broken = {**blocks, column_block(0): {name: tensor[:1] for name, tensor in blocks[column_block(0)].items()}}
    with pytest.raises(LocalError, match=r"column\.0"):
        build_shard(cut, [0, 1, 2], broken)


def test_evaluation_and_training_modes_switch(config, cut):
    shard = build_shard(cut, range(cut.top_k), initial_blocks(config, cut, 1))
    assert isinstance(shard.module, nn.Module)
    assert shard.module.training
    assert not shard.eval().module.training
    assert shard.train().module.training


@pytest.mark.soak
def test_a_frozen_shard_is_not_slower_than_the_whole_model():
    """CPU time of forward and backward, best of several taken in turn, so that other work on the machine cancels."""
    config = preset("tiny")
    cut = layout(config, FROZEN)
    blocks = initial_blocks(config, cut, 1)
    tokens = torch.randint(0, 256, (16, 129))
    shards = [build_shard(cut, columns, blocks) for columns in (range(8), [1, 3, 4, 6])]
    best = [float("inf")] * 2
    for _ in range(8):
        for index, shard in enumerate(shards):
            started = time.thread_time()
            shard.loss(tokens).total.backward()
            best[index] = min(best[index], time.thread_time() - started)
    whole_s, half_s = best
    assert half_s < 1.1 * whole_s
