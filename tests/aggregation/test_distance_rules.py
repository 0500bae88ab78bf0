"""Rules that see a block as one vector, and pre-steps: against naive fp64 references, and under liars."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregation.distances import centred_gram, squared_distances
from aggregation.names import ROBUST_BASES, RULES, rule_in_force
from aggregation.pieces import checked_rows
from aggregation.reducers import trimmed_count
from aggregation.rules import aggregate

SEED = 5


def distance(a, b):
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def weighted(rows, weights):
    return np.average(np.asarray(rows), axis=0, weights=weights)


def nearest_sum(rows, i, count):
    others = sorted(distance(rows[i], other) ** 2 for j, other in enumerate(rows) if j != i)
    return sum(others[:count])


def krum_like(rows, weights, kept):
    f = trimmed_count(len(rows))
    scores = [nearest_sum(rows, i, len(rows) - f - 1) for i in range(len(rows))]
    cut = sorted(scores)[kept - 1]
    below = [i for i, score in enumerate(scores) if score < cut * (1 - 1e-9)]
    tied = [i for i, score in enumerate(scores) if abs(score - cut) <= cut * 1e-9]
    share = {**dict.fromkeys(below, 1.0), **dict.fromkeys(tied, (kept - len(below)) / len(tied))}
    return weighted([rows[i] for i in share], [weights[i] * share[i] for i in share])


def geometric_median(rows, weights):
    z = weighted(rows, weights)
    for _ in range(20_000):
        pulls = [w / max(1e-9, distance(x, z)) for x, w in zip(rows, weights, strict=True)]
        z, before = weighted(rows, pulls), z
        if distance(z, before) < 1e-12:
            break

    def cost(point):
        return sum(w * distance(x, point) for x, w in zip(rows, weights, strict=True))

    best = min(rows, key=cost)  # the steps slow down without end towards a row that is the median
    return best if cost(best) < cost(z) - 1e-12 else z


def lower_and_upper(values, weights):
    pairs, total, passed = sorted(zip(values, weights, strict=True)), sum(weights), 0.0
    lower: list[float] = []
    upper: list[float] = []
    for value, weight in pairs:
        passed += weight
        lower += [value] * (2 * passed >= total)
        upper += [value] * (2 * passed > total)
    return (lower[0] + upper[0]) / 2


def median(rows, weights):
    return np.array([lower_and_upper(column, weights) for column in np.asarray(rows).T])


def centered_clipping(rows, weights):
    v = median(rows, weights)
    tau = sorted(distance(x, v) for x in rows)[(len(rows) - 1) // 2]
    for _ in range(3):
        steps = [(x - v) * min(1.0, tau / max(distance(x, v), 1e-300)) for x in rows]
        v = v + weighted(steps, weights)
    return v


BASES = {
    "krum": lambda rows, weights: krum_like(rows, weights, 1),
    "multi_krum": lambda rows, weights: krum_like(rows, weights, len(rows) - trimmed_count(len(rows))),
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "median": median,
}


def nnm(rows, weights):
    kept = len(rows) - trimmed_count(len(rows))
    mixed = []
    for row in rows:
        nearest = sorted(range(len(rows)), key=lambda j: distance(row, rows[j]))[:kept]
        mixed.append(weighted([rows[j] for j in nearest], [weights[j] for j in nearest]))
    return mixed, [1.0] * len(rows)


def bucketing(rows, weights):
    draw = random.Random(SEED)
    keys = [draw.random() for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: keys[i])
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    means = [weighted([rows[i] for i in pair], [weights[i] for i in pair]) for pair in pairs]
    return means, [sum(weights[i] for i in pair) for pair in pairs]


PRE_STEPS = {None: lambda rows, weights: (rows, weights), "nnm": nnm, "bucketing": bucketing}


def reference(stack, weights, rule):
    name = rule_in_force(rule, len(stack))
    rows, mixed_weights = PRE_STEPS[name.pre](list(stack.double().numpy()), weights)
    return BASES[name.base](rows, mixed_weights)


@st.composite
def stacks(draw, columns=(8, 40)):
    workers = draw(st.integers(3, 10))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stack = generator.standard_normal((workers, draw(st.integers(*columns)))).astype(np.float32)
    weights = draw(
        st.one_of(
            st.just([1.0] * workers), st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=workers, max_size=workers)
        )
    )
    return torch.from_numpy(stack), weights


@pytest.mark.parametrize("rule", [r for r in RULES if r.rpartition("+")[2] in BASES])
@settings(max_examples=40, deadline=None)
@given(case=stacks())
def test_equals_the_fp64_reference(rule, case):
    stack, weights = case
    got = aggregate(stack, weights, rule, seed=SEED).double().numpy()
    atol = 1e-4 if "geometric" in rule else 5e-6  # Weiszfeld is slow where the median is nearly a row
    np.testing.assert_allclose(got, reference(stack, weights, rule), rtol=0, atol=atol)


@settings(max_examples=60, deadline=None)
@given(case=stacks(columns=(1, 3)))
@example(case=(torch.tensor([[2.0409, -2.5557], [0.4181, -0.5678], [-0.4526, -0.2156]]), [1.0, 0.5, 0.5]))  # row 0
@example(case=(torch.tensor([[-0.0205, -1.335], [0.4576, -0.24], [0.0919, -1.1697]]), [1.0, 2.0, 1.0]))  # row 1, a line
def test_no_point_nearby_has_a_smaller_sum_of_distances(case):
    """Where few dimensions let the geometric median lie on a row, or anywhere on a line, its definition is the test."""
    stack, weights = case
    rows = stack.double()
    found = aggregate(rows, weights, "geometric_median")
    weights_W = torch.tensor(weights, dtype=torch.float64)

    def cost(z):
        return float((weights_W * (rows - z).norm(dim=1)).sum())

    generator = torch.Generator().manual_seed(1)
    nudges = [torch.randn(rows.shape[1], generator=generator).double() * size for size in (1e-2, 0.1, 1.0) * 10]
    assert all(cost(found) <= cost(other) + 1e-4 for other in (*(found + n for n in nudges), *rows))


LIES = {
    "together": lambda n, p, g: torch.full((n, p), 1e30),
    "opposed": lambda n, p, g: torch.full((n, p), 1e30) * (1 - 2 * (torch.arange(n) % 2)).unsqueeze(1),
    "scattered": lambda n, p, g: torch.randn(n, p, generator=g) * 1e30,
    "one coordinate": lambda n, p, g: torch.cat([torch.full((n, 1), 1e30), torch.zeros(n, p - 1)], dim=1),
    "uneven": lambda n, p, g: torch.ones(n, p) * (10.0 ** (6 * torch.arange(1, n + 1).clamp(max=6))).unsqueeze(1),
    "nearby": lambda n, p, g: torch.full((n, p), 10.0),
}


WITHIN = {"median", "trimmed_mean"}
"""Bases whose every coordinate lies between honest ones."""
REACH = {
    "krum": lambda rows, f: 1 + math.sqrt(rows - f - 1),
    "multi_krum": lambda rows, f: 1 + math.sqrt(rows - f - 1),
    "geometric_median": lambda rows, f: 2 * (rows - f) / (rows - 2 * f),
    "centered_clipping": lambda rows, f: 4.0,
}
"""How far from the honest mean the others' docstrings let them be, in honest spreads. A rule in neither table is held
to what every rule promises (`test_contract.py`) and no more."""


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.rpartition("+")[2] in {*WITHIN, *REACH}])
@pytest.mark.parametrize("lie", LIES)
@settings(max_examples=25, deadline=None)
@given(workers=st.integers(3, 17), seed=st.integers(0, 2**32 - 1))
@example(workers=3, seed=0)
@example(workers=15, seed=15)  # +1e30 and -1e30 in one bucket
def test_tolerated_liars_stay_without_reach(rule, lie, workers, seed):
    """f liars, as far away as they like, leave the result as near to honest rows as each rule's docstring says."""
    generator = torch.Generator().manual_seed(seed)
    stack = torch.randn(workers, 12, generator=generator)
    name = rule_in_force(rule, workers)
    rows = -(-workers // 2) if name.pre == "bucketing" else workers
    f = trimmed_count(rows)
    liars = torch.randperm(workers, generator=generator)[:f]
    honest = stack[[i for i in range(workers) if i not in liars.tolist()]].double()
    stack[liars] = LIES[lie](f, 12, generator)
    got = aggregate(stack, [1.0] * workers, rule, seed=SEED).double()
    assert bool(torch.isfinite(got).all())
    spread = float((honest.amax(0) - honest.amin(0)).norm())
    away = float((got - honest.mean(0)).norm())
    if name.pre == "nnm" and lie not in {"nearby", "one coordinate"}:
        assert away <= 1e-4  # every honest row has become the honest mean
    elif name.base in WITHIN:
        assert bool(((got >= honest.amin(0) - 1e-5) & (got <= honest.amax(0) + 1e-5)).all())
    else:
        assert away <= REACH[name.base](rows, f) * spread * 1.001


@pytest.mark.parametrize("base", ROBUST_BASES)
def test_one_liar_more_than_half_moves_every_rule(base):
    stack = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    stack[:5] = 1e30
    assert bool((aggregate(stack, [1.0] * 8, base) > 1e28).all())


def test_krums_selection_is_lost_to_more_liars_than_it_assumes():
    stack = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    stack[:6] = 50.0  # 6 of 8 identical: their scores are 0
    assert bool((aggregate(stack, [1.0] * 8, "multi_krum") == 50.0).all())


def test_a_heavy_liar_is_not_selected_and_a_light_one_neither():
    stack = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [5.0, 5.0]])
    for weight in (0.1, 100.0):
        assert float(aggregate(stack, [1.0, 1.0, 1.0, weight], "multi_krum").max()) < 0.1


