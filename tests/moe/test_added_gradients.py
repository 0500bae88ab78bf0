"""A large head's and a large table's gradients: added to what is there, to the bit, and never there twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.config import config_from_json
from moe.families import FAMILIES
from moe.layout import Layout, layout
from moe.shard import ShardModel
from moe.weighing import ROWS, SLICES, weighed
from tests.live_tensors import LiveTensors
from tests.moe.conftest import micro_values
from tests.moe.test_layerwise import built, by_layers, same, taken
from worker.train.batch import add_gradients

VOCABULARY, HIDDEN = 10_000, 64
"""More rows than a slice has."""
GRADIENT_BYTES = 4 * VOCABULARY * HIDDEN


@pytest.fixture(scope="module")
def cut() -> Layout:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "pad_token_id": 7}
    return layout(config_from_json({**micro_values(FAMILIES["olmoe"]), **sizes}), "frozen")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Some twice, in one part and in two; and the padding, whose row has no gradient."""
    found = torch.randint(0, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(2))
    found[:, 3] = found[0, 2]
    found[1, 4] = 7
    return found


def test_they_are_those_of_whole_passes_to_the_bit(cut: Layout, tokens: torch.Tensor) -> None:
    shard = built(cut, masters="bf16")
    add_gradients(shard, tokens, 1)
    whole = taken(shard)
    _, stages = by_layers(shard, tokens, 1)
    ours = {name: tensor for stage in stages for name, tensor in stage.items()}
    assert same(ours, whole)
    assert {one.added for one in weighed(cut, 1) if one.elements == VOCABULARY * HIDDEN} == {ROWS, SLICES}
    assert not bool(ours["model.embed_tokens.weight"][7].any())


@pytest.mark.parametrize("without", ["head", "table"])
def test_none_is_there_twice(cut: Layout, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    shard = built(cut, masters="bf16")
    ours = peak_of(shard, tokens, without)
    whole = "moe.head.adds_in_slices" if without == "head" else "moe.layerwise.is_plain_table"
    monkeypatch.setattr(whole, lambda *_, **__: False)
    twice = peak_of(shard, tokens, without)
    assert 0.9 * GRADIENT_BYTES < twice - ours < 1.1 * GRADIENT_BYTES


def peak_of(shard: ShardModel, tokens: torch.Tensor, where: str) -> int:
    """In the stage of the head, or of the table."""
    model = shard.layerwise()
    parts = [model.forward(part, 1 / len(tokens)) for part in torch.split(tokens, 1)]
    stages: Any = model.backward(parts, lambda: None)
    peaks: list[int] = []
    while True:
        with LiveTensors() as live:
            if next(stages, ...) is ...:
                return peaks[0] if where == "head" else peaks[-1]
        taken(shard)
        peaks.append(live.peak_bytes)
