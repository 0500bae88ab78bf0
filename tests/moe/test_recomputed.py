"""Activations that are computed again give the same gradients, to the bit, and take less memory until then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.families import Family
from moe.layout import Layout
from moe.recomputed import layers_of
from moe.shard import ShardModel, build_shard
from moe.weighing import can_recompute
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]


def gradients(shard: ShardModel, tokens: torch.Tensor) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and bytes that forward kept for backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in shard.parameters():
        parameter.grad = None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = shard.loss(tokens)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*shard.module.parameters(), *shard.module.buffers())}
    parts.total.backward()
    named = shard.module.named_parameters()
    found = {name: one.grad for name, one in named if one.grad is not None}
    return float(parts.total.detach()), found, sum(size for place, size in kept.items() if place not in own)


def test_gradients_are_the_same_to_the_bit(family: Family, cut: Layout, tokens: Any) -> None:
    blocks = {block: tensors for block, tensors in fresh(cut).items() if block in cut.needed_blocks(HELD)}
    shard = build_shard(cut, HELD, blocks)
    if not layers_of(shard.module):
        assert family.model_type == "gemma4_text", "its layers hand keys and values on"
        assert not can_recompute(cut)
        return
    loss, kept, kept_bytes = gradients(shard, tokens)
    shard.recompute(on=True)
    again, recomputed, recomputed_bytes = gradients(shard, tokens)
    assert again == loss
    assert set(kept) == set(recomputed)
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())
    assert recomputed_bytes < 0.6 * kept_bytes
    shard.recompute(on=False)
    # what is freed on the way may have had the address of something that is kept: not the same number each time
    assert gradients(shard, tokens)[2] > 0.9 * kept_bytes


@pytest.mark.parametrize("family", ["olmoe", "mixtral"], indirect=True)
def test_experts_are_given_the_choices_of_the_first_pass(
    family: Family, frozen: Layout, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routers that choose otherwise the second time, as those of a device may whose sums are never the same twice."""
    shard = build_shard(frozen, HELD, fresh(frozen))
    shard.balance_coefficient = 0.0
    shard.recompute(on=True)
    _, once, _ = gradients(shard, tokens)
    honest, calls = torch.topk, 0

    def unsteady(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        values, places = honest(*arguments, **named)
        return torch.return_types.topk((values, places.flip(0) if is_second else places))

    is_second = False
    monkeypatch.setattr(torch, "topk", unsteady)
    for parameter in shard.parameters():
        parameter.grad = None
    total = shard.loss(tokens).total
    is_second = True
    before = calls
    total.backward()
    assert calls > before, "it was computed again"
    named = shard.module.named_parameters()
    assert all(torch.equal(one.grad, once[name]) for name, one in named if one.grad is not None)
