"""Trunk matrices at low rank: fixed factors are the same bits for everybody, and products are what was trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from moe.factors import FACTOR, Product, as_products, fixed_factor
from moe.families import Family
from moe.layout import Layout, submission_specs
from moe.shard import ShardModel, build_shard
from moe.trunk import trunk_sort
from protocol.codecs import GRANULE, codec_named
from protocol.errors import MalformedMessage
from protocol.ids import TRUNK, column_block
from protocol.lease import TrunkPart
from protocol.specs import TensorSpec
from protocol.submission import encode_submission, encoded_submission
from protocol.tensors import encode_tensors, encoded_tensors
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]
LORA = TrunkPart(mode="lora", rank=2, seed=11)
FROZEN = TrunkPart(mode="frozen")
FEW = ["olmoe", "deepseek_v3", "gpt_oss"]
"""A plain one; one with selection biases, low-rank attention and a shared expert; one with biases and sinks."""
CPU = torch.device("cpu")


def moved(shard: ShardModel) -> None:
    """Give the factors values, as training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in shard.module.named_parameters():
            if name.endswith(FACTOR):
                parameter.normal_(0.0, 0.05, generator=generator)


def trunk_sent(shard: ShardModel) -> dict[str, torch.Tensor]:
    """What a submission has of the trunk: before less after."""
    return {name: -tensor for name, tensor in dict(shard.held())[TRUNK].items() if name in factored(shard)}


