"""Rounds that the fast cannot own, nor the slow hold up."""

from __future__ import annotations

import pytest

from coordinator.engine import quorum
from coordinator.engine.commands import AggregateRound
from coordinator.engine.config import check_config
from coordinator.engine.phases import LeaseStatus, Phase
from protocol.errors import ConfigError
from protocol.ids import WorkerId
from tests.coordinator.engine.conftest import small_config

SLOW = ("c", "d", "e", "f", "g")
ALL = ("a", "b", *SLOW)


def used(s) -> list[str]:
    return sorted(s.record(c.lease_id).lease.worker for c in s.waiting_for(AggregateRound).contributions)


def aggregate(s, *asking: str) -> None:
    s.ask(*asking)
    s.aggregated()


def test_two_fast_ones_of_seven_do_not_close_a_round(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.join(*ALL)
    s.at(2)
    s.submit("a", "b")
    assert s.phase is Phase.TRAINING
    assert s.reasons()["trunk"] == "2 of 7 owners reported; more than half must, 5 on the way"
    assert s.reasons()["columns 0-3"] == "2 of 7 replicas reported, quorum 2 but not above half; 5 on the way"
    s.ask("a", "b")
    assert len(s.engine.state.leases) == 7, "they wait for the others"
    s.at(40)
    s.submit("c", "d")
    assert s.phase is Phase.GRACE
    assert s.engine.state.round.grace_until_s == 60.0, "half of what most took, not of what the fast took"
    s.at(50)
    s.submit("e", "f", "g")
    assert used(s) == sorted(ALL)


def test_quick_reports_make_nobody_overdue_before_most_have_delivered(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.enrol("a", "b", speed=1e-6)  # they claim to be slow, so that others look late
    s.enrol(*SLOW, speed=1000.0)
    s.ask(*ALL)
    s.at(2)
    s.submit("a", "b")
    s.at(39)
    assert {r.overdue_at_s for r in s.engine.state.leases.values()} == {None}
    s.submit("c", "d", "e")
    assert [s.leases(name)[0].overdue_at_s for name in "fg"] == [58.5, 58.5]


def test_one_that_is_overdue_is_not_waited_for_and_counts_when_it_comes(swarm):
    s = swarm(columns=1, replicas=4, quorum=4, heartbeat_interval_s=1000.0)
    s.join("a", "b", "c", "d")
    s.at(20)
    s.submit("a", "b", "c")
    assert s.phase is Phase.TRAINING  # the operator's quorum is all four
    s.at(29.9)
    assert s.phase is Phase.TRAINING
    s.at(30)
    assert used(s) == ["a", "b", "c"]
    assert "the 1 leases still out are not waited for: overdue" in s.engine.state.round.close_reason
    assert s.engine.state.round.close_reason.endswith("; 1 columns stay under quorum")
    late = s.lease("d")
    aggregate(s, "a", "b", "c")
    s.submit("d")
    assert s.record(late.lease_id).status is LeaseStatus.ACCEPTED
    s.after(10)
    s.submit("a", "b", "c")
    s.after(2)  # d could still take a share, and does not ask
    assert used(s) == ["a", "b", "c", "d"]


def test_an_overdue_lease_covers_no_column(swarm):
    s = swarm(columns=2, replicas=2, heartbeat_interval_s=1000.0)
    s.join("a", "b", "c", "d", columns=1)
    s.join("e", "f", columns=2)
    holder = next(name for name in "abcd" if s.lease(name).columns == (0,))
    rest = [name for name in "abcdef" if name != holder]
    s.at(20)
    state = s.engine.state
    s.submit(*rest)
    assert s.phase is Phase.GRACE
    before = quorum.Standings(state).coverage
    state.update_lease(s.lease(holder).lease_id, overdue=True)
    assert quorum.Standings(state).coverage == [before[0] - 1, before[1]]
    s.after(11)
    assert used(s) == sorted(rest)


def test_who_lost_two_in_a_row_is_not_waited_for_until_one_comes_back(swarm):
    s = swarm(max_rounds=9, lease_ttl_s=20.0, min_lease_s=20.0, heartbeat_interval_s=1000.0, max_staleness=0)
    s.join("a", "b", "c", "d")
    for losses in (1, 2):
        s.after(10)
        s.submit("a", "b", "c")
        assert s.phase is Phase.GRACE, "d is waited for"
        s.after(6)
        aggregate(s, "a", "b", "c", "d")
        assert s.engine.state.workers[WorkerId("d")].lost_in_row == losses
    s.after(10)
    s.submit("a", "b")
    assert s.phase is Phase.GRACE, "two are above half of three"
    s.submit("c")
    assert used(s) == ["a", "b", "c"], "nobody waits for d"
    aggregate(s, "a", "b", "c", "d")
    s.after(10)
    s.submit("d")
    assert s.engine.state.workers[WorkerId("d")].lost_in_row == 0
    s.submit("a", "b")
    assert s.phase is Phase.GRACE
    s.submit("c")
    aggregate(s, "a", "b", "c", "d")
    s.after(10)
    s.submit("a", "b", "c")
    assert s.phase is Phase.GRACE, "d is waited for again"


def test_where_most_have_lost_their_last_leases_they_are_waited_for(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.join(*ALL)
    for name in SLOW:
        s.engine.state.update_worker(WorkerId(name), lost_in_row=2)
    s.at(2)
    s.submit("a", "b")
    assert s.phase is Phase.TRAINING
    assert s.reasons()["trunk"] == "5 owners lost their last leases, more than the 2 others: they are waited for"
    s.check_index()


def test_nobody_delivers_and_the_round_ends_all_the_same(swarm):
    s = swarm(round_deadline_s=100.0, lease_ttl_s=1000.0, heartbeat_interval_s=1000.0)
    s.join(*ALL)
    s.at(99)
    assert s.phase is Phase.TRAINING
    s.at(100)
    assert s.round == 2
    assert s.engine.state.history[0].close_reason.startswith("nobody returned anything acceptable")


def test_everybody_is_slower_than_before_and_nobody_is_overdue(swarm):
    s = swarm(max_rounds=4, heartbeat_interval_s=1000.0)
    s.join(*ALL)
    s.at(10)
    s.submit(*ALL)
    aggregate(s, *ALL)
    s.after(25)  # 2.5 times what was expected of each
    assert not any(record.overdue for record in s.engine.state.leases_of_round())
    s.submit("a")
    assert s.phase is Phase.TRAINING
    s.submit(*ALL[1:])
    assert used(s) == sorted(ALL)


def test_leases_of_workers_without_a_vote_do_not_make_a_majority(swarm, monkeypatch):
    from coordinator.engine import index, trust

    def by_name(config, record):
        return trust.Trust(weight=0.0 if record.name in {"a", "b"} else 1.0, may_hold=True, audit_probability=0.0)

    monkeypatch.setattr(index, "trust_of", by_name)
    s = swarm(heartbeat_interval_s=1000.0)
    s.join("a", "b", "c")
    s.at(5)
    s.submit("a", "b")
    assert s.phase is Phase.TRAINING
    assert s.reasons()["trunk"].startswith("0 of 1 owners reported")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"overdue_factor": 0.9}, "overdue_factor"), ({"max_owner_share": 0.0}, "max_owner_share")],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        check_config(small_config(**changes))
