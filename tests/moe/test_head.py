"""A loss whose logits are never whole is the loss, with its gradients; and they never are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import moe.head
from moe.config import config_from_json, config_to_json
from moe.families import Family
from moe.full import full_model, initial_blocks, sequence_losses
from moe.head import Head, tokens_at_once
from moe.layout import Layout, layout
from moe.presets import preset
from moe.shard import build_shard
from tests.moe.conftest import fresh

HELD = [0, 1, 3, 4]
FEW = 264 * 5
"""Logits of five tokens: 64 are cut into 13 chunks, the last one of four."""


def loss_and_gradients(shard: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for parameter in shard.parameters():
        parameter.grad = None
    parts = shard.loss(tokens)
    parts.total.backward()
    named = shard.module.named_parameters()
    return parts.total.detach(), {name: one.grad for name, one in named if one.grad is not None}


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_how_many_tokens_are_taken_at_once_changes_nothing(
    family: Family, frozen: Layout, tokens: Any, monkeypatch: pytest.MonkeyPatch, compute_dtype: Any
) -> None:
    if compute_dtype is not None and family.model_type not in ("olmoe", "qwen3_moe", "cohere2_moe", "gemma4_text"):
        pytest.skip("plain, tied, scaled and capped heads are enough")
    shard = build_shard(frozen, HELD, fresh(frozen), compute_dtype=compute_dtype)
    loss, whole = loss_and_gradients(shard, tokens)
    monkeypatch.setattr(moe.head, "LOGITS_AT_ONCE", FEW)
    in_chunks, chunked = loss_and_gradients(shard, tokens)
    rounding = 1e-5 if compute_dtype is None else 2e-2
    torch.testing.assert_close(in_chunks, loss, rtol=1e-6, atol=0.0)
    assert set(chunked) == set(whole)
    for name, gradient in whole.items():
        assert float((chunked[name] - gradient).norm()) <= rounding * float(gradient.norm()), name


def test_every_head_is_taken_in_chunks(family: Family, frozen: Layout) -> None:
    assert Head(full_model(frozen, fresh(frozen))).is_chunked


def test_each_sequences_loss_is_that_of_its_whole_logits(
    family: Family, frozen: Layout, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = full_model(frozen, fresh(frozen))
    monkeypatch.setattr(moe.head, "LOGITS_AT_ONCE", FEW)
    got = sequence_losses(model, tokens, 3)
    with torch.no_grad():
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(got, expected.double().mean(dim=1), rtol=1e-6, atol=1e-7)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that is made while it is open."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return made


@pytest.mark.parametrize("masters", ["fp32", "bf16"])
def test_a_large_vocabulary_is_never_whole(monkeypatch: pytest.MonkeyPatch, masters: str) -> None:
    values = config_to_json(preset("tiny"))
    sizes = {"vocab_size": 20_000, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = config_from_json({**values, **sizes, "num_attention_heads": 2, "num_key_value_heads": 2})
    cut = layout(config, "frozen")
    monkeypatch.setattr(moe.head, "LOGITS_AT_ONCE", 1 << 18)
    shard = build_shard(cut, [0], initial_blocks(config, cut, 1), masters=masters)
    tokens = torch.randint(0, 20_000, (4, 129))
    with Largest() as seen:
        shard.loss(tokens).total.backward()
    assert seen.elements == 16 * 20_000, "the head's gradient; the logits of 512 tokens would be 32 times as many"
    with Largest() as seen, torch.no_grad():
        shard.loss(tokens)
    assert seen.elements <= 16 * 20_000


def test_a_chunk_is_as_large_as_the_vocabulary_allows() -> None:
    assert tokens_at_once(264) > 60_000
    assert tokens_at_once(262_144) == 64
    assert tokens_at_once(1 << 30) == 1
