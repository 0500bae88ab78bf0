"""What operators order: a pause in which time stands, a drain that ends the round, and who ordered what."""

from __future__ import annotations

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, GrantLease
from coordinator.engine.hold import HoldKind
from coordinator.engine.phases import LeaseStatus, Phase
from protocol.ids import WorkerId

LONG_S = 100_000.0


def hold(s, kind=HoldKind.PAUSED, why=""):
    return s.handle(ev.RunHeld(at_s=s.now_s, kind=kind, why=why, actor="maria"))


def lift(s):
    return s.handle(ev.HoldLifted(at_s=s.now_s, actor="maria"))


def test_while_it_is_paused_time_stands_and_what_is_sent_is_taken(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    s.submit("a")
    left_s = s.lease("b").deadline_s - s.now_s
    hold(s, why="moving house")
    assert s.engine.next_wakeup_s() is None
    s.now_s += LONG_S
    assert s.engine.due(s.now_s) == []
    s.submit("b")
    assert s.record(s.lease("b").lease_id).status is LeaseStatus.ACCEPTED
    assert pick(GrantLease, s.ask("a", "b")) == []
    assert "paused the run: moving house." in s.engine.wait_sentence(WorkerId("a"), s.now_s)
    assert s.phase is Phase.TRAINING, "no round closes"
    assert "paused" in s.reasons()["round 1"]
    lift(s)
    assert s.lease("c").deadline_s - s.now_s == pytest.approx(left_s)
    worker = s.engine.state.workers[WorkerId("c")]
    assert (worker.leases_expired, worker.lost_in_row, worker.present) == (0, 0, True)
    s.submit("c")
    assert len(s.waiting_for(AggregateRound).contributions) == 3
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_who_waited_through_a_pause_is_leased_when_it_ends(swarm, pick):
    s = swarm()
    hold(s)
    s.join("a", "b", "c")
    assert s.phase is Phase.GATHERING
    s.now_s += LONG_S
    assert pick(GrantLease, s.ask("a", "b", "c", wait_s=30.0)) == []
    lift(s)
    s.tick()
    s.after(60)
    assert s.engine.state.totals.leases_granted == 3


def test_a_restart_in_a_pause_moves_nothing_twice(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    left_s = s.lease("a").deadline_s - s.now_s
    hold(s)
    s.now_s += 1000.0
    s.handle(ev.CoordinatorResumed(at_s=s.now_s, gap_s=700.0))
    s.now_s += 1000.0
    lift(s)
    assert s.lease("a").deadline_s - s.now_s == pytest.approx(left_s)


def test_a_drained_round_ends_and_none_begins(swarm, pick):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    hold(s, HoldKind.DRAINING)
    s.submit("a", "b", "c")
    assert pick(GrantLease, s.ask("a", "b", "c")) == []
    s.aggregated()
    s.after(LONG_S)
    assert (s.phase, s.round) == (Phase.GATHERING, 2)
    assert s.engine.state.totals.leases_granted == 3
    assert "draining" in s.reasons()["round 2"]
    lift(s)
    s.ask("a", "b", "c")
    s.after(60)
    assert s.engine.state.totals.leases_granted == 6


def test_a_paused_run_can_be_ended(swarm):
    s = swarm()
    s.join("a", "b", "c")
    hold(s)
    s.now_s += 50.0
    s.stop()
    s.do_slow_work()
    assert s.phase is Phase.OVER
    assert s.engine.state.hold is None


def test_it_is_kept_who_ordered_what_and_one_line_is_announced(swarm):
    s = swarm()
    s.join("a")
    hold(s, why="disk")
    hold(s, HoldKind.DRAINING)
    lift(s)
    s.handle(ev.Announced(at_s=s.now_s, text="Thank you all", actor="maria"))
    assert s.engine.wait_sentence(WorkerId("a"), s.now_s).endswith(" The operator says: Thank you all")
    s.handle(ev.Announced(at_s=s.now_s, text="", actor="maria"))
    assert s.engine.state.announcement is None
    s.handle(ev.WorkerBanned(at_s=s.now_s, worker=WorkerId("a"), by="the operator", why="lies", actor="jan"))
    kept = [(one.actor, one.kind, one.about, one.detail) for one in s.engine.state.orders]
    assert kept[0] == ("maria", "RunHeld", "paused", "disk")
    assert kept[-1] == ("jan", "WorkerBanned", "a", "lies")
    assert len(kept) == 6
    assert s.replayed().snapshot() == s.engine.snapshot()
