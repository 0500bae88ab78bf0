"""Workers that go: at each stage, each of them, all of them; and what silence may and may not do."""

from __future__ import annotations

import json

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, AnnounceVerdict, CancelLease, GrantLease
from coordinator.engine.engine import Engine
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import Case, reason
from protocol.ids import WorkerId

STAGES = ["waiting", "granted", "committed", "uploaded", "accepted"]


@pytest.mark.parametrize("gone", ["a", "b", "c"])
@pytest.mark.parametrize("stage", STAGES)
def test_one_of_three_goes_and_the_round_closes_without_it(swarm, gone, stage):
    s = swarm()
    s.join("a", "b", "c")
    rest = [name for name in "abc" if name != gone]
    s.after(5)
    if stage in {"committed", "uploaded", "accepted"}:
        s.commit(gone)
    if stage in {"uploaded", "accepted"}:
        s.upload(gone)
    if stage == "accepted":
        s.measured(s.lease(gone).lease_id)
    if stage == "waiting":
        s.give_back(gone)
    s.silent(gone)
    s.submit(*rest)
    if stage == "uploaded":
        assert s.phase is Phase.GRACE  # what has arrived is measured, whoever is gone
        s.measured(s.lease(gone).lease_id)
    contributions = s.waiting_for(AggregateRound).contributions
    assert len(contributions) == (3 if stage in {"uploaded", "accepted"} else 2)
    s.ask(*rest)
    s.aggregated()
    assert {r.lease.worker for r in s.engine.state.leases_of_round()} == set(rest)
    assert s.engine.state.workers[WorkerId(gone)].rejected == {}
    assert s.engine.state.workers[WorkerId(gone)].quarantine is None