def test_half_of_the_weight_moves_the_geometric_median_and_less_does_not():
    stack = torch.zeros(5, 2)
    stack[0], stack[1] = torch.tensor([1e6, 0.0]), torch.tensor([1e6, 1e-3])
    stack[2:, 1] = torch.tensor([0.0, 1e-3, 2e-3])
    assert float(aggregate(stack, [1.4, 1.4, 1, 1, 1], "geometric_median")[0]) < 1.0
    assert float(aggregate(stack, [1.6, 1.6, 1, 1, 1], "geometric_median")[0]) > 1e5


def test_the_mean_of_buckets_is_the_mean_of_rows_and_each_row_is_in_one():
    from aggregation.presteps import bucketing as deal

    weights = [1.0, 2.0, 0.5, 1.0, 1.5, 2.0, 1.0]
    deals = set()
    for seed in range(20):
        mixing, totals = deal(weights, seed)
        assert ((mixing > 0).sum(0) == 1).all()
        share = torch.tensor(totals, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(share @ mixing, torch.tensor(weights, dtype=torch.float64) / sum(weights))
        deals.add(tuple((mixing > 0).flatten().tolist()))
    assert len(deals) > 15


def honest_distances(stack, honest):
    gram = centred_gram(checked_rows([[row] for row in stack], None), 64)
    exact = torch.cdist(stack[honest].double(), stack[honest].double(), compute_mode="donot_use_mm_for_euclid_dist")
    return squared_distances(gram)[honest][:, honest].sqrt(), exact


@pytest.mark.parametrize("update", [1e-2, 1e-4, 1e-6])
def test_distances_between_raw_weights_are_as_good_as_the_weights(update):
    """An fp32 Gram matrix of these rows is 37 % off at 1e-3 and negative at 1e-4."""
    generator = torch.Generator().manual_seed(3)
    stack = torch.randn(1, 500, generator=generator) + update * torch.randn(8, 500, generator=generator)
    got, exact = honest_distances(stack, list(range(8)))
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("workers", [3, 4, 5, 8, 16])
@pytest.mark.parametrize("size", [1e3, 1e12, 1e30])
def test_a_liars_size_costs_honest_distances_no_precision(workers, size):
    """Rows centred on their mean would lose everything that honest rows differ in."""
    generator = torch.Generator().manual_seed(workers)
    stack = torch.randn(workers, 300, generator=generator)
    f = (workers - 1) // 2
    stack[:f] = size
    got, exact = honest_distances(stack, list(range(f, workers)))
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=0)


