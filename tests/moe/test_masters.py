"""A shard whose weights are bf16 computes what an fp32 one of the same values does, whatever its family is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.families import Family
from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from protocol.ids import TRUNK
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]


def rounded_blocks(shard: ShardModel, blocks: Any) -> Any:
    return {
        block: {
            name: tensor.bfloat16().float() if name in shard.masters.rounded else tensor
            for name, tensor in tensors.items()
        }
        for block, tensors in blocks.items()
    }


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_it_computes_as_an_fp32_shard_of_the_same_values(
    family: Family, cut: Layout, tokens: Any, compute_dtype: Any
) -> None:
    if compute_dtype is not None and family.model_type not in ("olmoe", "qwen3_moe", "gpt_oss", "dbrx", "deepseek_v3"):
        pytest.skip("plain, tied, transposed, flattened and low-rank are enough")
    blocks = {block: tensors for block, tensors in fresh(cut).items() if block in cut.needed_blocks(HELD)}
    halved = build_shard(cut, HELD, blocks, compute_dtype=compute_dtype, masters="bf16")
    held = {block for block, _ in halved.held()}
    same = {b: t if b in held else blocks[b] for b, t in rounded_blocks(halved, blocks).items()}
    plain = build_shard(cut, HELD, same, compute_dtype=compute_dtype)
    ours, theirs = halved.loss(tokens), plain.loss(tokens)
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-5 if compute_dtype is None else 1e-3, atol=0.0)
    ours.total.backward()
    theirs.total.backward()
    rounding = 1e-4 if compute_dtype is None else 5e-2
    wanted = dict(plain.module.named_parameters())
    for name, parameter in halved.module.named_parameters():
        gradient = wanted[name].grad
        if gradient is None:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - gradient).norm()) <= rounding * float(gradient.norm()), name


def test_it_holds_the_nearest_bf16_values_and_says_what_it_began_with(family: Family, cut: Layout) -> None:
    blocks = {block: tensors for block, tensors in fresh(cut).items() if block in cut.needed_blocks(HELD)}
    shard = build_shard(cut, HELD, blocks, masters="bf16")
    assert shard.serves(tuple(HELD), "bf16")
    assert not shard.serves(tuple(HELD), "fp32")
    expected = rounded_blocks(shard, blocks)
    for _ in range(2):
        held = shard.held_blocks()
        assert all(torch.equal(held[block][name], expected[block][name]) for block in held for name in held[block])
        begun = {b: {n: shard.masters.begun(n, blocks[b][n]) for n in held[b]} for b in held}
        assert all(torch.equal(held[b][n], begun[b][n].float()) for b in held for n in held[b])
        for parameter in shard.parameters():
            parameter.data.zero_()
        shard.load(blocks)


def test_what_is_large_is_kept_in_two_bytes(frozen: Layout, family: Family) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen), compute_dtype=torch.bfloat16, masters="bf16")
    small = sum(p.numel() for n, p in shard.module.named_parameters() if n not in shard.masters.rounded)
    kept = sum(p.nbytes for p in shard.parameters())
    whole = sum(p.numel() for p in shard.parameters())
    if family.model_type in ("olmoe", "mixtral", "qwen3_moe", "deepseek_v2", "gpt_oss", "glm4_moe"):
        assert kept == 2 * (whole - small) + 4 * small
    norms = {spec.name for spec in frozen.trunk if "norm" in spec.name.split(".")[-2]}
    assert norms
    assert norms.isdisjoint(shard.masters.rounded)
    assert not any(family.is_router(name) for name in shard.masters.rounded)
    assert shard.masters.halved <= shard.masters.rounded
    assert any(spec.name in shard.masters.halved for spec in frozen.block_specs(TRUNK))


def test_fp32_masters_are_what_they_were(frozen: Layout, tokens: Any) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen))
    assert all(parameter.dtype == torch.float32 for parameter in shard.parameters())
    assert not any(group["rounded"] for group in shard.parameter_groups(1.0, 1.0, 0.0))
