"""When measuring may stop: what is enough, what is hopeless, and what a command is told of its peers."""

from __future__ import annotations

import dataclasses
import math

import pytest

from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.early_stops import SPREAD_MARGIN, bounds
from coordinator.engine.enough import EarlyStop, Enough, looked
from coordinator.engine.history import UsualGain

USUAL = UsualGain(gain=0.04, spread=0.02)
STOP = EarlyStop(least=0.01, full_least=-0.25, spread=0.02, margin=2.0, doubt_margin=3.0, max_doubt=0.1)


def look(mean, sd=0.02, count=4, least=0.01):
    return looked(STOP, least=least, spread=STOP.spread, mean=mean, sd=sd, count=count, whole=48)


def test_an_honest_gain_is_enough_after_four_sequences_and_none_is_not():
    assert look(0.04) is Enough.ACCEPTABLE
    assert look(0.0) is Enough.UNDECIDED
    assert look(0.04, sd=0.2) is Enough.UNDECIDED  # its own sequences differ more than is usual


def test_a_small_deviation_of_few_sequences_is_not_believed():
    assert look(0.012, sd=0.0001) is Enough.UNDECIDED
    assert look(0.012, sd=math.nan) is Enough.UNDECIDED  # of a single one


def test_harm_is_seen_early_but_never_on_fewer_than_sixteen():
    assert look(-0.2) is Enough.UNDECIDED
    assert look(-0.2, count=16) is Enough.HARMFUL
    assert look(-0.02, count=16) is Enough.UNDECIDED
    assert look(math.nan) is Enough.HARMFUL
    assert look(0.0, sd=1e-6, count=16, least=0.5) is Enough.UNDECIDED  # less than its peers is no harm


def test_bounds_follow_from_peers_and_none_from_none():
    config = ScreeningConfig()
    found = bounds(config, USUAL, steps_share=0.5)
    assert found is not None
    assert found.least == pytest.approx(0.25 * 0.5 * 0.04)
    assert found.spread == pytest.approx(SPREAD_MARGIN * 0.02)
    assert bounds(config, None, 1.0) is None
    assert bounds(config, UsualGain(gain=0.04, spread=0.0), 1.0) is None
    assert bounds(dataclasses.replace(config, early_margin=0.0), USUAL, 1.0) is None
    assert bounds(dataclasses.replace(config, enabled=False), USUAL, 1.0) is None


def test_the_first_submissions_are_measured_whole_and_later_ones_know_their_peers(swarm, pick):
    s = swarm(quorum=4, replicas=4, heartbeat_interval_s=1000.0)
    s.join("a", "b", "c", "d")
    seen = []
    for name in "abcd":
        lease = s.lease(name)
        s.commit(name, lease)
        (command,) = pick(MeasureSubmission, s.upload(name, lease))
        seen.append(command.early)
        s.measured(lease.lease_id, gain=0.04, spread=0.02)
    assert seen[:2] == [None, None]
    assert seen[2].least == pytest.approx(0.25 * 0.04)
    assert seen[3].spread == pytest.approx(SPREAD_MARGIN * 0.02)


def test_the_next_round_begins_with_what_was_usual_in_the_one_before(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.submit("a", "b", gain=0.04, spread=0.02)
    s.after(5.0)
    s.aggregated()
    s.ask("a")
    lease = s.lease("a")
    assert lease.round == 2
    s.commit("a", lease)
    (command,) = pick(MeasureSubmission, s.upload("a", lease))
    assert command.early is not None
    assert s.engine.state.usual_gain == UsualGain(gain=0.04, spread=0.02)
    assert s.replayed().snapshot() == s.engine.snapshot()
