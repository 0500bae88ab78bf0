"""Properties that every rule must have; and rules of one coordinate against naive fp64 references."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregation.names import ROBUST_BASES, RULES, rule_in_force
from aggregation.reducers import trimmed_count
from aggregation.rules import aggregate, aggregate_pieces, aggregate_rows
from protocol.errors import LocalError

BY_COORDINATE = ("mean", "median", "trimmed_mean")
ROBUST = ("median", "trimmed_mean")
UNDEALT = [rule for rule in RULES if not rule.startswith("bucketing")]
SEED = 7

WEIGHTS = (0.5, 1.0, 1.5, 2.0, 0.3141)
"""Halves, as staleness makes them, and one whose few multiples come near no half: a cut is exact or far away."""


def reference(stack, weights, rule):
    """One coordinate at a time, in fp64, by sorting pairs; ties at a cut share it."""
    stack = np.asarray(stack, dtype=np.float64)
    return np.array([reference_one(stack[:, p], list(map(float, weights)), rule) for p in range(stack.shape[1])])


def reference_one(values, weights, rule):
    if rule == "mean" or len(values) < 3:
        return math.fsum(w * x for w, x in zip(weights, values, strict=True)) / math.fsum(weights)
    pairs = sorted(zip(values, weights, strict=True))
    if rule == "median":
        total, passed = sum(map(Fraction, weights)), Fraction(0)
        lower: list[float] = []
        upper: list[float] = []
        for value, weight in pairs:
            passed += Fraction(weight)
            lower += [value] * (2 * passed >= total)
            upper += [value] * (2 * passed > total)
        return (lower[0] + upper[0]) / 2
    f = trimmed_count(len(values))
    kept = [value for value, _ in pairs][f : len(pairs) - f]
    share = {value: np.mean([w for x, w in pairs if x == value]) for value in kept}
    return math.fsum(share[x] * x for x in kept) / math.fsum(share[x] for x in kept)


@st.composite
def stacks(draw, min_workers=1, max_workers=9, ties=True):
    workers = draw(st.integers(min_workers, max_workers))
    columns = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    stack = random.standard_normal((workers, columns)).astype(np.float32)
    if ties and draw(st.booleans()):
        stack = np.round(stack)
    weights = draw(
        st.one_of(
            st.just([1.0] * workers),
            st.lists(st.sampled_from(WEIGHTS), min_size=workers, max_size=workers),
        )
    )
    return torch.from_numpy(stack), weights


@pytest.mark.parametrize("rule", BY_COORDINATE)
@settings(max_examples=150, deadline=None)
@given(case=stacks())
def test_equals_the_fp64_reference(rule, case):
    stack, weights = case
    got = aggregate(stack, weights, rule).double().numpy()
    np.testing.assert_allclose(got, reference(stack, weights, rule), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", UNDEALT)
@settings(max_examples=60, deadline=None)
@given(case=stacks(min_workers=2), seed=st.integers(0, 1000))
def test_order_of_workers_does_not_matter(rule, case, seed):
    stack, weights = case
    order = np.random.default_rng(seed).permutation(len(weights))
    permuted = aggregate(stack[torch.from_numpy(order)], [weights[i] for i in order], rule)
    torch.testing.assert_close(permuted, aggregate(stack, weights, rule), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(case=stacks(), shift=st.sampled_from([-8.0, 1.0, 64.0]), scale=st.sampled_from([-2.0, -0.25, 0.5, 1024.0]))
@example(case=(torch.tensor([[0.0], [0.0], [-1.0], [-1.0]]), [1.5, 0.3141, 0.3141, 1.5]), shift=1.0, scale=-2.0)
def test_commutes_with_shift_and_scale(rule, case, shift, scale):
    stack, weights = case
    stack = stack.double()  # so that the shift rounds no row into or out of a choice between two nearly alike
    if "+" in rule:  # nor a mixture: those of tied rows under unequal weights are equal but for their rounding
        stack += 1e-3 * torch.randn(stack.shape, generator=torch.Generator().manual_seed(1)).double()
    plain = aggregate(stack, weights, rule, seed=SEED)
    shifted = aggregate(stack + shift, weights, rule, seed=SEED)
    torch.testing.assert_close(shifted, plain + shift, rtol=0, atol=1e-7)
    scaled = aggregate(stack * scale, weights, rule, seed=SEED)
    # where the geometric median is nearly a row, rounding in the equations of a Newton step moves it by this much
    atol = 1e-7 if "geometric" in rule else 1e-9
    torch.testing.assert_close(scaled, plain * scale, rtol=1e-9, atol=atol * abs(scale))


@pytest.mark.parametrize("rule", ROBUST)
@settings(max_examples=80, deadline=None)
@given(case=stacks(min_workers=3, max_workers=12), sign=st.sampled_from([1e30, -1e30]), seed=st.integers(0, 99))
def test_up_to_f_liars_cannot_leave_the_honest_range(rule, case, sign, seed):
    stack, _ = case
    workers = len(stack)
    f = (workers - 1) // 2 if rule == "median" else trimmed_count(workers)
    liars = np.random.default_rng(seed).permutation(workers)[:f]
    honest = np.setdiff1d(np.arange(workers), liars)
    stack[liars] = sign
    weights = [1.0 + (index % 2) * (rule == "trimmed_mean") for index in range(workers)]
    got = aggregate(stack, weights, rule)
    low, high = stack[honest].amin(0), stack[honest].amax(0)
    assert bool(((got >= low - 1e-5) & (got <= high + 1e-5)).all())


@pytest.mark.parametrize(("rule", "liars"), [("mean", 1), ("median", 4), ("trimmed_mean", 3)])
def test_one_liar_more_breaks_it(rule, liars):
    stack = torch.zeros(8, 3)
    stack[:liars] = 1e30
    assert bool((aggregate(stack, [1.0] * 8, rule) > 1e28).all())


def test_weighted_median_is_broken_by_half_of_the_weight_and_not_by_less():
    stack = torch.tensor([[1e30], [0.0], [0.0], [0.0]])
    assert aggregate(stack, [2.9, 1, 1, 1], "median").item() == 0.0
    assert aggregate(stack, [3.0, 1, 1, 1], "median").item() > 1e29


def test_trimming_counts_workers_whatever_they_weigh():
    stack = torch.tensor([[1e30], [0.0], [4.0], [-1e30]])
    assert aggregate(stack, [2, 3, 1, 2], "trimmed_mean").item() == pytest.approx(1.0)


@pytest.mark.parametrize("rule", RULES)
def test_two_workers_are_averaged(rule):
    assert aggregate(torch.tensor([[0.0], [4.0]]), [3, 1], rule, seed=SEED).item() == pytest.approx(1.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", [[1.0] * 5, [1.0, 2.0, 1.0, 0.5, 1.0]])
def test_chunks_leave_no_seam(rule, weights):
    stack = torch.randn(5, 1003, generator=torch.Generator().manual_seed(1))
    whole = aggregate_rows(list(stack), weights, rule, chunk_columns=2048, seed=SEED)
    in_chunks = aggregate_rows(list(stack), weights, rule, chunk_columns=64, seed=SEED)
    if rule in BY_COORDINATE:
        assert torch.equal(in_chunks, whole)
    else:  # inner products are summed in another order, in fp64
        torch.testing.assert_close(in_chunks, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_tensors_of_one_block_are_one_vector(rule):
    stack = torch.randn(7, 60, generator=torch.Generator().manual_seed(4))
    stack[0, :30], stack[1, 30:] = 40.0, -40.0  # each lies in one of the pieces alone
    pieces = [[row[:30].reshape(5, 6), row[30:31], row[31:31], row[31:]] for row in stack]
    got = aggregate_pieces(pieces, [1.0] * 7, rule, seed=SEED)
    assert [piece.shape for piece in got] == [piece.shape for piece in pieces[0]]
    flat = torch.cat([piece.reshape(-1) for piece in got])
    torch.testing.assert_close(flat, aggregate(stack, [1.0] * 7, rule, seed=SEED), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_reaches_a_rule(rule, workers, value):
    stack = torch.zeros(workers, 10)
    stack[1, 7] = value
    with pytest.raises(LocalError, match="row 1 is not finite"):
        aggregate(stack, [1.0] * workers, rule, seed=SEED)


@pytest.mark.parametrize("rule", RULES)
def test_finite_values_whose_sum_overflows_are_no_reason_to_refuse(rule):
    stack = torch.full((4, 8), 3e38)
    assert bool(torch.isfinite(aggregate(stack, [1.0] * 4, rule, seed=SEED)).all())


def test_inputs_stay_as_they_were():
    stack = torch.randn(5, 100)
    before = stack.clone()
    for rule in RULES:
        aggregate(stack, [1, 2, 3, 4, 5], rule, seed=SEED)
    assert torch.equal(stack, before)


def test_scales_multiply_rows():
    stack = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    scales = [1.0, 0.5, 2.0, 4.0, 0.25]
    scaled = stack * torch.tensor(scales).unsqueeze(1)
    for rule in RULES:
        got = aggregate_rows(list(stack), [1.0, 2.0, 1.0, 1.0, 1.0], rule, scales=scales, seed=SEED)
        torch.testing.assert_close(got, aggregate(scaled, [1.0, 2.0, 1.0, 1.0, 1.0], rule, seed=SEED))


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_tensor_has_an_empty_answer(rule):
    assert aggregate(torch.zeros(5, 0), [1] * 5, rule, seed=SEED).shape == (0,)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("workers", [3, 4, 5, 8])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_rows_that_agree_are_the_answer(rule, workers, value):
    stack = torch.full((workers, 5), value)
    weights = [1.0 + (index % 2) for index in range(workers)]
    torch.testing.assert_close(aggregate(stack, weights, rule, seed=SEED), stack[0], rtol=1e-6, atol=0)


def test_what_answers_when_workers_are_few():
    in_force = {rows: [str(rule_in_force(rule, rows)) for rule in RULES] for rows in range(1, 6)}
    assert set(in_force[1]) == set(in_force[2]) == {"mean"}
    assert in_force[3] == in_force[4] == [rule.removeprefix("bucketing+") for rule in RULES]
    assert in_force[5] == list(RULES)
    assert len(RULES) == 1 + 3 * len(ROBUST_BASES)


@pytest.mark.parametrize(
    ("rows", "weights", "rule", "message"),
    [
        ([], [], "mean", "at least one"),
        ([torch.zeros(2), torch.zeros(3)], [1, 1], "mean", "row 1"),
        ([torch.zeros(2), torch.zeros(2, dtype=torch.float64)], [1, 1], "mean", "row 1"),
        ([torch.zeros(2, dtype=torch.bfloat16)], [1], "mean", "fp32"),
        ([torch.zeros(1, 2)], [1], "mean", "row 0"),
        ([torch.zeros(2)], [1, 1], "mean", "1 weights"),
        ([torch.zeros(2)], [0.0], "mean", "above 0"),
        ([torch.zeros(2)], [math.nan], "mean", "above 0"),
        ([torch.zeros(2)], [math.inf], "mean", "above 0"),
        ([torch.zeros(2)], [1], "krumm", "expected a rule of mean, median"),
        ([torch.zeros(2)] * 5, [1] * 5, "bucketing+median", "needs a seed"),
        (
            [torch.full((2,), 1e200, dtype=torch.float64), *[torch.zeros(2, dtype=torch.float64)] * 2],
            [1] * 3,
            "krum",
            "1e150",
        ),
    ],
)
def test_wrong_calls_are_refused(rows, weights, rule, message):
    with pytest.raises(LocalError, match=message):
        aggregate_rows(rows, weights, rule)
