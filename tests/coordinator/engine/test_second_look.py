"""What does not stand when a round closes: columns, norms and gains against peers that colluders cannot be."""

from __future__ import annotations

import pytest

from coordinator.engine import screening
from coordinator.engine.commands import AggregateRound
from coordinator.engine.config import AuditConfig, InnerRecipe, ScreeningConfig
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.sequential import is_doubted
from protocol.ids import WorkerId

SIX = ("a", "b", "c", "d", "e", "f")


def refused(s):
    """Who was refused for what, in the present round or the last."""
    return {
        record.lease.worker: record.verdict.key
        for record in s.engine.state.leases.values()
        if record.status is LeaseStatus.REJECTED
    }


def holders(s, column):
    return [name for name in SIX if column in s.lease(name).columns]


def halves(swarm, **changes):
    """Six workers with half of the columns each: three replicas of every column."""
    s = swarm(max_rounds=20, **changes)
    s.enrol(*SIX, columns=2)
    s.ask(*SIX)
    s.at(5)
    assert len(holders(s, 0)) == 3
    return s


@pytest.mark.parametrize("norm", [0.0, 0.05])
def test_a_column_that_two_of_three_replicas_zero_or_shrink_is_the_third_ones(swarm, norm):
    s = halves(swarm)
    liars = holders(s, 0)[:2]
    for name in SIX:
        s.submit(name, **({"column.0": norm} if name in liars else {}))
    assert refused(s) == dict.fromkeys(liars, "norm_too_small")


def test_an_expert_that_no_token_reached_is_small_for_all_and_nobody_is_refused(swarm):
    s = halves(swarm)
    for name in SIX:
        s.submit(name, **{"column.0": 0.001})
    assert refused(s) == {}


def test_a_trusted_worker_says_whether_a_column_was_reached(swarm):
    s = swarm(max_rounds=20)
    s.enrol("a", trusted=True)
    s.enrol(*SIX[1:])
    s.ask(*SIX)
    s.at(5)
    s.submit("a", "b", "c", **{"column.0": 0.001})
    s.submit("d", "e", "f")
    assert refused(s) == {}


def test_two_of_three_people_do_not_say_what_is_normal(swarm):
    """A run that colluders have captured refuses no honest one as an outlier."""
    s = swarm(max_rounds=20)
    s.join("x", "y", "honest")
    for _ in range(3):
        s.after(5)
        s.submit("x", "y", norm=0.05)
        s.submit("honest")
        assert refused(s) == {}
        s.ask("x", "y", "honest")
        s.aggregated()


def test_one_owners_machines_are_one_person(swarm):
    s = swarm(max_rounds=20)
    s.join("a", "b", "c")
    s.join("x1", "x2", "x3", "x4", columns=1, owner="Mallory")
    s.at(5)
    s.submit("x1", "x2", "x3", "x4", norm=0.01)
    s.submit("a", "b", "c")
    assert set(refused(s)) <= {"x1", "x2", "x3", "x4"}


def test_trusted_norms_decide_where_there_are_any(swarm):
    s = swarm(max_rounds=20)
    s.enrol("t", trusted=True)
    s.join("x", "y")
    s.ask("t")
    for _ in range(3):
        s.after(5)
        s.submit("t", "x", "y")
        s.ask("t", "x", "y")
        s.aggregated()
    s.after(5)
    s.submit("x", "y", norm=0.1)
    s.submit("t")
    assert refused(s) == dict.fromkeys("xy", "norm_too_small")


def test_alone_a_worker_is_held_against_its_own_past(swarm):
    s = swarm(max_rounds=20)
    s.join("a")
    for _ in range(3):
        s.after(5)
        s.submit("a")
        s.ask("a")
        s.aggregated()
    s.after(5)
    s.submit("a", norm=0.1)
    assert refused(s) == {"a": "norm_too_small"}


@pytest.mark.parametrize(("full", "key"), [(-0.05, None), (-0.3, None), (-7.0, "heldout_loss_rose")])
def test_alone_all_of_it_is_what_the_round_would_take(swarm, full, key):
    s = swarm(max_rounds=20)
    s.join("x")
    s.at(5)
    s.submit("x", gain=0.2, full=full)
    assert refused(s).get("x") == key


def test_one_of_two_has_no_peers_to_hide_behind(swarm):
    s = swarm(max_rounds=20)
    s.join("a", "x")
    s.at(5)
    s.submit("a", full=0.3)
    s.submit("x", gain=0.2, full=-7.0)
    assert refused(s) == {"x": "heldout_loss_rose"}
    assert "all of it, as the round may take it, raises held-out loss by 7" in s.record("r1.2").verdict.reason


def test_peers_that_overshoot_say_how_much_is_honest(swarm):
    s = swarm(max_rounds=20)
    s.join("a", "b", "c", "x")
    s.at(5)
    s.submit("a", "b", "c", full=-0.3)
    s.submit("x", full=-1.3)
    assert refused(s) == {"x": "heldout_loss_rose"}


def test_whoever_has_no_weight_does_not_say_how_much_is_honest(swarm):
    """Newcomers to an open run, as many as there may be."""
    s = swarm(max_rounds=20, open_run=True, audits=AuditConfig(budget=99.0))
    s.join("a", "b", trusted=True)
    s.join("w", "x", "y", "z")
    s.at(5)
    s.submit("w", "x", "y", "z", full=-0.4)
    s.submit("a")
    s.submit("b", full=-1.3)
    s.answer_audits()  # one is not enough to be vouched for
    assert refused(s) == {"b": "heldout_loss_rose"}


