"""What every rule promises, by its row alone; and a rule that nobody has keeps to it with one row more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation.names import BASES, RULES, Sees, parse_rule, rule_in_force
from aggregation.reducers import trimmed_count
from aggregation.rules import aggregate
from protocol.errors import LocalError
from tests.aggregation import made_up_rule

NEW = "midpoint"
SEED = 7
LIES = {
    "far": lambda n, p: torch.full((n, p), 1e30),
    "opposed": lambda n, p: torch.full((n, p), 1e30) * (1 - 2 * (torch.arange(n) % 2)).unsqueeze(1),
    "near": lambda n, p: torch.full((n, p), 10.0),
}


@pytest.fixture(params=[*RULES, NEW, f"nnm+{NEW}", f"bucketing+{NEW}"])
def rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.endswith(NEW):
        monkeypatch.setitem(BASES, NEW, made_up_rule.ROW)
    return str(request.param)


@st.composite
def stacks(draw: st.DrawFn, least: int = 1) -> tuple[torch.Tensor, list[float]]:
    workers = draw(st.integers(least, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weights = draw(st.one_of(st.just([1.0] * workers), st.lists(st.sampled_from([0.5, 1.0, 2.0]),
                                                                 min_size=workers, max_size=workers)))  # fmt: skip
    return torch.randn(workers, 12, generator=generator), weights


for_each_rule = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def is_robust(rule: str) -> bool:
    return BASES[parse_rule(rule).base].sees is not Sees.SUM


@for_each_rule
@given(case=stacks(), seed=st.integers(0, 1000))
def test_the_order_of_workers_does_not_matter(rule: str, case: tuple[torch.Tensor, list[float]], seed: int) -> None:
    stack, weights = case
    if parse_rule(rule).pre == "bucketing":
        return  # it deals rows by a secret seed
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed)).tolist()
    permuted = aggregate(stack[order], [weights[i] for i in order], rule)
    torch.testing.assert_close(permuted, aggregate(stack, weights, rule), rtol=1e-5, atol=1e-5)


@for_each_rule
@given(case=stacks())
def test_rows_that_are_all_alike_give_that_row(rule: str, case: tuple[torch.Tensor, list[float]]) -> None:
    stack, weights = case
    alike = stack[:1].expand(len(weights), -1).contiguous()
    torch.testing.assert_close(aggregate(alike, weights, rule, seed=SEED), stack[0], rtol=1e-6, atol=1e-6)


@for_each_rule
@given(case=stacks())
def test_each_coordinate_lies_within_what_was_sent(rule: str, case: tuple[torch.Tensor, list[float]]) -> None:
    stack, weights = case
    got = aggregate(stack, weights, rule, seed=SEED)
    assert bool(((got >= stack.amin(0) - 1e-5) & (got <= stack.amax(0) + 1e-5)).all())


@for_each_rule
@given(case=stacks())
def test_it_is_the_same_again_and_leaves_the_rows_alone(rule: str, case: tuple[torch.Tensor, list[float]]) -> None:
    stack, weights = case
    before = stack.clone()
    once = aggregate(stack, weights, rule, seed=SEED)
    assert torch.equal(once, aggregate(stack, weights, rule, seed=SEED))
    assert torch.equal(stack, before)


@pytest.mark.parametrize("lie", LIES)
@for_each_rule
@given(case=stacks(least=3), seed=st.integers(0, 1000))
def test_tolerated_liars_have_no_reach(rule: str, lie: str, case: tuple[torch.Tensor, list[float]], seed: int) -> None:
    """How near each comes to the honest is `test_distance_rules.py`'s; here, that 1e30 is not felt, nor 10 much."""
    stack, _ = case
    if not is_robust(rule):
        return
    workers = len(stack)
    rows = -(-workers // 2) if rule_in_force(rule, workers).pre == "bucketing" else workers
    liars = torch.randperm(workers, generator=torch.Generator().manual_seed(seed))[: trimmed_count(rows)].tolist()
    honest = stack[[i for i in range(workers) if i not in liars]].double()
    stack[liars] = LIES[lie](len(liars), stack.shape[1])
    got = aggregate(stack, [1.0] * workers, rule, seed=SEED).double()
    spread = float((honest.amax(0) - honest.amin(0)).norm())
    assert float((got - honest.mean(0)).norm()) <= 4.0 * spread * 1.001 + 1e-4


def test_a_name_is_a_rule_exactly_where_the_table_says_so() -> None:
    assert [str(parse_rule(rule)) for rule in RULES] == list(RULES)
    for wrong in ("", "+", "nnm", "nnm+", "+krum", "nnm+mean", "bucketing+mean", "nnm+nnm+krum", "krum+nnm", NEW):
        with pytest.raises(LocalError, match="expected a rule"):
            parse_rule(wrong)
