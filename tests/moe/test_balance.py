"""The balance loss: what `transformers` computes, and the same however a batch is cut."""

from __future__ import annotations

import pytest
import torch
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from moe.balance import balance_loss, routed_counts
from moe.full import initial_blocks
from moe.layout import layout
from moe.shard import build_shard

LAYERS, TOKENS, EXPERTS, TOP_K = 3, 40, 6, 2


@pytest.fixture
def logits():
    drawn = torch.randn(LAYERS, TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1))
    return [(layer_SE + torch.arange(EXPERTS) / 3).requires_grad_() for layer_SE in drawn]


def test_it_is_the_loss_of_transformers(logits):
    ours = balance_loss(logits, routed_counts(logits, TOP_K))
    theirs = load_balancing_loss_func(tuple(logits), EXPERTS, TOP_K)
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sizes", [(20, 20), (33, 7), (1,) * TOKENS])
def test_it_is_the_same_however_it_is_cut(logits, sizes):
    whole = balance_loss(logits, routed_counts(logits, TOP_K))
    parts = list(zip(*(torch.split(layer_SE, sizes) for layer_SE in logits), strict=True))
    counted = [routed_counts(part, TOP_K) for part in parts]
    counts = sum(counted[1:], counted[0])
    assert torch.equal(counts.by_expert, routed_counts(logits, TOP_K).by_expert)
    assert counts.by_expert.sum() == LAYERS * TOKENS * TOP_K
    shares = [size / TOKENS for size in sizes]
    losses = [balance_loss(part, counts) * share for part, share in zip(parts, shares, strict=True)]
    in_parts = torch.stack(losses).sum()
    torch.testing.assert_close(in_parts, whole)
    for got, expected in zip(torch.autograd.grad(in_parts, logits), torch.autograd.grad(whole, logits), strict=True):
        torch.testing.assert_close(got, expected)


def test_an_even_load_costs_top_k():
    logits_SE = torch.eye(EXPERTS) * 5 + torch.eye(EXPERTS).roll(1, 0) * 5
    assert balance_loss([logits_SE], routed_counts([logits_SE], TOP_K)).item() == pytest.approx(TOP_K)


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_shard_counts_the_choices_that_its_loss_makes(config, residency, tokens, compute_dtype):
    cut = layout(config, residency)
    shard = build_shard(cut, range(cut.top_k + 1), initial_blocks(config, cut, 5), compute_dtype=compute_dtype)
    counts = shard.count_routes(tokens)
    alone, told = shard.loss(tokens), shard.loss(tokens, counts)
    assert alone.total.item() == told.total.item()
    assert counts.by_expert.sum() == counts.rows * cut.top_k
    others = shard.count_routes(tokens.flip(1))
    assert shard.loss(tokens, counts + others).balance.item() != alone.balance.item()
