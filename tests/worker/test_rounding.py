"""Random bits that are the same everywhere, and rounding by them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe import hashed
from worker.train import rounding
from worker.train.rounding import StepBits, round_to_bf16, spans

CPU = torch.device("cpu")
MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1


def as_written(draws: StepBits, element: int) -> int:
    """The bits by whole numbers of any length, straight from the sources that the module names."""
    state = 0
    for part in (*draws, element // rounding.SPAN):
        state = ((state ^ (part & MASK_64)) + 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    bits = element % rounding.SPAN
    for word in (state & MASK_32, state >> 32):
        bits ^= word
        bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & MASK_32
        bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & MASK_32
        bits ^= bits >> 16
    return bits


@given(st.integers(0, MASK_64), st.integers(0, 10**5), st.integers(0, 10**4), st.integers(0, 3 * 2**20))
@settings(max_examples=40, deadline=None)
def test_bits_are_those_of_whole_numbers(seed: int, step: int, tensor: int, first: int) -> None:
    draws = StepBits(seed, step, tensor)
    got = draws.bits(first, first + 37, CPU)
    assert got.dtype == torch.int32
    assert [one & MASK_32 for one in got.tolist()] == [as_written(draws, first + place) for place in range(37)]


def test_where_they_are_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "SPAN", 64)
    draws = StepBits(1, 2, 3)
    whole = draws.bits(0, 300, CPU)
    assert torch.equal(torch.cat([draws.bits(0, 70, CPU), draws.bits(70, 71, CPU), draws.bits(71, 300, CPU)]), whole)
    assert list(spans(150)) == [(0, 64), (64, 128), (128, 150)]


def test_every_part_of_the_name_draws_anew() -> None:
    found = {tuple(StepBits(*name).bits(0, 4, CPU).tolist()) for name in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(found) == 4
    assert len(set(StepBits(5, 6, 7).bits(0, 10_000, CPU).tolist())) > 9_990


def test_bits_are_even() -> None:
    bits = StepBits(3, 4, 5).bits(0, 1 << 18, CPU)
    for place in range(32):
        ones = float(((bits >> place) & 1).double().mean())
        assert abs(ones - 0.5) < 4 * 0.5 / 2**9, place


@given(st.floats(-(2.0**99), 2.0**99, allow_nan=False, width=32), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_value_becomes_one_of_its_neighbours_as_often_as_it_is_near(value: float, seed: int) -> None:
    draws = 4096
    bits = StepBits(seed, 0, 0).bits(0, draws, CPU)
    rounded = round_to_bf16(torch.full((draws,), value), bits)
    assert torch.equal(rounded, rounded.bfloat16().float())
    found = rounded.unique().double()
    if len(found) == 1:
        gap = abs(value) * 2.0**-7 + 1e-38
        assert abs(float(found[0]) - value) <= gap * 0.01, "only what is next to a bf16 value is always rounded to it"
        return
    low, high = found.tolist()
    assert len(found) == 2
    assert low < value < high
    share = (value - low) / (high - low)
    assert abs(float((rounded == high).double().mean()) - share) < 5 * 0.5 / draws**0.5


def test_what_needs_no_rounding_stays_and_what_is_not_finite_stays_so() -> None:
    bits = StepBits(1, 1, 1).bits(0, 9, CPU)
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, 2.0**-133, torch.inf, -torch.inf, torch.nan, 0.0])
    values[8:] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # how a GPU writes what is no number
    rounded = round_to_bf16(values.clone(), bits)
    assert torch.equal(rounded[:7], values[:7])
    assert rounded[7:].isnan().all()
