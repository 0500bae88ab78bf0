"""Quorum lost and found, grace, spares, deadlines, and rounds that come to nothing."""

from __future__ import annotations

from coordinator.engine import quorum
from coordinator.engine.commands import AggregateRound, GrantLease
from coordinator.engine.config import AuditConfig
from coordinator.engine.phases import LeaseStatus, Phase
from protocol.ids import WorkerId


def test_grace_follows_the_rounds_own_pace(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.at(8)
    s.submit("a")
    s.at(12)
    s.submit("b")
    assert s.phase is Phase.GRACE
    assert s.engine.state.round.grace_until_s == 12 + 0.5 * 12  # a took 8 s, b 12, and c has taken 12 so far
    assert s.reasons()["columns 0-3"] == "2 of 3 replicas reported, 6 s of grace left"
    s.at(17.9)
    assert s.phase is Phase.GRACE
    s.at(18)
    assert s.phase is Phase.AGGREGATING
    assert "grace for 1 stragglers is over" in s.engine.state.round.close_reason


def test_quorum_lost_in_grace_and_found_again(swarm):
    s = swarm(columns=2, replicas=2)
    s.join("a", "b", "c", "d", columns=1)
    s.at(10)
    column = s.lease("a").columns
    mates = [n for n in "abcd" if s.lease(n).columns == column]
    others = [n for n in "abcd" if n not in mates]
    s.submit(mates[0])
    s.give_back(mates[1])
    s.submit(others[0])
    assert s.phase is Phase.TRAINING
    s.give_back(others[1])
    assert s.phase is Phase.TRAINING  # both columns short, and those that gave back are here and could serve
    assert any("left for a spare" in reason for reason in s.reasons().values())
    s.ask(mates[1])
    assert s.lease(mates[1]).spare
    s.after(5)
    s.submit(mates[1], norm=0.3)
    s.after(1.5)
    assert s.phase is Phase.AGGREGATING
    assert "under quorum" in s.engine.state.round.close_reason


def test_a_spare_in_grace_takes_the_round_back_to_training(swarm):
    s = swarm(columns=2, replicas=2)
    s.join("a", "b", "c", "d", "e", columns=1)
    by_column = {c: [n for n in "abcde" if s.lease(n).columns == (c,)] for c in (0, 1)}
    few, many = sorted(by_column.values(), key=len)
    s.at(10)
    s.submit(*many[:2])
    s.submit(few[0])
    s.silent(few[1])
    assert s.phase is Phase.GRACE  # the short column can be served by nobody, one straggler is out
    s.join("f", columns=1)
    assert s.phase is Phase.TRAINING
    assert s.lease("f").columns == s.lease(few[0]).columns
    s.after(3)
    s.submit("f", norm=0.3)
    assert s.phase is Phase.GRACE


def test_a_worker_that_is_done_replaces_what_was_lost_without_a_second_vote_on_the_trunk(swarm, pick):
    s = swarm(columns=4, replicas=2)
    s.join("a", "b", "c", "d", columns=2)
    s.at(10)
    lost = set(s.lease("d").columns)
    s.silent("d")
    s.submit("a", "b", "c")
    assert s.phase is Phase.TRAINING  # somebody here could serve
    rescuer = next(n for n in "abc" if not lost & set(s.lease(n).columns))
    (grant,) = pick(GrantLease, s.ask(rescuer))
    assert set(grant.lease.columns) == lost
    assert grant.lease.spare
    s.after(4)
    s.submit(rescuer, norm=0.3)
    contributions = s.waiting_for(AggregateRound).contributions
    trunks = [s.record(c.lease_id).lease.worker for c in contributions if c.include_trunk]
    assert sorted(trunks) == ["a", "b", "c"]
    assert len(contributions) == 4


def test_nobody_waits_for_a_spare_that_nobody_could_be(swarm):
    s = swarm()
    s.join("a", "b")
    s.after(5)
    s.submit("a")
    s.silent("b")
    assert s.phase is Phase.AGGREGATING
    assert "4 columns stay under quorum and nobody idle can serve them" in s.engine.state.round.close_reason


def test_a_finished_run_of_empty_rounds_publishes_nothing(swarm):
    s = swarm(max_rounds=2, quarantine_after=5)
    s.join("a")
    for number in (1, 2):
        assert s.round == number
        s.after(5)
        s.submit("a", gain=-1.0)
        s.ask("a")
    assert s.phase is Phase.FINISHING
    assert [row.version for row in s.engine.state.history] == [None, None]
    assert all(row.close_reason.startswith("nobody returned anything acceptable") for row in s.engine.state.history)
    assert s.engine.state.version == 0
    assert not any(isinstance(command, AggregateRound) for command in s.log)
    s.do_slow_work()
    assert s.phase is Phase.OVER
    assert [c.version for c in s.engine.state.checkpoints] == [0]


def test_the_first_round_gathers_and_a_later_one_does_not_wait_for_the_missing(swarm):
    s = swarm(min_workers=3, gather_s=5.0, max_rounds=4)
    s.join("a", "b")
    s.at(100)
    assert s.phase is Phase.GATHERING
    assert s.reasons()["round 1"].startswith("0 of 3 workers are waiting")  # the two fell silent
    s.ask("a", "b")
    s.join("c")
    assert "3 workers are waiting; 5.0 s left for more to come" in s.reasons()["round 1"]
    s.join("d")
    s.at(105)
    assert len(s.engine.state.leases) == 4
    s.submit("a", "b", "c", "d")
    s.ask("a")
    s.aggregated()
    assert s.phase is Phase.GATHERING
    s.at(110)
    assert s.phase is Phase.TRAINING


def test_a_round_gathers_though_there_is_always_somebody_between_two_asks(swarm):
    s = swarm(min_workers=3, gather_s=60.0, max_rounds=4, heartbeat_interval_s=100.0)
    s.join("a", "b", "c")
    for start in range(0, 60, 20):
        for later, name in enumerate("abc"):
            s.at(start + 6.0 * later + 0.05)  # each asks for 19.9 of every 20 s, at another moment
            s.ask(name, wait_s=19.9)
            assert s.phase is Phase.GATHERING
    s.at(60)  # and a is between two asks when the time is over
    assert s.phase is Phase.TRAINING
    assert len(s.engine.state.leases) == 2
    s.at(60.05)
    s.ask("a", wait_s=19.9)
    assert len(s.engine.state.leases) == 3


def test_who_went_away_while_a_round_gathered_is_not_counted(swarm):
    s = swarm(min_workers=3, gather_s=60.0, max_rounds=4)
    s.join("a", "b", "c")
    s.at(30)
    s.ask("a", "b")
    s.silent("c")
    assert "2 of 3 workers are waiting" in s.reasons()["round 1"]
    s.at(59)
    s.ask("a", "b", "c")
    s.at(61)
    assert s.phase is Phase.GATHERING, "it gathers anew from where all were here"


def test_the_round_deadline_does_not_cut_off_our_own_measuring(swarm):
    s = swarm(round_deadline_s=20.0, heartbeat_interval_s=100.0)
    s.join("a", "b")
    s.at(10)
    s.commit("a")
    s.upload("a")
    s.at(25)
    assert s.phase is Phase.TRAINING
    assert s.reasons()["lease r1.1"] == "1000 bytes arrived; being screened"
    s.measured("r1.1")
    assert s.phase is Phase.AGGREGATING
    assert s.engine.state.round.close_reason == "the round's deadline of 20 s has passed, 1 still out"


def test_handing_back_again_and_again_is_no_busy_circle(swarm, pick):
    s = swarm()
    s.join("a")
    s.give_back("a")
    s.ask("a")
    s.give_back("a")
    assert pick(GrantLease, s.ask("a")) == []
    assert "lost more than one lease in round 1; leased again in 10 s" in s.engine.wait_reason(WorkerId("a"))
    assert (s.phase, s.round) == (Phase.GATHERING, 1)
    s.at(10)
    assert len(s.leases("a")) == 3


def test_an_aggregation_that_fails_keeps_the_round_and_says_why(swarm):
    s = swarm()
    s.join("a")
    s.after(5)
    s.submit("a")
    for _ in range(5):
        s.failed("aggregate:r1")
    assert s.reasons()["aggregate:r1"].endswith("failed 5 times so far (disk full), to be tried again")
    s.stop()
    assert s.phase is Phase.AGGREGATING
    s.failed("aggregate:r1")
    assert s.phase is Phase.FINISHING
    s.do_slow_work()
    assert s.phase is Phase.OVER


def test_a_stop_while_aggregating_publishes_first(swarm):
    s = swarm()
    s.join("a")
    s.after(5)
    s.submit("a")
    s.stop()
    assert s.phase is Phase.AGGREGATING
    s.aggregated()
    assert (s.phase, s.engine.state.version) == (Phase.FINISHING, 1)


def test_validations_and_exports_are_given_up_after_three_tries(swarm):
    s = swarm()
    s.join("a")
    s.stop()
    for command in ("validate:v0", "checkpoint:v0"):
        for _ in range(3):
            s.failed(command)
    assert s.phase is Phase.OVER


def test_no_spare_is_waited_for_once_the_lost_lease_comes_back(swarm):
    s = swarm(quorum=1)
    s.join("a")
    s.enrol("b")
    s.at(5)
    s.silent("a")
    assert any("left for a spare" in reason for reason in s.reasons().values())
    s.submit("a")
    assert s.phase is Phase.AGGREGATING


def test_a_call_that_has_ended_is_not_waiting(swarm, pick):
    s = swarm(max_rounds=5)
    s.join("a", "b")
    s.at(10)
    s.submit("a", "b")
    s.ask("a", wait_s=5.0)
    s.ask("b", wait_s=20.0)
    s.at(16)
    assert [grant.lease.worker for grant in pick(GrantLease, s.aggregated())] == ["b"]
    assert pick(GrantLease, s.ask("a", wait_s=5.0)) != []


def test_what_has_no_weight_is_no_quorum_and_the_round_says_so(swarm):
    """A newcomer of an open run is accepted and counts nowhere: its columns wait for somebody who counts."""
    s = swarm(open_run=True, audits=AuditConfig(budget=1.0, by_coordinator=False), columns=2, replicas=2)
    s.join("a", "b")
    s.join("c")
    s.submit("a")
    s.give_back("b")
    s.give_back("c")
    assert (s.phase, s.record(s.lease("a").lease_id).status) == (Phase.TRAINING, LeaseStatus.ACCEPTED)
    (standing, *_) = quorum.Standings(s.engine.state).columns
    assert (standing.accepted, standing.weighing) == (1, 0)
    (why,) = s.reasons().values()
    assert "replicas reported, 1 of them without weight" in why
    assert "left for a spare to be found" in why
