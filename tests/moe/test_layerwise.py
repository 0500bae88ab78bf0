"""Gradients taken layer by layer are those of whole passes, to the bit, and never more than a layer's are there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.families import Family
from moe.layer_cut import standing_in, why_not_by_layers
from moe.layout import Layout
from moe.recomputed import layers_of
from moe.selection import layer_of
from moe.shard import ShardModel, build_shard
from moe.stand_ins import DECODED, DEVICE, HOST, MAPPED, StandIns
from moe.weighing import can_go_by_layers, gradients_by_layers, inputs_by_layers, weighed
from protocol.errors import LocalError
from protocol.lease import TrunkPart
from tests.moe.conftest import fresh
from worker.train.batch import add_gradients

HELD = [0, 1, 3, 4]
NOT_A_CHAIN = {
    "gemma4_text": "its layers hand keys and values on",
    "inkling2_text": "its layers are given more that is trained",
    "glm_moe_dsa": "its layers answer more than hidden states",
    "hy_v4": "its layers answer more than hidden states",
}
Gradients = dict[str, torch.Tensor]


def built(cut: Layout, **how: Any) -> ShardModel:
    blocks = {block: tensors for block, tensors in fresh(cut).items() if block in cut.needed_blocks(HELD)}
    return build_shard(cut, HELD, blocks, **how)


def taken(shard: ShardModel) -> Gradients:
    """Those that are there, which are then there no longer."""
    found = {name: one.grad for name, one in shard.module.named_parameters() if one.grad is not None}
    for parameter in shard.parameters():
        parameter.grad = None
    return found


def by_layers(
    shard: ShardModel, tokens: torch.Tensor, micro_batch: int, **options: bool
) -> tuple[Any, list[Gradients]]:
    """Mean loss, and each stage's gradients."""
    model = shard.layerwise(**options)
    parts = [model.forward(part, len(part) / len(tokens)) for part in torch.split(tokens, micro_batch)]
    first = [taken(shard) for _ in model.backward(parts, lambda: None, is_last=False)]
    again = [taken(shard) for _ in model.backward(parts, lambda: None)]
    assert all(same(one, other) for one, other in zip(first, again, strict=True)), "the second time is as the first"
    assert all(call is None for part in parts for call in part.calls), "and nothing is kept after it"
    losses: list[Any] = [part.nll for part in parts]
    return sum(nll * part.share for nll, part in zip(losses, parts, strict=True)), again


def same(ours: Gradients, theirs: Gradients) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gradients_are_the_same_to_the_bit(family: Family, cut: Layout, tokens: Any) -> None:
    shard = built(cut)
    assert can_go_by_layers(cut) == (family.model_type not in NOT_A_CHAIN)
    if family.model_type in NOT_A_CHAIN:
        module: Any = shard.module
        assert why_not_by_layers(module.to("meta")).startswith(NOT_A_CHAIN[family.model_type])
        return
    batch = add_gradients(shard, tokens, 3)
    whole = taken(shard)
    nll, stages = by_layers(shard, tokens, 3)
    found = {name: tensor for stage in stages for name, tensor in stage.items()}
    assert sum(map(len, stages)) == len(found), "each at one stage only"
    assert same(found, whole)
    assert torch.equal(nll, batch.nll)
    assert len(stages) == len(layers_of(shard.module)) + 2
    for stage in stages:
        assert len({layer_of(name) for name in stage if ".layers." in name}) <= 1, "of one layer"


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3"], indirect=True)
@pytest.mark.parametrize("how", [{"masters": "bf16"}, {"compute_dtype": torch.bfloat16}], ids=["masters", "products"])
def test_in_bf16_too(family: Family, frozen: Layout, tokens: Any, how: dict[str, Any]) -> None:
    shard = built(frozen, **how)
    add_gradients(shard, tokens, 3)
    whole = taken(shard)
    _, stages = by_layers(shard, tokens, 3)
    assert same({name: tensor for stage in stages for name, tensor in stage.items()}, whole)


