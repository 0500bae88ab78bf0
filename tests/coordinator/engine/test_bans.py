"""Bans: who is shut out, by whom, what becomes of its leases, and how it ends. Audits that lead there."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine import reputation
from coordinator.engine.commands import AggregateRound, CancelLease, DropPayload, FindHarmful, ShutOut
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.rows import AuditResult, BanOf, WorkerRecord
from coordinator.engine.trust import may_audit, trust_of
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, WorkerId


def ban(s: Any, name: str, why: str = "it lies") -> Any:
    return s.handle(ev.WorkerBanned(at_s=s.now_s, worker=WorkerId(name), by="operator", why=why))


def record(s: Any, name: str) -> WorkerRecord:
    found: WorkerRecord = s.engine.state.workers[WorkerId(name)]
    return found


def banned_as(s: Any, name: str) -> BanOf:
    found = record(s, name).ban
    assert found is not None
    return found.of


def test_a_banned_worker_loses_its_lease_and_gets_no_other(swarm, pick):
    s = swarm()
    s.join("a", "b", "x")
    commands = ban(s, "x")
    (cancelled,) = pick(CancelLease, commands)
    assert (cancelled.worker, cancelled.reason) == ("x", "its worker is banned")
    (out,) = pick(ShutOut, commands)
    assert out.reason == "the operator banned it: it lies"
    assert s.ask("x") == []
    assert s.engine.wait_reason(WorkerId("x")) == "banned: the operator banned it: it lies"
    assert "write to the operator" in s.engine.wait_sentence(WorkerId("x"), s.now_s)
    assert trust_of(s.config, record(s, "x")).weight == 0.0


def test_what_was_accepted_and_has_not_counted_is_withdrawn(swarm, pick):
    s = swarm()
    s.join("a", "b", "x")
    s.submit("x")
    commands = ban(s, "x")
    lease = s.leases("x")[-1]
    assert (lease.status, lease.verdict.key) == (LeaseStatus.REJECTED, "banned")
    assert pick(DropPayload, commands)
    s.submit("a", "b")
    assert {s.record(c.lease_id).lease.worker for c in s.contributions()} == {"a", "b"}


def test_what_is_being_measured_is_not_judged_any_more(swarm):
    s = swarm()
    s.join("a", "b", "x")
    s.commit("x")
    s.upload("x")
    lease_id = s.lease("x").lease_id
    ban(s, "x")
    assert not s.engine.is_pending(f"measure:{lease_id}")
    assert s.measured(lease_id) == []
    assert record(s, "x").refused_lately == 0.0


def test_a_commit_on_the_cancelled_lease_is_refused_and_so_are_bytes(swarm, pick):
    s = swarm()
    s.join("a", "b", "x", "y")
    s.commit("y")
    for name in ("x", "y"):
        ban(s, name)
    s.commit("x")
    assert s.leases("x")[-1].verdict.key == "banned"
    s.upload("y")
    assert s.leases("y")[-1].verdict.key == "banned"


def test_a_round_that_is_being_aggregated_begins_again_without_it(swarm, pick):
    s = swarm()
    s.join("a", "b", "x")
    s.submit("a", "b", "x")
    before = s.waiting_for(AggregateRound)
    (again,) = pick(AggregateRound, ban(s, "x"))
    assert not s.engine.is_pending(before.command_id)
    assert [s.record(c.lease_id).lease.worker for c in again.contributions] == ["a", "b"]
    s.aggregated()
    assert s.engine.state.version == 1
    assert s.leases("x")[-1].counted_in is None


def test_a_ban_while_a_version_was_withheld_tries_it_without_the_banned(swarm, pick):
    s = swarm(max_rounds=9)
    s.join("a", "b", "c", "x")
    s.submit("a", "b", "c", "x")
    (search,) = pick(FindHarmful, s.aggregated(gain=-1.0))
    (again,) = pick(AggregateRound, ban(s, "x"))
    assert not s.engine.is_pending(search.command_id)
    assert sorted(one.worker for one in again.contributions) == ["a", "b", "c"]
    (second,) = pick(FindHarmful, s.aggregated(gain=-1.0))
    assert second.command_id != search.command_id  # a late result of the first search is no answer to this one
    assert "x" not in {one.worker for one in second.attempt.contributions}


def test_a_round_of_which_nothing_is_left_publishes_nothing(swarm):
    s = swarm()
    s.join("x")
    s.submit("x")
    assert s.phase is Phase.AGGREGATING
    ban(s, "x")
    assert (s.round, s.engine.state.version, s.phase) == (2, 0, Phase.GATHERING)


def test_said_twice_it_changes_nothing(swarm):
    s = swarm()
    s.join("a", "x")
    ban(s, "x")
    before = s.engine.snapshot()
    assert ban(s, "x", "another reason") == []
    after = s.engine.snapshot()
    assert len(after.pop("orders")) == len(before.pop("orders")) + 1, "that it was said again is kept"
    assert after == before
    with pytest.raises(IllegalEvent, match="not enrolled"):
        ban(s, "nobody")


def test_who_comes_back_starts_on_probation(swarm):
    s = swarm()
    s.join("a", "b", "x")
    ban(s, "x")
    s.handle(ev.WorkerUnbanned(at_s=s.now_s, worker=WorkerId("x"), by="operator", why=""))
    assert record(s, "x").ban is None
    assert trust_of(s.config, record(s, "x")).weight == 0.0
    assert s.ask("x")
    s.handle(ev.WorkerPardoned(at_s=s.now_s, worker=WorkerId("x"), by="operator", why=""))
    assert trust_of(s.config, record(s, "x")).weight == 0.5


@pytest.mark.parametrize("of", [BanOf.OWNER, BanOf.INVITE])
def test_an_owners_or_an_invites_keys_go_together_those_to_come_included(swarm, of):
    s = swarm()
    how = {"owner": "anna"} if of is BanOf.OWNER else {"invite": "0123456789abcdef"}
    s.join("x", "y", columns=2, **how)
    s.join("a")
    name = next(iter(how.values()))
    by: dict[str, Any] = {"at_s": s.now_s, next(iter(how)): name, "by": "operator", "why": "sybils"}
    ban(s, "y")
    s.handle((ev.OwnerBanned if of is BanOf.OWNER else ev.InviteBanned)(**by))
    s.join("z", **how)
    assert [banned_as(s, who) for who in "xyz"] == [of, BanOf.KEY, of]
    assert record(s, "a").ban is None
    assert s.lease("a")
    s.handle(ev.WorkerUnbanned(at_s=s.now_s, worker=WorkerId("y"), by="operator", why=""))
    assert banned_as(s, "y") is of  # its owner's ban stands
    s.handle((ev.OwnerUnbanned if of is BanOf.OWNER else ev.InviteUnbanned)(**by))
    assert [record(s, who).ban for who in "xyz"] == [None] * 3


def test_a_restart_knows_the_bans(swarm):
    s = swarm()
    s.join("a", "x", owner="anna")
    s.handle(ev.OwnerBanned(at_s=s.now_s, owner="anna", by="operator", why=""))
    assert s.replayed().snapshot() == s.engine.snapshot()


# ---- audits


def audited(s: Any, name: str, *results: tuple[str, bool]) -> WorkerRecord:
    """Have `name`'s lease computed again by auditors, one after the other."""
    lease_id = s.leases(name)[-1].lease.lease_id
    for auditor, passed in results:
        state = s.engine.state
        undo = state.begin()
        turn = Turn(state=state, draws=s.engine._draws)
        result = AuditResult(auditor=auditor, trunk=0.0 if passed else 0.4, columns=0.0, passed=passed)
        lease = state.update_lease(lease_id, audits=(*state.leases[lease_id].audits, result))
        reputation.after_audit(turn, lease, result)
        state.end()
        assert not undo.is_empty
    return record(s, name)


