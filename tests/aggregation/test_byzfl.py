"""Our rules against those of byzfl 0.0.11, on finite input, to 1e-5."""

import importlib.util
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.distances import centred_gram
from aggregation.pieces import checked_rows
from aggregation.presteps import bucketing, nearest_neighbour_mixing
from aggregation.reducers import trimmed_count
from aggregation.rules import aggregate
from simulator.adversaries.byzfl import ByzflMissing, byzfl_module

SIZES = ((1e-3, 0.0), (1.0, 0.0), (1.0, 1.0))
"""Spread of rows, and what they have in common: with more of it, byzfl's fp32 distances are the less exact."""


def close(ours, theirs, stack):
    """To 1e-5 of what rows differ by."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(stack.std(0).mean()))


@pytest.fixture(scope="module")
def byzfl():
    return byzfl_module("aggregators")  # missing, it fails with what to run: a skipped comparison compares nothing


@st.composite
def stacks(draw, least=4):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    stack = torch.randn(draw(st.integers(least, 20)), draw(st.integers(20, 200)), generator=generator)
    spread, common = draw(st.sampled_from(SIZES))
    return stack * spread + common


RULES = {
    "mean": lambda byzfl, f: byzfl.Average(),
    "median": lambda byzfl, f: byzfl.Median(),
    "trimmed_mean": lambda byzfl, f: byzfl.TrMean(f=f),
    "krum": lambda byzfl, f: byzfl.Krum(f=f),
    "multi_krum": lambda byzfl, f: byzfl.MultiKrum(f=f),
    "geometric_median": lambda byzfl, f: byzfl.GeometricMedian(nu=1e-9, T=300),
}


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(stack=stacks())
def test_rules_agree(byzfl, rule, stack):
    theirs = RULES[rule](byzfl, trimmed_count(len(stack)))(stack)
    close(aggregate(stack, [1.0] * len(stack), rule), theirs, stack)


@settings(max_examples=40, deadline=None)
@given(stack=stacks())
def test_centered_clipping_agrees_from_the_same_start(byzfl, stack):
    start = byzfl.Median()(stack)
    tau = float((stack - start).norm(dim=1).sort().values[(len(stack) - 1) // 2])
    clip = byzfl.CenteredClipping(L=3, tau=tau)
    clip.m = start  # its constructor refuses any start, by a slip
    close(aggregate(stack, [1.0] * len(stack), "centered_clipping"), clip(stack), stack)


@settings(max_examples=40, deadline=None)
@given(stack=stacks())
def test_nearest_neighbour_mixing_agrees(byzfl, stack):
    weights, f = [1.0] * len(stack), trimmed_count(len(stack))
    mixing, _ = nearest_neighbour_mixing(centred_gram(checked_rows([[row] for row in stack], None), 64), weights)
    theirs = byzfl.NNM(f=f)(stack)
    close((mixing @ stack.double()).float(), theirs, stack)
    close(aggregate(stack, weights, "nnm+trimmed_mean"), byzfl.TrMean(f=f)(theirs), stack)


@settings(max_examples=40, deadline=None)
@given(stack=stacks(least=5), seed=st.integers(0, 2**63 - 1))
def test_bucketing_agrees_on_the_same_deal(byzfl, stack, seed):
    workers = len(stack)
    mixing, _ = bucketing([1.0] * workers, seed)
    dealt = [row for bucket in mixing for row in torch.nonzero(bucket).flatten().tolist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["byzfl.utils.torch_tools"], "permutation", lambda vectors: vectors[dealt])
        theirs = byzfl.Bucketing(s=2)(stack)
    close((mixing @ stack.double()).float(), theirs, stack)
    if workers % 2 == 0:  # they count a bucket of one as much as a bucket of two
        ours = aggregate(stack, [1.0] * workers, "bucketing+median", seed=seed)
        close(ours, byzfl.Median()(theirs), stack)


def test_without_it_the_tests_fail_and_say_what_to_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    byzfl_module.cache_clear()
    with pytest.raises(ByzflMissing, match="run `make setup`"):
        byzfl_module("aggregators")
    byzfl_module.cache_clear()
