"""Moments in 8 bits: near what they were, right on average, and never zero where something is divided by them."""

from __future__ import annotations

import pytest
import torch

from worker.train.eight_bits import BLOCK, BYTES, CodedMoment, code_into, decoded, levels, zeros

CPU = torch.device("cpu")


def coded(values: torch.Tensor, *, signed: bool, seed: int = 0) -> tuple[CodedMoment, torch.Tensor]:
    kept = zeros(values.numel(), CPU)
    code_into(kept, values, torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)), signed=signed)
    return kept, decoded(kept, signed=signed)


def spread(seed: int, *, signed: bool) -> torch.Tensor:
    """Values over five orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(8 * BLOCK, generator=generator) * 10 ** (-5 * torch.rand(8 * BLOCK, generator=generator))
    return values if signed else values.abs()


@pytest.mark.parametrize("signed", [True, False])
def test_a_table_has_a_level_for_every_code_and_most_of_them_near_the_largest(signed: bool) -> None:
    table = levels(signed=signed)
    assert len(table) == (255 if signed else 256)
    assert torch.equal(table, table.sort().values)
    assert table.unique().numel() == table.numel()
    assert float(table.max()) == 1.0
    assert bool((table == 0).any())
    assert int((table > 0.1).sum()) == (64 if signed else 128)


@pytest.mark.parametrize("signed", [True, False])
def test_what_comes_back_is_a_level_beside_what_went_in(signed: bool) -> None:
    values = spread(1, signed=signed)
    kept, back = coded(values, signed=signed)
    assert torch.equal(kept.scale, values.view(-1, BLOCK).abs().amax(dim=1))
    scale = kept.scale.repeat_interleave(BLOCK)
    large = values.abs() > 0.1 * scale
    step = 0.9 / (64 if signed else 128)
    assert bool(((back - values).abs()[large] <= 1.01 * step * scale[large]).all())
    assert bool((back.abs() <= scale).all())
    assert bool((back * values >= 0).all()), "no sign is turned round"


@pytest.mark.parametrize("signed", [True, False])
def test_it_is_right_on_average(signed: bool) -> None:
    values = spread(2, signed=signed)
    many = torch.stack([coded(values, signed=signed, seed=seed)[1] for seed in range(400)])
    error, spread_of = (many.mean(dim=0) - values).abs(), many.std(dim=0) / 400**0.5
    scale = values.view(-1, BLOCK).abs().amax(dim=1).repeat_interleave(BLOCK)
    # of what is rounded one way in a hundred draws, four hundred may show none
    assert bool((error <= 6 * spread_of + 4e-3 * values.abs() + 1e-6 * scale).all())


def test_zeros_stay_zeros_and_nothing_else_becomes_one_where_it_is_divided_by() -> None:
    values = spread(3, signed=False)
    values[::7] = 0.0
    values[1] = 1e-12
    _, back = coded(values, signed=False)
    assert torch.equal(back == 0, values == 0)
    assert torch.equal(decoded(zeros(3 * BLOCK, CPU), signed=True), torch.zeros(3 * BLOCK))
    _, nothing = coded(torch.zeros(BLOCK), signed=True)
    assert torch.equal(nothing, torch.zeros(BLOCK))


def test_it_takes_what_it_promises() -> None:
    kept = zeros(64 * BLOCK, CPU)
    assert kept.codes.nbytes + kept.scale.nbytes == BYTES * 64 * BLOCK
    assert zeros(BLOCK + 1, CPU).codes.numel() == 2 * BLOCK
