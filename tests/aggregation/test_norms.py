"""Norms in fp64, and what they say about values that are not finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregation.norms import block_norm, clip_scale, is_finite
from protocol.codecs import GRANULE


def test_equals_fp64_over_many_tensors_and_chunks():
    tensors = {name: torch.randn(GRANULE + 17) for name in "abc"}
    expected = torch.cat(list(tensors.values())).double().norm().item()
    assert block_norm(tensors) == pytest.approx(expected, rel=1e-12)
    assert block_norm(tensors.values()) == block_norm(tensors)


def test_finite_is_what_every_entry_is_though_their_sum_be_none():
    assert is_finite(torch.tensor([3e38, 3e38]))
    assert is_finite(torch.empty(0))
    for value in (math.nan, math.inf):
        assert not is_finite(torch.tensor([0.0, value]))
    assert not is_finite(torch.tensor([math.inf, -math.inf]))


def test_does_not_cry_wolf_at_1e30():
    assert block_norm([torch.full((4,), 1e30)]) == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, GRANULE, -1])
def test_one_bad_entry_shows(value, position):
    tensor = torch.zeros(GRANULE + 5)
    tensor[position] = value
    assert not math.isfinite(block_norm({"good": torch.ones(3), "bad": tensor}))


def test_both_infinities_and_nan_together():
    assert not math.isfinite(block_norm([torch.tensor([math.inf, -math.inf, math.nan])]))


def test_nothing_has_norm_zero():
    assert block_norm({}) == 0.0
    assert block_norm([torch.zeros(0)]) == 0.0


@given(norm=st.floats(0, 1e30), limit=st.floats(1e-6, 1e30))
def test_clipping_never_enlarges_and_reaches_the_limit(norm, limit):
    scale = clip_scale(norm, limit)
    assert 0 < scale <= 1
    assert norm * scale <= limit * (1 + 1e-12)