OWN, ANNA, BEN = "x", "owner anna", "owner ben"


@pytest.mark.parametrize(
    ("results", "banned", "accused", "counts"),
    [
        ([("", True)], False, False, (1, 0)),
        ([("", True), (ANNA, True)], False, False, (1, 0)),
        ([("", False)], False, True, (0, 0)),
        ([("", False), ("", False)], False, True, (0, 0)),  # one auditor, twice
        ([("", False), (OWN, False)], False, True, (0, 0)),  # nobody audits itself
        ([("", False), (ANNA, False)], True, False, (0, 1)),
        ([(ANNA, False), ("", True)], False, True, (0, 0)),
        ([(ANNA, False), ("", True), (BEN, True)], False, False, (1, 0)),  # a false accuser
        ([(ANNA, False), ("", True), (BEN, False)], True, False, (0, 1)),
        ([("", True), (ANNA, False)], False, True, (1, 0)),
        ([("", True), (OWN, True)], False, False, (1, 0)),
    ],
)
def test_only_two_independent_failed_audits_ban(swarm, results, banned, accused, counts):
    s = swarm()
    s.join("a", "b", "x")
    s.submit("x")
    found = audited(s, "x", *results)
    assert (found.ban is not None, found.accused is not None) == (banned, accused)
    assert (found.audits_passed, found.audits_failed) == counts
    assert (trust_of(s.config, found).weight == 0.0) == (banned or accused)
    if found.ban is not None:
        assert (found.ban.by, found.ban.of) == ("engine", BanOf.KEY)
        assert "2 independent auditors computed lease r1.3 again" in s.engine.wait_reason(WorkerId("x"))
        assert s.leases("x")[-1].verdict.key == "banned"


