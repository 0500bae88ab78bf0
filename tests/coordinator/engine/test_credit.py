"""Credit: what stands to whose name, that it is taken back with the work, and how it is ranked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine import audit_budget, audits, contributions, credit, dispatch
from coordinator.engine import events as ev
from coordinator.engine.config import AuditConfig
from coordinator.engine.credit import CreditOf, CreditRow, ranking
from coordinator.engine.earned import Credit
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Case, reason
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.trust import Trust
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId, RoundNumber, WorkerId
from tests.coordinator.engine.test_rollback import order, play, rounds


def earned(s: Any, name: str) -> Credit:
    return s.engine.state.workers[WorkerId(name)].credit


def check_sums(s: Any) -> None:
    """As long as nothing is forgotten, the sums are what the leases say; and a restart reads the same."""
    state = s.engine.state
    for worker, record in state.workers.items():
        stands = [one for one in state.leases_of(worker) if one.credited]
        assert record.credit.sequences == sum(one.credited for one in stands)
        assert record.credit.leases == len(stands)
        assert record.credit.rounds == len({one.lease.round for one in stands})
        assert all(one.status is LeaseStatus.ACCEPTED for one in stands)
    assert s.replayed().state.workers == state.workers


def test_accepted_work_is_credited_at_once_and_refused_work_is_not(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    s.submit("a")
    assert earned(s, "a") == Credit(sequences=32, leases=1, rounds=1)
    s.submit("b", malformed="it is not")
    assert earned(s, "b") == earned(s, "c") == Credit()
    places = [credit.place_of(s.engine.state, WorkerId(one)) for one in ("a", "b", "nobody")]
    assert places == [(1, 1), (0, 1), (0, 1)]
    check_sums(s)


def test_an_acceptance_that_is_withdrawn_takes_its_credit_with_it(swarm):
    s = swarm()
    s.join("a", "b", "c")
    s.after(5)
    s.submit("a", "b")
    s.handle(ev.WorkerBanned(at_s=s.now_s, worker=WorkerId("a"), by="operator", why=""))
    assert earned(s, "a") == Credit(lost_sequences=32, lost_leases=1)
    assert s.record("r1.1").uncredited == reason(Case.WORKER_BANNED)
    check_sums(s)


@pytest.fixture
def always_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is no founder, and with nobody waiting for it."""

    def trust_of(_: Any, record: WorkerRecord) -> Trust:
        return Trust(weight=1.0, may_hold=record.ban is None, audit_probability=0.0 if record.trusted else 1.0)

    for asking in (audits, audit_budget, contributions, dispatch):
        monkeypatch.setattr(asking, "trust_of", trust_of)
    monkeypatch.setattr(audits, "is_stranger", lambda *_: False)


@pytest.mark.usefixtures("always_audited")
def test_an_audit_that_fails_after_the_round_takes_back_what_had_counted(swarm):
    s = swarm(columns=1, audits=AuditConfig(budget=9.0), min_workers=3, replicas=9, max_rounds=9)
    s.join("a", "b")
    s.join("t", trusted=True, owner="owner of t")
    s.after(1)
    s.submit("a", "b", "t")
    s.after(s.config.round_deadline_s)  # as long as it waits for audits
    s.aggregated()
    assert s.record("r1.1").counted_in == 1
    assert earned(s, "a").rounds == 1
    s.audited("r1.1", 0.5)
    assert earned(s, "a").leases == 1, "one auditor's word is not final"
    s.ask("t")
    assert s.lease("t").audits == "r1.1"
    s.send("t")
    s.compared("t", 0.5)
    assert earned(s, "a") == Credit(lost_sequences=32, lost_leases=1)
    assert s.record("r1.1").uncredited == reason(Case.AUDITS_FAILED, "r1.1", auditors=2)
    assert earned(s, "t").leases == 2, "its own, and the one that it computed again"
    check_sums(s)


def test_a_rollback_takes_back_what_the_new_version_is_without(swarm):
    s = swarm(max_rounds=30, rollback_rounds=6)
    s.join("a", "b", "x")
    rounds(s, "abx", "ab", "abx", "abx", "abx")
    before = earned(s, "x")
    assert (before.leases, before.rounds) == (4, 4)
    order(s, "x")
    play(s, "ab")
    s.aggregated()
    s.rebuilt(change_l2=1.0)
    assert earned(s, "x") == Credit(lost_sequences=before.sequences, lost_leases=4)
    assert earned(s, "a").rounds == 6
    check_sums(s)