def test_all_go_and_the_round_stays_open_until_one_comes_back(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.at(1000)
    assert (s.phase, s.round) == (Phase.GATHERING, 1)
    assert "0 of 1 workers are waiting for a lease (3 enrolled, 0 here)" in s.reasons()["round 1"]
    assert s.engine.state.totals.leases_expired == 3
    s.ask("b")
    assert s.phase is Phase.TRAINING
    s.after(5)
    s.submit("b")
    assert len(s.waiting_for(AggregateRound).contributions) == 1


def test_a_run_goes_on_with_one(swarm):
    s = swarm(max_rounds=2)
    s.join("a")
    for _ in range(2):
        s.after(5)
        s.submit("a")
        s.ask("a")
        s.aggregated()
    s.do_slow_work()
    assert s.phase is Phase.OVER


def test_heartbeats_keep_a_lease_and_silence_ends_it(swarm, pick):
    s = swarm()
    s.join("a", "b")
    for now_s in (20, 40, 60):
        s.at(now_s)
        s.beat("a")
    assert pick(CancelLease, s.log) == [
        CancelLease(
            worker=WorkerId("b"), lease_id=s.lease("b").lease_id, why=reason(Case.SILENT, silent_s=30.0, most_s=30.0)
        )
    ]
    assert s.record("r1.1").status is LeaseStatus.GRANTED
    assert s.engine.lease_ended(WorkerId("b"), s.lease("b").lease_id) == "silent for 30 s (at most 30 s)"
    assert s.engine.lease_ended(WorkerId("a"), s.lease("a").lease_id) is None
    assert "not known" in (s.engine.lease_ended(WorkerId("b"), s.lease("a").lease_id) or "")


def test_heartbeats_leave_no_trace_in_the_state(swarm):
    s = swarm()
    s.join("a", "b")
    before = json.dumps(s.engine.snapshot())
    s.now_s = 17.0
    s.handle(
        ev.WorkerSeen(at_s=17.0, worker=WorkerId("a"), lease_id=s.lease("a").lease_id, inner_step=3, tokens_per_s=1e6)
    )
    assert json.dumps(s.engine.snapshot()) == before
    assert s.engine.last_seen[WorkerId("a")].inner_step == 3


def test_silence_is_in_the_journal_so_a_replay_agrees(swarm):
    s = swarm()
    s.join("a", "b")
    s.at(25)
    s.beat("a")
    s.at(40)  # b was found silent at 30; a was not, thanks to a heartbeat that no journal holds
    assert [type(e).__name__ for e in s.journal[-1:]] == ["WorkerSilent"]
    replayed = s.replayed()
    assert json.dumps(replayed.snapshot()) == json.dumps(s.engine.snapshot())
    assert replayed.state.leases[s.lease("a").lease_id].status is LeaseStatus.GRANTED


def test_after_a_restart_everybody_has_one_full_silence_limit(swarm):
    s = swarm(lease_ttl_s=50.0)
    s.join("a", "b")
    s.at(25)
    s.beat("a", "b")
    s.engine = s.replayed()  # the heartbeats are gone
    s.now_s = 60.0  # it was down past the leases' deadlines, too
    assert s.engine.next_wakeup_s() <= 60.0
    (greeting,) = s.engine.due(60.0)
    assert greeting == ev.CoordinatorResumed(at_s=60.0, gap_s=60.0)  # as far as the journal knows
    s.handle(greeting)
    assert s.engine.due(60.0) == []
    s.at(89.9)
    assert {r.status for r in s.engine.state.leases.values()} == {LeaseStatus.GRANTED}
    s.submit("a")  # trained on meanwhile, and delivers in time
    assert s.record("r1.1").status is LeaseStatus.ACCEPTED
    s.at(90)
    assert s.record("r1.2").status is LeaseStatus.EXPIRED


def test_a_finding_that_was_overtaken_changes_nothing(swarm):
    s = swarm()
    s.join("a")
    finding = ev.WorkerSilent(at_s=30.0, worker=WorkerId("a"), last_seen_at_s=0.0)
    s.now_s = 30.0
    s.handle(ev.LeaseRequested(at_s=30.0, worker=WorkerId("a")))
    assert s.handle(finding) == []
    assert s.record("r1.1").status is LeaseStatus.GRANTED


def test_silent_but_back_before_the_deadline_with_a_digest(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.silent("c")
    assert s.record("r1.3").status is LeaseStatus.EXPIRED
    s.after(20)
    s.submit("c")
    assert s.record("r1.3").status is LeaseStatus.ACCEPTED


def test_silent_and_leased_anew_cannot_deliver_the_old_one(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.silent("b")
    s.ask("b")
    old, new = (record.lease for record in s.leases("b"))
    verdict = pick(AnnounceVerdict, s.commit("b", old))[0]
    assert not verdict.accepted
    assert f"was given lease {new.lease_id} instead" in verdict.reason
    s.after(5)
    s.submit("b")
    assert s.record(new.lease_id).status is LeaseStatus.ACCEPTED


def test_the_last_commit_of_a_silent_swarm_is_waited_for(swarm):
    s = swarm(round_deadline_s=200.0)
    s.join("a")
    s.after(5)
    s.commit("a")
    s.at(100)
    assert s.phase is Phase.TRAINING
    assert "fell silent; nothing else came, so it is waited for" in s.reasons()["lease r1.1"]
    s.upload("a")
    s.measured("r1.1")
    assert s.phase is Phase.AGGREGATING


def test_a_worker_that_asks_again_gets_the_same_lease_with_time_to_do_it(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.at(20)
    (grant,) = pick(GrantLease, s.ask("a"))
    assert grant.lease.lease_id == "r1.1"
    assert grant.lease.deadline_s == 140
    assert grant.lease.data == s.record("r1.1").lease.data
    s.at(40)
    assert pick(GrantLease, s.ask("a"))[0].lease.deadline_s == 160
    s.at(60)
    assert pick(GrantLease, s.ask("a"))[0].lease.deadline_s == 160, "not for ever"
    assert s.engine.state.totals.leases_granted == 2


def test_starting_over_when_the_grace_is_too_short_is_refused(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    assert s.phase is Phase.GRACE
    assert pick(CancelLease, s.ask("c"))[0].reason.startswith("its worker starts over and needs 10 s; 5 s of grace")
    assert s.phase is Phase.AGGREGATING
    s.aggregated()
    assert s.lease("c").round == 2


def test_the_whole_swarm_restored_from_a_snapshot(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    s.submit("a")
    s.engine = Engine.restore(json.loads(json.dumps(s.engine.snapshot())), b"a secret of the tests")
    s.submit("b", "c")
    assert s.phase is Phase.AGGREGATING


def test_a_commit_of_somebody_who_fell_silent_is_a_sign_of_life(swarm):
    s = swarm(heartbeat_interval_s=5.0)
    s.join("a", "b")
    s.after(3)
    s.silent("a")
    assert not s.engine.state.workers["a"].present
    s.after(1)
    s.commit("a")
    record = s.engine.state.workers["a"]
    assert (record.present, record.heard_at_s) == (True, s.now_s)
