"""Finite and nasty: zeros, the largest and the smallest numbers there are, rows that agree, a spread of 80 decades.

Whatever passes screening must come out of every rule, and of the outer step after it, as something finite and within
what was sent. One rule that raises would end a run.
"""

import itertools
import math
from statistics import median

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregation.blockwise import LARGEST_NORM_L2, BlockContribution, aggregate_block, scale_of
from aggregation.names import RULES
from aggregation.norms import block_norm
from aggregation.outer import OuterStep

LARGEST = torch.finfo(torch.float32).max
SMALLEST = 1e-45
VALUES = (0.0, -0.0, 1.0, -1.0, 1e-3, 1e38, -1e38, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 1e-38, 1e-20, 1e20)


def block(values):
    return {"a": torch.tensor(values[:1]), "b": torch.tensor([values[1:]])}


def blocks_of(rows, weights, scales, clip):
    """Clipped as the coordinator clips: to the median norm at common steps, or not at all."""
    norms = [block_norm(block(row)) * scale for row, scale in zip(rows, scales, strict=True)]
    most = median(norms) if clip else math.inf
    return [
        BlockContribution(block(row), weight, step_scale=scale, max_norm_l2=most)
        for row, weight, scale in zip(rows, weights, scales, strict=True)
    ]


def check(sent, rule):
    got = aggregate_block(sent, rule, seed=5)
    for name, tensor in got.items():
        assert bool(torch.isfinite(tensor).all()), (rule, tensor)
        entered = torch.stack([one.tensors[name].double() * scale_of(one) for one in sent])
        slack = 1e-5 * entered.abs().amax(0) + 1e-41  # below 1e-38 the digits are few, and a share divides them
        assert bool((tensor >= entered.amin(0) - slack).all()), (rule, tensor, entered)
        assert bool((tensor <= entered.amax(0) + slack).all()), (rule, tensor, entered)
    return got


row = st.lists(st.sampled_from(VALUES), min_size=4, max_size=4)
rows_of = st.integers(1, 9).flatmap(lambda count: st.lists(row, min_size=count, max_size=count))
weight_of = st.sampled_from([1.0, 1.0, 2.0, 1e-3, 0.7])
scale = st.sampled_from([1.0, 1.0, 0.125, 2.0])


@st.composite
def hostile(draw):
    rows = draw(rows_of)
    if draw(st.booleans()):  # copies of one another, as allied workers send them
        rows = [rows[index % 2 if len(rows) > 1 else 0] for index in range(len(rows))]
    each = [(draw(weight_of), draw(scale)) for _ in rows]
    return rows, [w for w, _ in each], [s for _, s in each], draw(st.booleans())


@pytest.mark.parametrize("rule", RULES)
@given(case=hostile())
@example(case=([[0.0] * 4, [0.0] * 4, [1.0] * 4], [1.0] * 3, [1.0] * 3, True))
@example(case=([[0.0] * 4] * 3, [1.0] * 3, [1.0] * 3, True))
@example(case=([[LARGEST] * 4] * 5, [1.0] * 5, [2.0] * 5, False))
@example(case=([[LARGEST] * 4, [-LARGEST] * 4] * 2, [1.0] * 4, [2.0] * 4, True))
@example(case=([[SMALLEST] * 4, [0.0] * 4, [LARGEST] * 4], [1.0] * 3, [1.0] * 3, True))
@example(case=([[0.0, 0.0, 0.0, LARGEST], [1e-3, 0.0, 0.0, 0.0]] * 4, [2.0] + [1.0] * 7, [1.0] * 8, True))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_rule_raises_and_what_comes_out_lies_within_what_was_sent(rule, case):
    check(blocks_of(*case), rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", range(1, 10))
def test_every_number_of_zeroed_rows_among_others(rule, count):
    for zeros in range(count + 1):
        rows = [[0.0] * 4] * zeros + [[float(index + 1)] * 4 for index in range(count - zeros)]
        got = check(blocks_of(rows, [1.0] * count, [1.0] * count, True), rule)
        if 2 * zeros > count:  # most did not move it: it is not moved
            assert block_norm(got) == 0.0


def test_a_clip_far_below_a_row_is_exact_where_the_factor_has_no_digits_left():
    sent = BlockContribution(block([LARGEST, 0.0, 0.0, 0.0]), 1.0, max_norm_l2=1e-6)
    assert block_norm(aggregate_block([sent], "mean")) == pytest.approx(1e-6, rel=1e-6)


def test_no_contribution_enters_longer_than_sums_of_it_can_be():
    sent = BlockContribution(block([LARGEST] * 4), 1.0, step_scale=2.0)
    assert block_norm(aggregate_block([sent], "mean")) == pytest.approx(LARGEST_NORM_L2, rel=1e-5)


@pytest.mark.parametrize(("theta", "gradient", "momentum"), list(itertools.product((LARGEST, -LARGEST, 0.0), repeat=3)))
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_the_outer_step_stays_finite(theta, gradient, momentum, mu):
    step, momenta = OuterStep(learning_rate=2.0, momentum=mu), {"w": torch.full((3,), momentum)}
    base = {"w": torch.full((3,), theta)}
    for _ in range(3):
        base, after = step.step(base, {"w": torch.full((3,), gradient)}, momenta if mu else None)
        momenta = after or momenta
        assert bool(torch.isfinite(base["w"]).all())
        assert bool(torch.isfinite(momenta["w"]).all())