def test_rows_that_cancel_in_a_mixture_are_measured_as_what_is_left():
    """From inner products of unmixed rows, +1e30 and -1e30 in one bucket leave noise, or a negative square."""
    generator = torch.Generator().manual_seed(2)
    stack = torch.randn(8, 300, generator=generator)
    stack[0] = torch.randn(300, generator=generator) * 1e30
    stack[1] = -stack[0]
    mixing = torch.zeros(4, 8, dtype=torch.float64)
    for bucket in range(4):
        mixing[bucket, 2 * bucket : 2 * bucket + 2] = 0.5
    mixed = torch.stack([torch.zeros(300), *(stack[i : i + 2].mean(0) for i in (2, 4, 6))]).double()
    gram = centred_gram(checked_rows([[row] for row in stack], None), 64, mixing)
    exact = torch.cdist(mixed, mixed, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(squared_distances(gram).sqrt(), exact, rtol=1e-6, atol=0)


def test_rounding_is_no_distance():
    gram = torch.tensor([[1.0, 1 + 1e-15, 0.0], [1 + 1e-15, 1.0, 0.0], [0.0, 0.0, 1e-15]], dtype=torch.float64)
    distances = squared_distances(gram)
    assert distances[0, 1] == distances[1, 0] == 0.0
    assert distances[0, 2] > 0.99
    assert squared_distances(gram - 2e-15)[0, 1] == 0.0


@pytest.mark.parametrize("rule", ["nnm+krum", "nnm+multi_krum", "nnm+geometric_median"])
@pytest.mark.parametrize("seed", [96, 228, 369])
def test_mixtures_that_tie_do_so_in_every_order(rule, seed):
    """Rows of whole numbers, many of which lie equally far: mixed in fp32, these three choose by their order."""
    generator = np.random.default_rng(seed)
    workers, columns = int(generator.integers(2, 10)), int(generator.integers(1, 7))
    stack = torch.from_numpy(np.round(generator.standard_normal((workers, columns))).astype(np.float32))
    heavy = list(generator.choice([0.5, 1.0, 1.5, 2.0, 0.3141], workers)) if seed % 2 else [1.0] * workers
    order = generator.permutation(workers)
    permuted = aggregate(stack[torch.from_numpy(order)], [heavy[i] for i in order], rule)
    torch.testing.assert_close(permuted, aggregate(stack, heavy, rule), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 1e12, 1e25])
def test_clipping_is_the_same_at_every_size_that_fp32_holds(size):
    """Squares of the smallest and the largest are none of fp32's: those chunks are taken in fp64."""
    rows_WP = torch.randn(7, 3000, generator=torch.Generator().manual_seed(2))
    rows_WP[6] *= 50.0
    expected = aggregate(rows_WP.double(), [1.0] * 7, "centered_clipping")
    got = aggregate(rows_WP * size, [1.0] * 7, "centered_clipping").double() / size
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