def test_owners_machines_do_not_vouch_for_each_other(swarm):
    s = swarm()
    s.join("a", "x", owner="anna", columns=2)
    s.submit("x")
    assert audited(s, "x", (ANNA, False), ("", False)).ban is None
    assert audited(s, "x", (BEN, False)).ban is not None


def test_a_false_accuser_audits_no_more(swarm):
    s = swarm()
    s.join("a", "b", trusted=True, owner="anna", columns=2)
    assert may_audit(record(s, "a"))
    turn = Turn(state=s.engine.state, draws=s.engine._draws)
    reputation.false_accusation(turn, ANNA)
    for name in "ab":
        assert not may_audit(record(s, name))
        assert record(s, name).false_accusations == 1
        assert trust_of(s.config, record(s, name)).weight == 0.5


def test_what_is_owed_and_never_comes_counts_half(swarm):
    s = swarm(max_rounds=9)
    s.join("a", "b", "x")
    turn = Turn(state=s.engine.state, draws=s.engine._draws)
    for expected in range(5):
        assert record(s, "x").quarantine is None, expected
        reputation.after_unanswered(turn, WorkerId("x"))
    for _ in range(3):
        reputation.after_unanswered(turn, WorkerId("x"))
    assert record(s, "x").quarantine is not None
    assert record(s, "x").accepted == 0


def test_a_commit_without_its_bytes_counts_only_of_a_worker_that_is_there(swarm):
    s = swarm(max_rounds=9, round_deadline_s=45.0)
    s.join("a", "b", "x", "gone")
    s.commit("x")
    s.commit("gone")
    s.silent("gone")
    while s.round < 6:
        s.after(5)
        s.submit("a", "b")
        s.beat("x")
        s.after(25)
        s.beat("x", "a", "b")
        s.after(20)
        s.beat("x")
        s.aggregated()
        s.ask("a", "b")
    assert LeaseId("r1.3") not in s.engine.state.leases
    x, gone = record(s, "x"), record(s, "gone")
    assert (x.present, x.refused_lately, gone.refused_lately) == (True, 0.5, 0.0)
    assert x.quarantine is None
