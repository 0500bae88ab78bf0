"""What random experts cost: nothing where all are the same, something where they are not; and they are as many each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.parity_routing import necessity_percent
from moe.full import full_model, initial_blocks, sequence_losses
from moe.layout import layout
from moe.necessity import equal_load, random_routing
from moe.routing import RouterTap
from protocol.ids import column_block


@given(st.integers(1, 200), st.integers(1, 12), st.data())
def test_each_expert_gets_as_many_and_each_token_different_ones(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    drawn_SK = equal_load(tokens, top_k, experts, torch.Generator().manual_seed(tokens))
    assert drawn_SK.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in drawn_SK.tolist())
    whole = tokens // experts * experts
    counts = torch.bincount(drawn_SK[:whole].flatten(), minlength=experts)
    assert counts.tolist() == [whole // experts * top_k] * experts


@pytest.fixture(params=["olmoe", "mixtral"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Two kinds of gates."""
    return str(request.param)


def test_it_is_nothing_where_experts_are_the_same_and_something_where_not(config: Any, tokens: Tensor) -> None:
    cut = layout(config, "frozen")
    blocks = initial_blocks(config, cut, 5)
    different = full_model(cut, blocks)
    before = sequence_losses(different, tokens, 4)
    found = random_routing(different, tokens, 4)
    assert abs(found.rise) > 1e-4
    assert found.loss == pytest.approx(float(before.mean()) + found.rise)
    assert torch.equal(sequence_losses(different, tokens, 4), before), "the model is left as it was"
    assert random_routing(different, tokens, 4, losses_N=before) == found, "the draw follows from the seed"
    experts = {spec.name for spec in cut.column if cut.family.is_expert(spec.name)}
    for column in range(1, cut.columns):
        block, first = blocks[column_block(column)], blocks[column_block(0)]
        blocks[column_block(column)] = {**block, **{name: first[name] for name in experts}}
    same = random_routing(full_model(cut, blocks), tokens, 4)
    assert same.rise == pytest.approx(0.0, abs=1e-6)


def test_gates_are_the_routers_own_and_choices_are_not(config: Any, tokens: Tensor) -> None:
    from moe.necessity import random_experts

    cut = layout(config, "frozen")
    model = full_model(cut, initial_blocks(config, cut, 5))
    seen: dict[bool, list[Any]] = {True: [], False: []}
    with random_experts(model, 1), RouterTap(model) as tap:
        sequence_losses(model, tokens, 4)
        seen[True] = [one.chosen for one in tap.take().values()]
    with RouterTap(model) as tap:
        sequence_losses(model, tokens, 4)
        seen[False] = [one.chosen for one in tap.take().values()]
    experts = cut.columns
    for random_SK, own_SK in zip(seen[True], seen[False], strict=True):
        counts = torch.bincount(random_SK.flatten(), minlength=experts)
        assert int(counts.max() - counts.min()) <= cut.top_k
        assert (random_SK != own_SK).any()


def test_necessity_is_a_share_of_central_trainings_and_old_results_have_none() -> None:
    central = {11: {"val_loss": 2.0, "random_routing_loss": 3.0}, 12: {"val_loss": 2.0, "random_routing_loss": 4.0}}
    own = {11: {"val_loss": 2.1, "random_routing_loss": 2.6}, 12: {"val_loss": 2.0, "random_routing_loss": 3.0}}
    assert necessity_percent(own, central) == pytest.approx(50.0)
    assert necessity_percent(central, central) == pytest.approx(100.0)
    assert necessity_percent({11: {"val_loss": 2.1}}, central) is None
    assert necessity_percent(own, {}) is None
