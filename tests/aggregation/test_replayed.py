"""What an audit measures: honest is near, a lie in one column is far, and nothing that is sent breaks the measure."""

import math

import pytest
import torch

from aggregation.replayed import COLUMN_FLOOR, LARGEST_DISTANCE, ReplayDistance, replay_distance
from protocol.codecs import GRANULE
from protocol.errors import LocalError
from protocol.ids import TRUNK, column_block


def blocks(trunk=100.0, columns=(1.0, 2.0)):
    made = {TRUNK: {"a": torch.full((4, 4), trunk), "b": torch.full((3,), trunk)}}
    for number, value in enumerate(columns):
        made[column_block(number)] = {"w": torch.full((8,), value)}
    return made


def test_what_is_the_same_is_at_zero():
    assert replay_distance(blocks(), blocks()) == ReplayDistance(trunk=0.0, columns=0.0)


def test_it_is_relative_to_the_replay_for_trunk_and_worst_column_apart():
    found = replay_distance(blocks(trunk=101.0, columns=(1.0, 2.5)), blocks())
    assert found.trunk == pytest.approx(0.01)
    assert found.columns == pytest.approx(0.25)
    assert found.largest == found.columns


def test_a_lie_in_one_column_does_not_drown_in_the_others():
    sent, again = blocks(columns=(1.0,) * 64), blocks(columns=(1.0,) * 64)
    sent[column_block(40)]["w"] = -sent[column_block(40)]["w"]
    assert replay_distance(sent, again) == ReplayDistance(trunk=0.0, columns=2.0)


def test_sending_nothing_or_much_is_far():
    nothing = replay_distance(blocks(trunk=0.0, columns=(0.0, 0.0)), blocks())
    assert nothing == ReplayDistance(trunk=1.0, columns=1.0)
    assert replay_distance(blocks(trunk=1e30), blocks()).trunk == LARGEST_DISTANCE


def test_a_column_that_a_lease_hardly_used_counts_as_a_share_of_the_longest():
    again = blocks(columns=(1e-9, 2.0))
    assert replay_distance(blocks(columns=(3e-9, 2.0)), again).columns == pytest.approx(2e-9 / (COLUMN_FLOOR * 2.0))
    assert replay_distance(blocks(columns=(1.0, 2.0)), again).columns > 10.0


def test_where_nothing_moved_only_nothing_is_near():
    still = blocks(trunk=0.0, columns=(0.0, 0.0))
    assert replay_distance(still, still).largest == 0.0
    moved = replay_distance(blocks(trunk=1e-12, columns=(0.0, 1e-12)), still)
    assert moved == ReplayDistance(trunk=LARGEST_DISTANCE, columns=LARGEST_DISTANCE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
@pytest.mark.parametrize("block", [TRUNK, column_block(1)])
def test_hostile_values_are_far_and_finite(value, block):
    sent = blocks()
    next(iter(sent[block].values())).view(-1)[-1] = value
    found = replay_distance(sent, blocks())
    assert found.largest == LARGEST_DISTANCE
    assert math.isfinite(found.trunk + found.columns)


def test_whole_tensors_are_read_in_fp64():
    again = {TRUNK: {"w": torch.ones(GRANULE + 17)}}
    sent = {TRUNK: {"w": torch.ones(GRANULE + 17)}}
    sent[TRUNK]["w"][-1] = 1.0 + 2.0**-20
    assert replay_distance(sent, again).trunk == pytest.approx(2.0**-20 / math.sqrt(GRANULE + 17), rel=1e-9)


def test_other_shapes_names_and_blocks_are_our_bug():
    with pytest.raises(LocalError, match="expected blocks"):
        replay_distance(blocks(columns=(1.0,)), blocks())
    sent = blocks()
    sent[TRUNK]["a"] = torch.ones(16)
    with pytest.raises(LocalError, match="expected shape"):
        replay_distance(sent, blocks())
    sent[TRUNK] = {"a": torch.ones(4, 4)}
    with pytest.raises(LocalError, match="differs in names: b"):
        replay_distance(sent, blocks())
    with pytest.raises(LocalError, match="not finite"):
        replay_distance(blocks(), blocks(trunk=math.inf))