@pytest.mark.parametrize("family", ["qwen3_moe"], indirect=True)
def test_the_model_is_as_it_was(frozen: Layout, tokens: Any) -> None:
    shard = built(frozen)
    add_gradients(shard, tokens, 3)
    before = taken(shard)
    by_layers(shard, tokens, 2, on_host=True)
    assert all("forward" not in layer.__dict__ for layer in layers_of(shard.module))
    add_gradients(shard, tokens, 3)
    assert same(taken(shard), before)

    def broken(*_given: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError), standing_in(layers_of(shard.module), broken):
        shard.loss(tokens)
    assert all("forward" not in layer.__dict__ for layer in layers_of(shard.module))


@pytest.mark.parametrize("family", ["glm_moe_dsa"], indirect=True)
def test_what_is_no_chain_is_refused(frozen: Layout, tokens: Any) -> None:
    shard = built(frozen)
    with pytest.raises((LocalError, ValueError)):
        shard.layerwise().forward(tokens, 1.0)


@pytest.mark.parametrize("family", ["olmoe"], indirect=True)
def test_routers_that_choose_otherwise_the_second_time_are_not_asked(
    frozen: Layout, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = built(frozen)
    shard.balance_coefficient = 0.0
    _, once = by_layers(shard, tokens, 2)
    model, honest = shard.layerwise(), torch.topk
    parts = [model.forward(part, 0.5) for part in torch.split(tokens, 2)]

    def unsteady(*arguments: Any, **named: Any) -> Any:
        values, places = honest(*arguments, **named)
        return torch.return_types.topk((values, places.flip(0)))

    stages = model.backward(parts, lambda: None)
    next(stages)  # the balance loss has been counted
    taken(shard)
    monkeypatch.setattr(torch, "topk", unsteady)
    assert all(same(taken(shard), stage) for _, stage in zip(stages, once[1:], strict=True))


@pytest.mark.parametrize("family", ["mixtral"], indirect=True)
def test_what_is_saved_is_what_is_never_there(frozen: Layout, tokens: Any) -> None:
    shard = built(frozen)
    _, stages = by_layers(shard, tokens, 2)
    sizes = [sum(tensor.nbytes for tensor in stage.values()) for stage in stages]
    tensors = list(weighed(frozen, len(HELD)))
    assert sum(sizes) == sum(one.gradient_bytes() for one in tensors)
    assert max(sizes) < gradients_by_layers(tensors) <= max(sizes) + max(one.gradient_bytes() for one in tensors)
    assert gradients_by_layers(tensors, in_slices=True) <= gradients_by_layers(tensors)
    assert inputs_by_layers(frozen, 1000) == 100 * inputs_by_layers(frozen, 10) > 0


@pytest.mark.parametrize("place", [DEVICE, HOST, MAPPED, DECODED])
@pytest.mark.parametrize("family", ["qwen3_moe"], indirect=True)
def test_experts_that_lie_elsewhere_come_when_a_layer_is_computed_again(
    frozen: Layout, tokens: Any, place: str
) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen), stand_ins=StandIns(dtype="int4", place=place))
    add_gradients(shard, tokens, 3)
    whole = taken(shard)
    _, stages = by_layers(shard, tokens, 3)
    assert same({name: tensor for stage in stages for name, tensor in stage.items()}, whole)


@pytest.mark.parametrize("mode", ["lora", "frozen"])
@pytest.mark.parametrize("family", ["qwen3_moe"], indirect=True)
def test_a_trunk_that_is_not_all_trained_goes_by_layers_too(frozen: Layout, tokens: Any, mode: str) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen), trunk=TrunkPart(mode=mode, seed=3, rank=4))
    add_gradients(shard, tokens, 3)
    whole = taken(shard)
    _, stages = by_layers(shard, tokens, 3)
    assert same({name: tensor for stage in stages for name, tensor in stage.items()}, whole)