def test_leases_that_nothing_can_undo_are_forgotten_and_their_credit_stays(swarm):
    s = swarm(max_rounds=30)
    s.join("a", "b", "x")
    rounds(s, *["abx"] * 8)
    assert earned(s, "a") == Credit(sequences=8 * 32, leases=8, rounds=8)
    assert len(list(s.engine.state.leases_of(WorkerId("a")))) < 8
    assert s.replayed().state.workers == s.engine.state.workers


ACTS = st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=40)


@given(acts=ACTS)
@settings(max_examples=60, deadline=None)
def test_in_whatever_order_leases_come_and_go_the_sums_are_those_of_what_stands(acts):
    from tests.coordinator.engine.conftest import Swarm, small_config

    s = Swarm(small_config(min_workers=3))
    s.join("a", "b", "c")
    state, first = s.engine.state, s.record("r1.1")
    assert first.lease.worker == "a"
    turn = Turn(state=state, draws=s.engine._draws)
    for number in range(12):  # three leases in each of four rounds, of different lengths
        lease = replace(
            first.lease,
            lease_id=LeaseId(f"x{number}"),
            round=RoundNumber(1 + number // 3),
            data=replace(first.lease.data, count=4 * (number + 1)),
            inner_steps=number + 1,
        )
        state.put_lease(replace(first, lease=lease))
    stands: set[int] = set()
    lost = 0
    for is_given, number in acts:
        lease_id = LeaseId(f"x{number}")
        if is_given and number not in stands:
            credit.give(turn, lease_id)
            stands.add(number)
        elif not is_given:
            credit.take_back(turn, lease_id, reason(Case.ROLLED_BACK))
            lost += number in stands
            stands.discard(number)
    found = earned(s, "a")
    assert found.sequences == sum(state.leases[LeaseId(f"x{number}")].lease.sequences for number in stands)
    assert (found.leases, found.lost_leases) == (len(stands), lost)
    assert found.rounds == len({number // 3 for number in stands})


def record(worker: str, sequences: int, owner: str = "") -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId(worker), name="", trusted=False, max_columns=1, tokens_per_s=0.0, heard_at_s=0.0, owner=owner,
        credit=Credit(sequences=sequences, leases=min(1, sequences), rounds=min(1, sequences), lost_leases=1),
    )  # fmt: skip


WORKERS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["", "ann", "bob"]), st.sampled_from(["", "red", "blue"])), max_size=9
)


@given(people=WORKERS)
@settings(max_examples=60, deadline=None)
def test_every_ranking_adds_up_to_the_same_and_is_in_order(people):
    workers = [record(f"w{place}", sequences, owner) for place, (sequences, owner, _) in enumerate(people)]
    teams = {WorkerId(f"w{place}"): team for place, (_, _, team) in enumerate(people)}
    total = 16 * sum(sequences for sequences, _, _ in people)

    def ranked(by: CreditOf) -> tuple[CreditRow, ...]:
        return ranking(workers, by=by, tokens_a_sequence=16, name_of=str, team_of=teams.__getitem__)

    for by in (CreditOf.WORKER, CreditOf.OWNER):
        assert sum(row.tokens for row in ranked(by)) == total
    assert sum(row.tokens for row in ranked(CreditOf.TEAM)) == 16 * sum(one for one, _, team in people if team)
    for by in CreditOf:
        rows = ranked(by)
        assert [row.tokens for row in rows] == sorted((row.tokens for row in rows), reverse=True)
        for row in rows:
            assert row.rank == 1 + sum(other.tokens > row.tokens for other in rows)
        assert rows == ranking(
            reversed(workers), by=by, tokens_a_sequence=16, name_of=str, team_of=teams.__getitem__
        ), "the order in which workers are known says nothing"


def test_whoever_has_earned_nothing_is_in_no_ranking_and_no_owner_is_a_worker():
    idle = replace(record("idle", 0), credit=Credit())
    rows = ranking(
        [idle, record("ann", 1, owner="ann"), record("w", 1)], by=CreditOf.OWNER, tokens_a_sequence=1, name_of=str
    )
    assert [(row.key, row.rank, row.workers) for row in rows] == [("owner ann", 1, 1), ("w", 1, 1)]