def loss_of(shard: ShardModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return shard.loss(tokens).nll


def is_reached(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def factored(shard: ShardModel) -> frozenset[str]:
    sort = trunk_sort(shard.layout.config_json, LORA)
    assert sort is not None
    return sort.factored


def test_fixed_factors_are_signs_that_follow_from_seed_and_name_alone() -> None:
    part = TrunkPart(mode="lora", rank=16, seed=5)
    one = fixed_factor(part, "a.weight", 4096, device=CPU, dtype=torch.float32)
    assert one.shape == (16, 4096)
    assert set(one.unique().tolist()) == {-0.25, 0.25}
    assert abs(float(one.mean())) < 0.005
    assert float((one @ one.mT / 4096 / 0.0625 - torch.eye(16)).abs().max()) < 0.08, "rows are nearly orthogonal"
    assert torch.equal(one, fixed_factor(part, "a.weight", 4096, device=CPU, dtype=torch.bfloat16).float())
    for other, name in ((part, "b.weight"), (dataclasses.replace(part, seed=6), "a.weight")):
        same = float((fixed_factor(other, name, 4096, device=CPU, dtype=torch.float32) == one).float().mean())
        assert 0.48 < same < 0.52
    # the wire's promise: a worker of another release must come to these
    assert (fixed_factor(part, "a.weight", 8, device=CPU, dtype=torch.float32)[0] > 0).tolist() == PROMISED


PROMISED = [False, False, True, False, False, False, False, True]
"""By whole numbers, straight from the sources that `moe.hashed` names."""


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_a_span_of_a_product_is_what_the_whole_has_there(codec: str) -> None:
    shape, part = (700, 301), TrunkPart(mode="lora", rank=3, seed=1)
    sent = torch.randn((700, 3), generator=torch.Generator().manual_seed(2))
    payload = bytearray(encode_tensors({"w": sent}, codec_named(codec)))
    (lying,) = encoded_tensors(memoryview(payload), [TensorSpec("w", (700, 3))], codec_named(codec)).values()
    product = Product(lying, part, "w", shape)
    fixed = fixed_factor(part, "w", 301, device=CPU, dtype=torch.float32)
    expected = (lying.whole() @ fixed).flatten()
    spans = [product.span(at, min(at + GRANULE, 700 * 301)) for at in range(0, 700 * 301, GRANULE)]
    assert len(spans) == 4
    torch.testing.assert_close(torch.cat(spans), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(product.whole().flatten(), expected, rtol=0.0, atol=0.0)
    again = Product(lying, part, "w", shape)
    assert torch.equal(again.span(GRANULE, 2 * GRANULE), spans[1]), "whatever was read before"


def test_what_is_sent_is_the_product_that_the_shard_multiplied_by(
    family: Family, frozen: Layout, tokens: torch.Tensor
) -> None:
    blocks = fresh(frozen)
    plain, shard = build_shard(frozen, HELD, blocks), build_shard(frozen, HELD, blocks, trunk=LORA)
    assert factored(shard), "every family has plain linear layers in its trunk"
    before = loss_of(plain, tokens)
    torch.testing.assert_close(loss_of(shard, tokens), before, rtol=0.0, atol=0.0)
    moved(shard)
    sent = as_products(frozen, LORA, TRUNK, trunk_sent(shard))
    merged = dict(blocks[TRUNK])
    for name, product in sent.items():
        assert isinstance(product, Product)
        assert product.shape == tuple(merged[name].shape)
        merged[name] = merged[name] - product.whole()
    after = loss_of(shard, tokens)
    plain.load({**blocks, TRUNK: merged})
    torch.testing.assert_close(loss_of(plain, tokens), after, rtol=1e-5, atol=1e-5)
    for one in (plain, shard):
        one.loss(tokens).total.backward()
    for name in factored(shard):  # what only chooses, as an indexer does, gets no gradient either way
        factor = shard.module.get_parameter(f"{name.removesuffix('weight')}{FACTOR}")
        assert is_reached(factor) == is_reached(plain.module.get_parameter(name)), name
    assert abs(float(after - before)) > 1e-5
    shard.load({**blocks, TRUNK: merged})
    torch.testing.assert_close(loss_of(shard, tokens), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FEW, indirect=True)
def test_a_lora_trunk_trains_factors_and_what_is_small_and_keeps_one_copy(
    family: Family, frozen: Layout, tokens: torch.Tensor, compute_dtype: torch.dtype | None
) -> None:
    shard = build_shard(frozen, HELD, fresh(frozen), compute_dtype=compute_dtype, trunk=LORA)
    specs = {spec.name: spec.shape for spec in submission_specs(frozen, HELD, LORA)}
    held = {f"{block}/{name}": tuple(one.shape) for block, own in shard.held() for name, one in own.items()}
    assert held == specs
    sort = trunk_sort(frozen.config_json, LORA)
    assert sort is not None
    parameters = dict(shard.module.named_parameters())
    for spec in frozen.trunk:
        if spec.name not in parameters:
            continue
        own = parameters[spec.name]
        assert own.requires_grad == (spec.name in sort.small and not family.is_selection_bias(spec.name)), spec.name
        if spec.name not in sort.small and spec.name in sort.halved:
            assert own.dtype == (compute_dtype or torch.float32), spec.name
    assert not any(family.is_router(name) for name in sort.factored)
    assert "model.embed_tokens.weight" not in specs
    shard.loss(tokens).total.backward()
    grads = {name for name, one in parameters.items() if one.grad is not None}
    assert {name for name in grads if name.endswith(FACTOR)}, "factors get gradients"
    assert not grads & (sort.factored | {"model.embed_tokens.weight", "lm_head.weight"})
    kinds = {group["name"]: group for group in shard.parameter_groups(1.0, 1.0, 0.0)}
    assert len(kinds["factors"]["params"]) == len(sort.factored)


@pytest.mark.parametrize("family", FEW, indirect=True)
def test_a_frozen_trunk_has_no_gradient_and_nothing_is_sent_of_it(
    family: Family, cut: Layout, tokens: torch.Tensor
) -> None:
    held = HELD if cut.columns > 4 else list(range(cut.columns))
    shard = build_shard(cut, held, fresh(cut), trunk=FROZEN)
    assert [block for block, _ in shard.held()] == [column_block(column) for column in held]
    assert {spec.name.partition("/")[0] for spec in submission_specs(cut, held, FROZEN)} == {
        column_block(column) for column in held
    }
    before = {name: one.clone() for name, one in shard._tensors.items()}
    parts = shard.loss(tokens)
    parts.total.backward()
    if parts.chosen is not None:
        shard.move_selection_biases(parts.chosen, 0.1)
    optimizer = torch.optim.AdamW(shard.parameters(), lr=0.1)
    optimizer.step()
    for spec in cut.trunk:
        assert torch.equal(shard._tensors[spec.name], before[spec.name]), spec.name
    columns = {spec.name for spec in cut.column}
    assert any(not torch.equal(shard._tensors[name], before[name]) for name in columns)


def test_bytes_of_another_shape_are_refused_before_anything_is_made(frozen: Layout) -> None:
    specs = submission_specs(frozen, HELD, LORA)
    blocks = (TRUNK, *map(column_block, HELD))
    whole: dict[Any, dict[str, torch.Tensor]] = {block: {} for block in blocks}
    for spec in submission_specs(frozen, HELD):
        block, _, name = spec.name.partition("/")
        whole[block][name] = torch.zeros(spec.shape)
    codec = codec_named("bf16")
    with pytest.raises(MalformedMessage, match="bytes, expected"):
        encoded_submission(memoryview(bytearray(encode_submission(whole, codec))), specs, codec, blocks)
