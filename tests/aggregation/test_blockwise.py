"""Scaling to common steps, clipping as a whole block, weights: in this order, before the rule."""

import math

import pytest
import torch

from aggregation.blockwise import BlockContribution, aggregate_block
from aggregation.norms import block_norm
from protocol.errors import LocalError


def contribution(*values, weight=1.0, **settings):
    tensors = {"a": torch.tensor([float(values[0])]), "b": torch.tensor([[float(value)] for value in values[1:]])}
    return BlockContribution(tensors, weight, **settings)


def test_mean_of_two_keeps_names_and_shapes():
    got = aggregate_block([contribution(0, 2, 4), contribution(4, 2, 0)], "mean")
    assert got["a"].tolist() == [2.0]
    assert got["b"].tolist() == [[2.0], [2.0]]


def test_norm_is_clipped_over_the_whole_block_after_scaling_to_common_steps():
    got = aggregate_block([contribution(3, 4, step_scale=2.0, max_norm_l2=5.0)], "mean")
    assert got["a"].item() == pytest.approx(3.0)
    assert got["b"].item() == pytest.approx(4.0)
    assert block_norm(got) == pytest.approx(5.0)


def test_step_scale_alone_enlarges():
    got = aggregate_block([contribution(3, 4, step_scale=2.0)], "mean")
    assert got["a"].item() == pytest.approx(6.0)


def test_a_huge_submission_is_clipped_to_something_finite():
    got = aggregate_block([contribution(1e38, 1e38, max_norm_l2=1.0), contribution(0, 0)], "mean")
    assert block_norm(got) == pytest.approx(0.5, rel=1e-4)


def test_weight_zero_has_no_say():
    got = aggregate_block([contribution(0, 0), contribution(100, 100, weight=0.0)], "mean")
    assert block_norm(got) == 0.0


def test_trimmed_mean_over_five_with_one_liar():
    honest = [contribution(value, value) for value in (1, 2, 3, 4)]
    got = aggregate_block([*honest, contribution(-1e30, 1e30)], "trimmed_mean")
    assert got["a"].item() == pytest.approx(2.0)
    assert got["b"].item() == pytest.approx(3.0)


def test_distances_are_between_whole_blocks_after_clipping():
    """Tensor by tensor, `krum` would take `a` from one contribution and `b` from another, which nobody sent."""
    sent = [contribution(0, 0), contribution(1, 9), contribution(2, 1), contribution(9, 2), contribution(2, 2)]
    got = aggregate_block(sent, "krum")
    assert (got["a"].item(), got["b"].item()) in {(2.0, 1.0), (2.0, 2.0)}
    far = [*sent[:4], contribution(2e30, 2e30, max_norm_l2=3.0)]
    assert aggregate_block(far, "multi_krum")["a"].item() < 10


def test_only_bucketing_needs_a_seed():
    sent = [contribution(value, value) for value in range(6)]
    aggregate_block(sent, "nnm+krum")
    with pytest.raises(LocalError, match="needs a seed"):
        aggregate_block(sent, "bucketing+krum")
    assert 0 <= aggregate_block(sent, "bucketing+krum", seed=3)["a"].item() <= 5


@pytest.mark.parametrize(
    ("contributions", "message"),
    [
        ([], "without contributions"),
        ([contribution(1, 2), contribution(1, 2, 3)], "contribution 1, 'b'"),
        ([contribution(1, 2), BlockContribution({"a": torch.zeros(1)}, 1.0)], "names: b"),
        ([contribution(1, math.nan)], "not finite"),
        ([contribution(1, math.inf), contribution(1, 2)], "not finite"),
        ([contribution(1, 2, weight=0.0)], "weight 0"),
        ([contribution(1, 2, weight=-1.0)], "finite weight"),
        ([contribution(1, 2, step_scale=0.0)], "step scale"),
        ([contribution(1, 2, step_scale=math.inf)], "step scale"),
        ([contribution(1, 2, max_norm_l2=math.nan)], "largest norm"),
    ],
)
def test_what_screening_should_have_stopped_is_a_bug_here(contributions, message):
    with pytest.raises(LocalError, match=message):
        aggregate_block(contributions, "median")
