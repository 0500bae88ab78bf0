"""A worker may ask, once a day, that its work be computed again; its next submission is, whatever screening says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.engine import appeals
from coordinator.engine import events as ev
from coordinator.engine.commands import DropPayload, ReplayLease
from coordinator.engine.config import AuditConfig
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reputation import after_audit
from coordinator.engine.rows import AuditResult
from coordinator.engine.trust import trust_of
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, WorkerId

A = WorkerId("a")
BAD = {"gain": -0.2}


def asked(s, lease_id="r1.1"):
    return s.handle(ev.AuditAsked(at_s=s.now_s, worker=A, lease_id=LeaseId(lease_id)))


def next_round(s):
    """The first round closes with what the others sent."""
    s.submit("b", "c")
    for command in [one for one in s.engine.pending if isinstance(one, ReplayLease)]:
        s.answer(command)
    s.ask("a", "b", "c")
    s.aggregated()


@pytest.fixture
def refused(swarm):
    """The first submission of `a` was refused by its gain."""
    s = swarm(max_rounds=9, audits=AuditConfig(budget=1.0), quorum=1)
    s.join("a")
    s.join("b", "c", trusted=True)
    s.at(10)
    s.submit("a", **BAD)
    assert s.record("r1.1").verdict.key == "heldout_loss_rose"
    return s


@pytest.mark.parametrize("measured", [{}, BAD], ids=["accepted", "refused again"])
def test_the_next_submission_is_due_and_its_bytes_stay(refused, pick, measured):
    s = refused
    asked(s)
    next_round(s)
    commands = s.submit("a", **measured)
    lease = s.lease("a")
    assert lease.lease_id != "r1.1"
    assert s.record(lease.lease_id).audit_due
    assert DropPayload(digest=s.digest(lease.lease_id)) not in pick(DropPayload, commands)
    assert not s.record("r1.1").audit_due
    assert not any(record.audit_due for name in "bc" for record in s.leases(name))


def test_nobody_else_is_audited_and_nobody_without_a_budget(swarm):
    s = swarm(max_rounds=9, quorum=1)
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", **BAD)
    asked(s)
    next_round(s)
    s.submit("a")
    assert not any(record.audit_due for record in s.engine.state.leases.values())


@pytest.mark.parametrize("passed", [True, False])
def test_an_audit_settles_the_question(refused, passed):
    s = refused
    asked(s)
    next_round(s)
    s.submit("a", **BAD)
    state = s.engine.state
    result = AuditResult(auditor="", trunk=0.0, columns=0.0, passed=passed)
    record = state.update_lease(s.lease("a").lease_id, audits=(result,))
    before = state.workers[A].refused_lately
    assert before > 1.9
    turn = Turn(state=state, draws=s.engine._draws)
    after_audit(turn, s.record("r1.1"), result)
    assert state.workers[A].appeal == "r1.1", "another lease's audit is no answer"
    after_audit(turn, record, result)
    worker = state.workers[A]
    assert worker.appeal is None
    assert worker.refused_lately == (0 if passed else before)
    assert worker.accused == (None if passed else record.lease.lease_id)


def test_what_was_refused_again_is_replayed_and_paid_for_and_a_lone_accusation_is_all_that_follows(refused):
    s = refused
    asked(s)
    next_round(s)
    spent = s.engine.state.round.audit_spent
    s.submit("a", **BAD)
    record = s.record(s.lease("a").lease_id)
    assert record.audit_certain
    assert s.engine.state.round.audit_spent > spent
    assert record.lease.lease_id in [c.lease.lease_id for c in s.engine.pending if isinstance(c, ReplayLease)]
    s.audited(record.lease.lease_id, 0.5)
    worker = s.engine.state.workers[A]
    assert (worker.accused, worker.ban, worker.audits_failed) == (record.lease.lease_id, None, 0)
    assert s.record(record.lease.lease_id).status is LeaseStatus.REJECTED


def test_while_the_question_is_open_even_a_proven_worker_is_audited_for_sure(refused):
    state = refused.engine.state
    proven = replace(state.workers[A], audits_passed=20, valid_in_row=50, judged_lately=20.0, refused_lately=0.0)
    assert trust_of(state.config, proven).audit_probability < 1.0
    assert trust_of(state.config, replace(proven, appeal=LeaseId("r1.1"))).audit_probability == 1.0


def test_once_a_day(refused):
    s = refused
    asked(s)
    with pytest.raises(IllegalEvent, match="once a day, and have; ask again in 24 h"):
        asked(s)
    later_s = s.now_s + appeals.EVERY_S
    assert appeals.why_not(s.engine.state, A, LeaseId("r1.1"), later_s) is None
    assert "ask again in 2 h" in str(appeals.why_not(s.engine.state, A, LeaseId("r1.1"), later_s - 7200.0))


def test_only_a_refusal_of_ones_own_over_what_was_in_it(refused):
    s = refused
    s.submit("b")
    state, now_s = s.engine.state, s.now_s
    assert "not one of yours" in str(appeals.why_not(state, A, LeaseId("r1.2"), now_s))
    assert "not one of yours" in str(appeals.why_not(state, A, LeaseId("r9.9"), now_s))
    assert "was not refused" in str(appeals.why_not(state, WorkerId("b"), LeaseId("r1.2"), now_s))
    s.submit("c", malformed="shape")
    assert "form or its time" in str(appeals.why_not(state, WorkerId("c"), LeaseId("r1.3"), now_s))
    assert appeals.latest_refused(state, A) == "r1.1"
    assert appeals.latest_refused(state, WorkerId("b")) is None
