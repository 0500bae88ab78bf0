"""In a shard that multiplies in bf16 routers compute in fp32, and what is held is cast once for each of its values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe import experts
from moe.config import config_from_json
from moe.full import initial_blocks
from moe.layout import Layout, layout
from moe.routing import LogitsTap, expert_modules, routers
from moe.shard import build_shard
from moe.skeleton import meta_model


@pytest.fixture(params=["olmoe", "mixtral"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Two kinds of gates."""
    return str(request.param)


@pytest.fixture
def cut(config: Any) -> Layout:
    """The others frozen."""
    return layout(config, "frozen")


def test_no_router_has_experts_within(family: Any, values: Any) -> None:
    model = meta_model(config_from_json(values))
    inside = {id(module) for router in routers(model).values() for module in router.modules()}
    assert not inside & {id(experts) for experts in expert_modules(model).values()}


def test_logits_and_gates_are_those_of_fp32(config: Any, cut: Layout, tokens: Tensor) -> None:
    shard = build_shard(cut, range(cut.top_k), initial_blocks(config, cut, 5), compute_dtype=torch.bfloat16)
    seen: list[Tensor] = []
    gates: list[Tensor] = []
    for layer, router in routers(shard.module).items():
        router.register_forward_pre_hook(lambda _router, given: seen.append(given[0].detach()))
        expert_modules(shard.module)[layer].register_forward_pre_hook(lambda _experts, given: gates.append(given[2]))
    with LogitsTap(shard.module) as tap:
        shard.loss(tokens)
    assert [one.dtype for one in (*tap.logits, *gates)] == [torch.float32] * (len(tap.logits) + len(gates))
    for router, given_TH, logits_TE in zip(routers(shard.module).values(), seen, tap.logits, strict=True):
        weight_EH: Any = router.weight
        flat_TH = given_TH.float().flatten(0, -2)
        torch.testing.assert_close(logits_TE, nn.functional.linear(flat_TH, weight_EH), rtol=1e-6, atol=1e-6)


class CountedCasts:
    """How often a tensor in bf16 was written over with one in fp32."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        plain = experts._weights

        def watched(module: Any, name: str) -> Any:
            before = module.get_buffer(f"{name}_all")._version
            found = plain(module, name)
            self.count += found[1]._version != before
            return found

        monkeypatch.setattr(experts, "_weights", watched)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_held_is_cast_once_a_step(
    config: Any, cut: Layout, tokens: Tensor, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    casts = CountedCasts(monkeypatch)
    blocks = initial_blocks(config, cut, 5)
    shard = build_shard(cut, range(cut.top_k), blocks, compute_dtype=torch.bfloat16)
    tensors = sum(cut.family.is_expert(spec.name) for spec in cut.column)
    optimizer = torch.optim.AdamW(shard.parameters(), lr=0.01, fused=fused)
    for _ in range(3):
        for part in torch.split(tokens, 1):
            shard.loss(part).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(torch.split(tokens, 1)) > 1
    assert casts.count == 3 * tensors
    shard.load(blocks)
    first = shard.loss(tokens).total.detach()
    assert casts.count == 4 * tensors, "what is loaded is cast, too"
    anew = build_shard(cut, range(cut.top_k), blocks, compute_dtype=torch.bfloat16)
    assert torch.equal(first, anew.loss(tokens).total.detach())
