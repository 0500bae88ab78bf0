"""Steps, deadlines, rates, weights."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.engine import pacing, schedules, speeds
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import LeaseRecord, SpeedReport
from protocol.ids import RoundNumber, WorkerId


def steps_with_speeds(swarm, **seconds_a_step: float) -> dict[str, int]:
    """Inner steps of the second round, after a first one at these speeds."""
    s = swarm(heartbeat_interval_s=1e6, lease_ttl_s=1e6, round_deadline_s=1e6, quorum=99, replicas=99)
    s.join(*seconds_a_step)
    for name, step_s in sorted(seconds_a_step.items(), key=lambda item: item[1]):
        s.at(8 * step_s)
        s.commit(name, train_s=8 * step_s)
        s.upload(name)
        s.measured(s.lease(name).lease_id)
        s.ask(name)
    s.aggregated()
    return {name: s.lease(name).inner_steps for name in seconds_a_step}


def test_near_equal_speeds_give_equal_steps(swarm):
    assert steps_with_speeds(swarm, a=1.0, b=1.1, c=1.2) == {"a": 8, "b": 8, "c": 8}


def test_slower_workers_do_fewer_steps_and_faster_ones_no_more(swarm):
    assert steps_with_speeds(swarm, a=0.1, b=1.0, c=1.0, d=2.0, e=100.0) == {"a": 8, "b": 8, "c": 8, "d": 5, "e": 1}


def test_probes_count_until_there_are_measures(swarm):
    s = swarm()
    s.enrol("a", "b", speed=1000.0)
    s.enrol("c", speed=300.0)
    s.enrol("d")  # not probed: as everybody
    s.ask("a", "b", "c", "d")
    assert [s.lease(n).inner_steps for n in "abcd"] == [8, 8, 3, 8]


def test_a_newcomers_probe_is_read_against_measured_ones(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.enrol("a", "b", speed=1000.0)
    s.ask("a", "b")
    s.at(16)
    s.submit("a", "b")
    s.enrol("c", speed=500.0)
    s.ask("a", "b", "c")
    s.aggregated()
    assert [s.lease(n).inner_steps for n in "abc"] == [8, 8, 5]


@pytest.mark.parametrize("claimed", [float("nan"), float("inf"), -1.0, 0.0, 1e9])
def test_a_time_that_cannot_be_is_replaced_by_the_coordinators(swarm, claimed):
    s = swarm()
    s.join("a")
    s.at(16)
    report = pacing.report_of(LeaseRecord(lease=s.lease("a")), 16.0, claimed, 8)
    assert report == SpeedReport(steps=8, train_s=16.0, wall_s=16.0)


def test_one_odd_lease_does_not_move_the_median(swarm):
    reports: tuple[SpeedReport, ...] = ()
    for train_s in (8.0, 8.0, 800.0, 8.0, 8.0, 8.0):
        reports = pacing.last_few(reports, SpeedReport(steps=8, train_s=train_s, wall_s=train_s + 2))
    s = swarm()
    s.enrol("a")
    record = s.engine.state.update_worker(WorkerId("a"), reports=reports)
    assert len(reports) == pacing.KEPT_REPORTS
    assert speeds.step_s(record) == 1.0
    assert speeds.overhead_s(record) == pytest.approx(2.0)


def test_deadlines_follow_speed_within_limits(swarm):
    s = swarm(lease_ttl_s=100.0, min_lease_s=20.0, lease_slack=3.0, heartbeat_interval_s=1000.0, quorum=3)
    s.join("a", "b", "c")
    assert s.lease("a").deadline_s == 100  # nobody is measured yet
    s.at(4)
    s.submit("a")
    s.at(12)
    s.submit("b")
    s.at(90)
    s.submit("c")
    s.ask("a", "b", "c")
    s.aggregated()
    ttl = {n: s.lease(n).deadline_s - 90 for n in "abc"}
    assert ttl == {"a": 20.0, "b": 36.0, "c": pytest.approx(3 * 90 / 8)}


def test_learning_rate_goes_down_a_cosine(swarm):
    config = swarm(max_rounds=11).config
    rates = [schedules.learning_rate(config, RoundNumber(n)) for n in range(1, 12)]
    peak, share = config.inner.learning_rate, config.inner.final_lr_share
    assert rates[0] == pytest.approx(peak)
    assert rates[5] == pytest.approx(peak * (1 + share) / 2)
    assert rates[-1] == pytest.approx(peak * share)
    assert rates == sorted(rates, reverse=True)
    assert schedules.learning_rate(swarm(max_rounds=1).config, RoundNumber(1)) == pytest.approx(peak)


def test_weights_are_capped_at_a_multiple_of_the_median():
    assert pacing.capped_weights([32, 32, 320], 2.0) == [32.0, 32.0, 64.0]
    assert pacing.capped_weights([], 2.0) == []


def test_pseudo_gradients_are_brought_to_common_steps(swarm):
    s = swarm()
    s.join("a")
    lease: GrantedLease = s.lease("a")
    assert pacing.norm_scale(s.config, lease) == 1.0
    assert lease.sequences == 32


def test_a_round_of_short_leases_is_a_short_step_and_not_an_extrapolated_one(swarm):
    s = swarm()
    s.join("a")
    full: GrantedLease = s.lease("a")
    quarter = dataclasses.replace(full, inner_steps=full.inner_steps // 4)
    alone = pacing.common_steps([quarter, quarter], [1.0, 1.0])
    assert [pacing.step_scale(alone, lease) for lease in (quarter, quarter)] == [1.0, 1.0]
    mixed = pacing.common_steps([full, quarter], [4.0, 1.0])
    assert full.inner_steps > mixed > quarter.inner_steps
    assert pacing.step_scale(mixed, quarter) == pacing.MAX_STEP_SCALE
    assert 0.8 <= pacing.step_scale(mixed, full) < 1.0
    assert pacing.common_steps([full], [0.0]) == 0.0