def test_a_late_submission_is_looked_at_again_in_the_round_in_which_it_counts(swarm):
    s = swarm(max_rounds=20, quorum=2)
    s.join("a", "b", "c", "late")
    s.at(5)
    s.submit("a", "b", "c")
    s.commit("late")
    late = s.lease("late")
    s.at(100)
    while s.phase.value != "aggregating":
        s.after(50)
    s.ask("a", "b", "c")
    s.aggregated()
    s.upload("late", late)
    s.measured(late.lease_id, full=-7.0)
    assert s.record(late.lease_id).verdict.accepted
    s.after(5)
    s.submit("a", "b", "c")
    assert refused(s) == {"late": "heldout_loss_rose"}
    assert late.lease_id not in {one.lease_id for one in s.waiting_for(AggregateRound).contributions}


@pytest.mark.parametrize(
    "measured",
    [
        {"gain": 0.03},  # half of the steps
        {"full": -0.1},  # noise
        {"own": 0.0},  # somebody else's work
    ],
)
def test_whoever_falls_short_round_after_round_is_doubted_and_nobody_else(swarm, measured):
    s = swarm(max_rounds=40, screening=ScreeningConfig(own_data_share=1.0))
    s.join(*SIX)
    for number in range(12):
        s.after(5)
        for place, name in enumerate(SIX):
            little = (number * 7 + place * 5) % 6 / 1000
            own = {"gain": 0.05 + little, "full": little, "own": 0.08 + little}
            s.submit(name, **(own | (measured if name == "f" else {})))
        s.ask(*SIX)
        s.aggregated()
    assert {name for name in SIX if is_doubted(s.engine.state.workers[WorkerId(name)])} == {"f"}
    assert all(record.compared for record in s.engine.state.leases.values() if record.counted_in)


def test_gains_on_own_sequences_are_measured_in_rounds_that_a_secret_draws(swarm):
    drawn = set()
    s = swarm(max_rounds=40)
    s.join("a", "b")
    for number in range(24):
        s.after(5)
        for name in "ab":
            s.commit(name)
            s.upload(name)
        asked = {command.own_data for command in s.engine.pending if hasattr(command, "own_data")}
        assert len(asked) == 1  # all of a round, or none
        drawn |= {number} if asked.pop() else set()
        s.do_slow_work()
        s.ask("a", "b")
    assert 1 <= len(drawn) <= 14


def test_where_people_differ_a_small_loss_is_no_lie_and_a_large_one_is(swarm):
    """Late in a run a lease alone loses a little as often as it gains: errors of measuring are not all the noise."""
    s = swarm(max_rounds=20)
    s.join(*SIX)
    gains = dict(zip(SIX, (0.004, -0.002, 0.012, 0.0, -0.005, 0.007), strict=True))
    for name, gain in gains.items():
        s.submit(name, gain=gain, se=0.002)
    spread = s.engine.state.gain_spread
    assert 0.004 < spread < 0.009  # its own worked example: 1.4826 times the median distance from the median
    s.aggregated()
    s.ask(*SIX)
    s.after(5)
    s.submit("a", gain=-0.008, se=0.002)  # 4 standard errors below nothing
    s.submit("b", gain=-0.05, se=0.002)
    assert refused(s) == {"b": "heldout_loss_rose"}


def test_what_people_differ_by_shrinks_with_the_rate(swarm):
    """In a run's last round nobody gains or loses much any more: a loss that was no lie at the full rate is one."""
    s = swarm(max_rounds=2, inner=InnerRecipe(inner_steps=8, batch_sequences=4, final_lr_share=0.1))
    s.join(*SIX)
    for name, gain in zip(SIX, (0.004, -0.002, 0.012, 0.0, -0.005, 0.007), strict=True):
        s.submit(name, gain=gain, se=0.002)
    s.aggregated()
    s.ask(*SIX)
    s.after(5)
    s.submit("a", gain=-0.006, se=0.002)  # three errors
    s.submit("b", gain=-0.008, se=0.002)  # within errors and spread of the round before, at its rate alone
    assert refused(s) == {"b": "heldout_loss_rose"}


def test_three_say_nothing_about_how_much_people_differ_and_two_of_six_cannot_stretch_it():
    assert screening.spread_of([0.1, 0.3, 0.5]) is None
    honest = [0.1, 0.12, 0.08, 0.11]
    spread, stretched = screening.spread_of(honest), screening.spread_of([*honest, -9.0, 9.0])
    assert spread is not None
    assert stretched is not None
    assert stretched < 3 * spread


def test_gains_are_compared_among_residuals_of_like_age(swarm):
    """Whose encodings have only begun gains less than those that go on; three of each kind, and one is lazy."""
    s = swarm(max_rounds=20, replicas=6)
    s.join(*SIX)
    s.at(5)
    young, old, gains = SIX[:3], SIX[3:], dict.fromkeys(SIX[:3], 0.01) | dict.fromkeys(SIX[3:], 0.08)
    gains["f"] = 0.01
    for name in SIX:
        lease = s.lease(name)
        s.commit(name, lease)
        s.engine.state.update_lease(lease.lease_id, residual_age=0 if name in young else 9)
        s.upload(name, lease)
    for name in (*young, "f", *old[:2]):  # so that nothing is refused as it comes
        s.measured(s.lease(name).lease_id, gain=gains[name])
    assert refused(s) == {"f": "heldout_gain_too_small"}
