"""Padded products against torch's grouped ones: the same but for rounding, whatever the load."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import grouped_mm

from moe.full import initial_blocks
from moe.layout import Layout, layout
from moe.padded import GROUPED, PADDED, Padding
from moe.shard import build_shard
from tests.live_tensors import LiveTensors

H, N = 8, 16


@pytest.fixture(params=["olmoe", "mixtral"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Two kinds of gates."""
    return str(request.param)


@pytest.fixture(params=["frozen", "absent"])
def cut(config: Any, request: pytest.FixtureRequest) -> Layout:
    """In either residency."""
    return layout(config, request.param)


sizes = st.lists(st.one_of(st.integers(0, 6), st.integers(20, 60)), min_size=1, max_size=7).filter(any)


def rows_of(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Slots of sorted rows, and where each slot's end."""
    slots_S = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return slots_S, torch.tensor(sizes).cumsum(0).to(torch.int32)


@given(sizes, st.integers(0, 2**31), st.data())
@settings(max_examples=60)
def test_products_and_sums_are_the_grouped_ones(sizes: list[int], seed: int, data: st.DataObject) -> None:
    held = data.draw(st.integers(1, len(sizes)))
    generator = torch.Generator().manual_seed(seed)
    slots_S, ends_E = rows_of(sizes)
    x_SH, y_SN = (torch.randn(len(slots_S), width, generator=generator) for width in (H, N))
    weights_EHN = torch.randn(len(sizes), H, N, generator=generator)
    pads = Padding(slots_S, ends_E)
    torch.testing.assert_close(pads.times(x_SH, weights_EHN), grouped_mm(x_SH, weights_EHN, offs=ends_E))
    theirs = grouped_mm(x_SH.t(), y_SN, offs=ends_E[:held])
    torch.testing.assert_close(pads.summed(x_SH, y_SN, held), theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(pads.summed(x_SH, y_SN, held), Padding(slots_S, ends_E).summed(x_SH, y_SN, held))


def test_one_crowded_expert_does_not_make_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    slots_S, ends_E = rows_of([2000, *[1] * 63])
    x_SH, weights_EHN = torch.randn(len(slots_S), H), torch.randn(64, H, N)
    pads = Padding(slots_S, ends_E)
    with LiveTensors() as live:
        pads.times(x_SH, weights_EHN)
    rows = 2 * len(slots_S) + 64 + 2
    assert live.peak_bytes < 4 * rows * (H + N) + 3 * 4 * len(slots_S) * N + (1 << 15)


@pytest.mark.parametrize("columns", [2, 8])
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_shard_learns_the_same_and_reads_the_ends_once_a_layer(
    config: Any, cut: Layout, tokens: Tensor, compute_dtype: torch.dtype | None, columns: int, monkeypatch: Any
) -> None:
    blocks = initial_blocks(config, cut, 5)
    columns = min(cut.columns, max(columns, cut.min_columns))
    made: list[Padding] = []

    def watched(*arguments: Any) -> Padding:
        made.append(Padding(*arguments))
        return made[-1]

    monkeypatch.setattr("moe.experts.Padding", watched)
    found = {}
    for way in (GROUPED, PADDED):
        shard = build_shard(cut, range(columns), blocks, compute_dtype=compute_dtype, experts=way)
        loss = shard.loss(tokens).total
        loss.backward()
        gradients = {name: cast(Tensor, one.grad) for name, one in shard.module.named_parameters()}
        found[way] = loss.detach(), gradients
    assert len(made) == cut.expert_layers
    rtol, atol = (1e-4, 1e-6) if compute_dtype is None else (0.1, 0.02)
    torch.testing.assert_close(found[PADDED][0], found[GROUPED][0], rtol=1e-3, atol=1e-5)
    for name, gradient in found[GROUPED][1].items():
        torch.testing.assert_close(found[PADDED][1][name], gradient, rtol=rtol, atol=atol)
    assert found[PADDED][1].keys() == found[GROUPED][1].keys(), "what is held gets gradients, and nothing else"
