"""Muon against torch's own and against the singular values it is meant to level; and what a lease's optimizer sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.layout import Layout
from moe.shard import build_shard
from protocol.lease import Lease
from protocol.recipe import OPTIMIZERS
from worker.train.optimizer import InnerOptimizer, Muon, orthogonalised


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_singular_values_come_out_near_one(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonalised(matrix))
    lifted = after[before > 0.02 * before.sum()]  # what is next to nothing stays small
    assert bool((lifted > 0.3).all())
    assert bool((after < 1.3).all())


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_a_single_matrix_is_updated_as_torch_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own = Muon([{"params": [ours], "lr": 0.05, "weight_decay": 0.1}], momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=True)
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        reference.step()
    # torch iterates in bf16, whose rounding the quintic does not damp
    torch.testing.assert_close(ours - start, theirs - start, rtol=0.1, atol=0.01)


def test_experts_and_parts_are_matrices_of_their_own() -> None:
    generator = torch.Generator().manual_seed(2)
    gradient_EMN = torch.randn(3, 8, 4, generator=generator)
    stacked = _stepped(gradient_EMN, parts=2)
    for expert in range(3):
        for part in range(2):
            rows = slice(4 * part, 4 * part + 4)
            alone = _stepped(gradient_EMN[expert, rows], parts=1)
            torch.testing.assert_close(stacked[expert, rows], alone)


@pytest.mark.parametrize("interleaved", [False, True])
def test_how_matrices_are_kept_changes_nothing(interleaved: bool) -> None:
    gate_up_ENH = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(2))
    kept = gate_up_ENH.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2) if interleaved else gate_up_ENH
    turned = _stepped(kept.mT.contiguous(), parts=2, transposed=True, interleaved=interleaved).mT
    usual = turned.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2) if interleaved else turned
    torch.testing.assert_close(usual, _stepped(gate_up_ENH, parts=2))


def _stepped(gradient: torch.Tensor, parts: int, **kept: bool) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = Muon([{"params": [parameter], "lr": 1.0, "weight_decay": 0.0, "parts": parts, **kept}], momentum=0.95)
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_steps_everything_that_is_held_and_at_a_factor_of_zero_nothing(
    small_layout: Layout, blocks_of: Any, make_lease: Callable[..., Lease], sequences: Any, optimizer: str
) -> None:
    lease = make_lease(optimizer=optimizer)
    shard = build_shard(small_layout, lease.columns, blocks_of(small_layout))
    inner = InnerOptimizer(shard, lease.recipe)
    assert {id(parameter) for parameter in inner.parameters} == {id(parameter) for parameter in shard.parameters()}
    for factor, moves in ((0.0, False), (1.0, True)):
        before = [parameter.detach().clone() for parameter in inner.parameters]
        shard.loss(torch.from_numpy(sequences[:4])).total.backward()
        inner.step(factor)
        moved = [not torch.equal(was, now) for was, now in zip(before, inner.parameters, strict=True)]
        assert all(moved) if moves else not any(moved)
        assert all(parameter.grad is None for parameter in inner.parameters)


def test_muon_takes_the_matrices_and_leaves_head_router_and_embedding_to_adamw(
    small_layout: Layout, blocks_of: Any, make_lease: Callable[..., Lease], sequences: Any
) -> None:
    lease = make_lease(optimizer="muon")
    shard = build_shard(small_layout, lease.columns, blocks_of(small_layout))
    inner = InnerOptimizer(shard, lease.recipe)
    shard.loss(torch.from_numpy(sequences[:4])).total.backward()
    inner.step(1.0)
    by_muon = {name for name, parameter in shard.module.named_parameters() if "momentum" in inner.state_of(parameter)}
    assert any("gate_up_proj" in name for name in by_muon)
    assert any("self_attn" in name for name in by_muon)
    assert not any(word in name for name in by_muon for word in ("embed", "lm_head", "mlp.gate.", "norm"))


@pytest.mark.parametrize(("clipping", "together"), [("whole", [[0, 1, 2, 3, 4]]), ("layer", [[0, 2], [1], [3], [4]])])
def test_gradients_are_clipped_together_as_the_recipe_says(
    make_lease: Callable[..., Lease], clipping: str, together: list[list[int]]
) -> None:
    """Two tensors of layer 0, one of layer 1, two that lie in none."""
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(5)]

    class Shard:
        def parameter_groups(self, *, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
            first = {"name": "matrices", "params": parameters[:3], "layers": [0, 1, 0]}
            return [{**first, "lr": lr}, {"name": "undecayed", "params": parameters[3:], "layers": [-1, -1], "lr": lr}]

    optimizer = InnerOptimizer(Shard(), make_lease(optimizer="adamw", clipping=clipping, clip_norm=2.0).recipe)
    scales = torch.tensor([0.5, 4.0, 7.0, 0.1, 3.0])
    for one, scale in zip(parameters, scales, strict=True):
        one.grad = torch.full((3,), float(scale))
    given = [one.grad.clone() for one in parameters if one.grad is not None]
    optimizer.begin(1.0)
    optimizer.take_norms()
    optimizer._clip()
    for places in together:
        norm = torch.linalg.vector_norm(torch.cat([given[place] for place in places]))
        for place in places:
            torch.testing.assert_close(parameters[place].grad, given[place] * min(1.0, 2.0 / float(norm)))
