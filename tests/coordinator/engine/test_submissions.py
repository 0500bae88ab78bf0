"""Submissions that come late, twice, short, copied; and what counts when."""

from __future__ import annotations

import pytest

from coordinator.engine.commands import AggregateRound, AnnounceVerdict, DropPayload, MeasureSubmission
from coordinator.engine.phases import LeaseStatus, Phase
from protocol.ids import LeaseId, WorkerId


def close_without(s, *late: str) -> None:
    """Round 1 of a, b and some that are not ready in time."""
    s.join("a", "b", *late)
    s.at(10)
    s.submit("a", "b")
    s.at(16)
    assert s.phase is Phase.AGGREGATING


def test_a_late_one_counts_in_the_next_round_at_a_discount(swarm):
    s = swarm()
    close_without(s, "c")
    s.ask("a", "b")
    s.aggregated()
    s.submit("c")
    s.at(26)
    s.submit("a", "b")
    command = s.waiting_for(AggregateRound)
    late = next(c for c in command.contributions if c.lease_id == "r1.3")
    assert (late.weight, late.base_version) == (32 * 0.5 * 0.55, 0)
    s.aggregated()
    assert s.engine.state.history[-1].late_used == 1
    assert s.record("r1.3").counted_in == 2


def test_a_late_one_that_arrives_while_aggregating_counts_in_the_next_round(swarm):
    s = swarm()
    close_without(s, "c")
    s.submit("c")
    s.ask("a", "b")
    s.aggregated()
    assert s.record("r1.3").counted_in is None
    s.at(26)
    s.submit("a", "b")
    assert len(s.waiting_for(AggregateRound).contributions) == 3


def test_ones_own_fresh_submission_stands_before_the_late_one(swarm, pick):
    s = swarm()
    close_without(s, "c")
    s.ask("a", "b")
    s.aggregated()
    s.submit("c")
    s.ask("c")
    s.at(27)
    commands = s.submit("c", "a", "b", norm=0.9)
    command = s.waiting_for(AggregateRound)
    assert sorted(s.record(c.lease_id).lease.worker for c in command.contributions) == ["a", "b", "c"]
    assert all(c.lease_id.startswith("r2.") for c in command.contributions)
    assert DropPayload(digest=s.digest("r1.3")) in pick(DropPayload, commands)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_too_late_is_refused_with_the_reason(swarm, pick, staleness):
    s = swarm(max_staleness=staleness, max_rounds=9)
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    s.commit("c")
    s.at(16)
    for _ in range(staleness):
        s.ask("a", "b")
        s.aggregated()
        s.after(10)
        s.submit("a", "b")
        assert s.phase is Phase.AGGREGATING
    s.ask("a", "b")
    s.aggregated()
    record = s.record("r1.3")
    assert record.status is LeaseStatus.EXPIRED
    (verdict,) = pick(AnnounceVerdict, s.upload("c"))
    assert not verdict.accepted
    assert "committed in time, but round 1 closed without it" in verdict.reason
    assert s.engine.state.totals.submissions_rejected == {"late": 1}
    assert s.engine.state.workers[WorkerId("c")].refused_lately == 0


def test_committed_after_its_deadline(swarm, pick):
    s = swarm(heartbeat_interval_s=1000.0)
    s.join("a", "b")
    s.now_s = 121.5
    (verdict,) = pick(AnnounceVerdict, s.commit("a"))
    assert not verdict.accepted
    assert verdict.reason == "committed 1.5 s after the lease's deadline"
    assert s.engine.state.totals.leases_expired == 2
    assert s.record("r1.1").verdict.key == "late"
    again = pick(AnnounceVerdict, s.commit("a"))
    assert again == [verdict]


def test_at_the_deadline_is_after_it(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.join("a", "b")
    s.now_s = 119.999
    s.commit("a")
    s.now_s = 120.0
    s.commit("b")
    assert [r.status for r in s.engine.state.leases.values()] == [LeaseStatus.COMMITTED, LeaseStatus.REJECTED]


def test_a_clock_that_goes_back_is_not_believed(swarm):
    s = swarm(heartbeat_interval_s=1000.0)
    s.join("a", "b")
    s.at(120)
    s.now_s = 60.0
    s.commit("a")
    assert s.record("r1.1").status is LeaseStatus.REJECTED
    assert s.engine.state.now_s == 120


def test_everything_said_twice_changes_nothing(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.at(5)
    s.commit("a")
    assert s.commit("a") == []
    assert pick(MeasureSubmission, s.upload("a")) != []
    assert s.upload("a") == []
    assert s.commit("a") == []
    (verdict,) = pick(AnnounceVerdict, s.measured("r1.1"))
    assert s.commit("a") == s.upload("a") == [verdict]
    assert s.measured("r1.1") == []
    totals = s.engine.state.totals
    assert (totals.submissions_accepted, totals.leases_granted) == (1, 2)
    s.give_back("a")
    assert s.record("r1.1").status is LeaseStatus.ACCEPTED


def test_fewer_steps_than_leased_do_not_count(swarm, pick):
    s = swarm()
    s.join("a")
    (verdict,) = pick(AnnounceVerdict, s.commit("a", inner_steps_done=7))
    assert verdict.reason == "7 of 8 inner steps were done"
    assert s.engine.state.workers[WorkerId("a")].refused_lately == 0


def test_bytes_that_somebody_else_already_brought(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.submit("a")
    (verdict,) = pick(AnnounceVerdict, s.commit("b", digest=s.digest("r1.1")))
    assert not verdict.accepted
    assert s.record("r1.2").verdict.key == "duplicate"
    assert not any(c.digest == s.digest("r1.1") for c in pick(DropPayload, s.log))


def test_the_copied_payload_outlives_the_copier(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.commit("b", digest=s.digest("r1.1"))  # first to say it
    commands = s.commit("a")
    assert [v.accepted for v in pick(AnnounceVerdict, commands)] == [False]
    assert pick(DropPayload, commands) == []


def test_old_leases_are_forgotten(swarm):
    s = swarm(max_rounds=9)
    s.join("a")
    for _ in range(6):
        s.after(5)
        s.submit("a")
        s.ask("a")
        s.aggregated()
    assert LeaseId("r1.1") not in s.engine.state.leases
    assert len(s.engine.state.leases) < 6


def test_what_we_cannot_measure_is_set_aside_without_blame(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.after(5)
    s.commit("a")
    s.upload("a")
    assert s.failed("measure:r1.1") == s.failed("measure:r1.1") == []
    (verdict,) = pick(AnnounceVerdict, s.failed("measure:r1.1"))
    assert "no fault of the worker" in verdict.reason
    assert s.engine.state.totals.submissions_rejected == {"unmeasurable": 1}
    assert s.engine.state.workers[WorkerId("a")].refused_lately == 0
    assert "measure:r1.1" not in s.engine.state.pending


def test_bytes_of_a_lost_lease_are_kept_for_another_that_rests_on_them(swarm, pick):
    s = swarm(max_staleness=0)
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    s.commit("c")
    s.at(16)
    s.ask("a")
    s.aggregated()
    assert s.record("r1.3").status is LeaseStatus.EXPIRED
    s.commit("a", digest=s.digest("r1.3"))
    commands = s.upload("c")
    assert [v.accepted for v in pick(AnnounceVerdict, commands)] == [False]
    assert pick(DropPayload, commands) == []


def test_the_first_to_be_judged_is_looked_at_again_when_the_round_is_known(swarm, pick):
    s = swarm()
    s.join("liar", "b", "c", "d")
    s.at(10)
    assert [v.accepted for v in pick(AnnounceVerdict, s.submit("liar", gain=0.08))] == [True]  # no peers yet
    s.submit("b", gain=2.9)
    s.submit("c", gain=2.8)
    commands = s.submit("d", gain=3.0)
    (again,) = [verdict for verdict in pick(AnnounceVerdict, commands) if verdict.worker == s.lease("liar").worker]
    assert not again.accepted
    assert "0.25 of the round's median" in again.reason
    command = s.waiting_for(AggregateRound)
    assert s.lease("liar").lease_id not in {contribution.lease_id for contribution in command.contributions}
    assert len(command.contributions) == 3
    state = s.engine.state
    assert (state.totals.submissions_accepted, state.totals.submissions_rejected) == (3, {"heldout_gain_too_small": 1})
    assert s.record(s.lease("liar").lease_id).status is LeaseStatus.REJECTED


def test_those_who_did_nothing_and_came_first_are_not_what_others_are_measured_by(swarm, pick):
    s = swarm()
    s.join("idle1", "idle2", "idle3", "b", "c", "d", "e")
    s.at(10)
    s.submit("idle1", "idle2", "idle3", gain=0.0, norm=0.01)
    commands = [*s.submit("b", gain=2.9), *s.submit("c", gain=2.8), *s.submit("d", gain=3.0), *s.submit("e", gain=2.9)]
    verdicts = {verdict.worker: verdict for verdict in pick(AnnounceVerdict, commands)}
    honest = {s.lease(name).worker for name in "bcde"}
    assert {worker for worker, verdict in verdicts.items() if verdict.accepted} == honest
    command = s.waiting_for(AggregateRound)
    assert {contribution.lease_id for contribution in command.contributions} == {s.lease(n).lease_id for n in "bcde"}
    assert all(seen.norm_l2 == 1.0 for norms in s.engine.state.norm_history.values() for seen in norms)


def test_a_run_stopped_in_mid_round_takes_back_what_no_round_will_count(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.at(10)
    (yes,) = pick(AnnounceVerdict, s.submit("a"))
    assert yes.accepted
    commands = s.stop("enough")
    (verdict,) = pick(AnnounceVerdict, commands)
    assert (verdict.worker, verdict.lease_id, verdict.accepted) == ("a", "r1.1", False)
    assert verdict.reason == "accepted, but no round takes it any more: the operator stopped the run: enough"
    assert pick(DropPayload, commands) == [DropPayload(digest=s.digest("r1.1"))]
    state = s.engine.state
    assert s.record("r1.1").status is LeaseStatus.REJECTED
    assert (state.totals.submissions_accepted, state.totals.submissions_rejected) == (0, {"late": 1})
    worker = state.workers[WorkerId("a")]
    assert (worker.accepted, worker.refused_lately, worker.quarantine) == (0, 0, None)
    again = s.commit("a", s.record("r1.1").lease)
    assert pick(AnnounceVerdict, again) == [verdict]


def test_a_run_stopped_while_it_aggregates_keeps_what_the_step_takes(swarm, pick):
    s = swarm()
    s.join("a", "b")
    s.at(10)
    s.submit("a", "b")
    assert s.phase is Phase.AGGREGATING
    commands = [*s.stop(), *s.aggregated()]
    assert pick(AnnounceVerdict, commands) == []
    assert [(r.status, r.counted_in) for r in s.engine.state.leases.values()] == [(LeaseStatus.ACCEPTED, 1)] * 2
    assert s.engine.state.totals.submissions_accepted == 2


def expired_by_silence(s):
    """a's lease, lost while it was not heard, in a round that goes on."""
    s.join("a", "b")
    s.at(5)
    lease = s.lease("a")
    s.now_s = 40.0
    s.beat("b")
    s.silent("a")
    assert s.record(lease.lease_id).status is LeaseStatus.EXPIRED
    return lease


def test_a_worker_that_was_only_silent_may_still_commit(swarm):
    s = swarm()
    lease = expired_by_silence(s)
    s.commit("a", lease)
    assert s.record(lease.lease_id).status is LeaseStatus.COMMITTED


def test_a_commit_on_a_lease_that_another_has_replaced_since_is_refused(swarm, pick):
    s = swarm()
    old = expired_by_silence(s)
    s.ask("a")
    new = s.lease("a")
    assert new.lease_id != old.lease_id
    (verdict,) = pick(AnnounceVerdict, s.commit("a", old))
    assert not verdict.accepted
    assert verdict.reason == f"the worker was silent, then asked anew and was given lease {new.lease_id} instead"
    assert s.record(old.lease_id).status is LeaseStatus.REJECTED
    assert s.record(new.lease_id).status is LeaseStatus.GRANTED
    assert s.engine.state.workers[WorkerId("a")].refused_lately == 0
    s.commit("a", new)
    assert s.record(new.lease_id).status is LeaseStatus.COMMITTED


def test_a_commit_on_an_expired_lease_after_its_deadline_is_refused(swarm, pick):
    s = swarm(round_deadline_s=1000.0)
    lease = expired_by_silence(s)
    s.now_s = lease.deadline_s
    (verdict,) = pick(AnnounceVerdict, s.commit("a", lease))
    assert not verdict.accepted
    assert verdict.reason == "committed 0.0 s after the lease's deadline"
    assert s.record(lease.lease_id).status is LeaseStatus.REJECTED
