"""Leases computed again: who is drawn, who computes, what the round waits for, and what follows, in whatever order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.engine import audit_budget, audits, contributions, dispatch
from coordinator.engine import events as ev
from coordinator.engine.audit_notes import audit_notes
from coordinator.engine.commands import (
    AggregateRound,
    AnnounceVerdict,
    CompareSubmissions,
    DropPayload,
    GrantLease,
    ReplayLease,
)
from coordinator.engine.config import AuditConfig, check_config
from coordinator.engine.contributions import oldest_version_needed
from coordinator.engine.engine import Engine
from coordinator.engine.history import AuditOutcome
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.trust import Trust
from coordinator.run.needed import needed_by
from protocol.errors import ConfigError, IllegalEvent
from protocol.ids import LeaseId, RoundNumber, WorkerId
from protocol.lease import Lease


def config(**changes: Any) -> AuditConfig:
    return dataclasses.replace(AuditConfig(budget=9.0), **changes)


@pytest.fixture(autouse=True)
def chance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Founders are never drawn, everybody else surely, or with the probability that is set by this. Full weight."""
    probability = [1.0]

    def trust_of(_: Any, record: WorkerRecord) -> Trust:
        audited = 0.0 if record.trusted else probability[0]
        return Trust(weight=1.0, may_hold=record.ban is None, audit_probability=audited)

    for asking in (audits, audit_budget, contributions, dispatch):
        monkeypatch.setattr(asking, "trust_of", trust_of)
    monkeypatch.setattr(audits, "is_stranger", lambda *_: False)
    return lambda least: probability.__setitem__(0, least)


@pytest.fixture
def audited_swarm(swarm):
    """Everybody holds everything; founders are `trusted`."""

    def make(*names: str, trusted: tuple[str, ...] = (), **changes: Any) -> Any:
        settings = config(**changes.pop("audits", {}))
        everybody = len(names) + len(trusted)
        s = swarm(**{"columns": 1, "audits": settings, "min_workers": everybody, "replicas": 9, **changes})
        s.join(*names)
        for name in trusted:
            s.join(name, trusted=True, owner=f"owner of {name}")
        s.after(1)
        return s

    return make


def worker(s, name: str) -> Any:
    return s.engine.state.workers[WorkerId(name)]


def weights(s) -> dict[str, float]:
    """Of what is being aggregated, as shares of the largest."""
    found = {one.lease_id: one.weight for one in s.waiting_for(AggregateRound).contributions}
    return {lease_id: weight / max(found.values()) for lease_id, weight in found.items()}


def end_round(s) -> None:
    """Of one or two people only what was audited counts, so there may be nothing to publish."""
    if any(isinstance(command, AggregateRound) for command in s.engine.pending):
        s.aggregated()


def replays(s) -> list[str]:
    return [command.lease.lease_id for command in s.engine.pending if isinstance(command, ReplayLease)]


def lease_of(s, name: str, round_: int = 1) -> str:
    """Its own lease of the round, no shadow."""
    found = [r.lease for r in s.leases(name) if r.lease.round == round_ and r.lease.audits is None]
    return str(found[-1].lease_id)


# ---- the draw, and the budget


def test_a_newcomers_leases_are_computed_again_and_their_round_waits(audited_swarm):
    s = audited_swarm("a", "b")
    s.submit("a", "b")
    assert replays(s) == ["r1.1", "r1.2"]
    assert s.phase is not Phase.AGGREGATING
    assert "the coordinator computes it again" in s.reasons()["audit of lease r1.1"]
    s.audited("r1.1")
    assert s.phase is not Phase.AGGREGATING
    s.audited("r1.2", config().tolerance)
    assert len(s.waiting_for(AggregateRound).contributions) == 2
    assert worker(s, "a").audits_passed == worker(s, "b").audits_passed == 1
    assert s.engine.state.accusations == ()


def test_nothing_is_drawn_before_the_last_byte_is_here_and_screened(audited_swarm):
    s = audited_swarm("a", "b")
    s.commit("a")
    s.upload("a")
    s.commit("b")
    assert replays(s) == []
    assert s.engine.state.round.audits_drawn == 0
    s.measured("r1.1", gain=-5.0)
    assert replays(s) == [], "who is refused anyhow costs no audit"


def test_without_a_budget_nobody_is_audited(audited_swarm):
    s = audited_swarm("a", "b", audits={"budget": 0.0})
    s.submit("a", "b")
    assert replays(s) == []
    assert weights(s) == {"r1.1": 1.0, "r1.2": 1.0}


def test_the_round_waits_for_audits_until_its_deadline_and_no_longer(audited_swarm):
    s = audited_swarm("a", "b", "c", round_deadline_s=60.0)
    s.submit("a", "b", "c")
    s.beat("a", "b", "c")
    s.audited("r1.1")
    s.audited("r1.3")
    s.after(70)
    assert weights(s) == {"r1.1": 1.0, "r1.2": 0.5, "r1.3": 1.0}, "what hangs on an audit that has not come is capped"
    assert replays(s) == ["r1.2"], "it is still to come"


@pytest.mark.parametrize("open_run", [False, True])
def test_what_the_budget_does_not_reach_counts_less_or_nowhere(audited_swarm, open_run):
    s = audited_swarm("a", "b", "c", "d", audits={"budget": 2.0}, open_run=open_run)
    s.submit("a", "b", "c", "d")
    paid = replays(s)
    assert 0 < len(paid) < 4
    (note,) = audit_notes(s.engine.state)
    assert note.startswith(f"{4 - len(paid)} of 4 audits drawn could not be paid for this round")
    assert ("nowhere" if open_run else "0.5 of its weight") in note
    for lease_id in paid:
        s.audited(lease_id)
    unpaid = {} if open_run else {f"r1.{number}": 0.5 for number in range(1, 5)}
    assert weights(s) == unpaid | dict.fromkeys(paid, 1.0)
    s.aggregated()
    assert all(record.counted_in == 1 for record in s.engine.state.leases.values())


def test_a_round_of_which_nothing_may_count_publishes_nothing(audited_swarm):
    s = audited_swarm("a", "b", open_run=True)
    s.submit("b", "a")
    s.audited("r1.1", 1.0)
    s.audited("r1.2", 1.0)
    assert s.engine.state.version == 0
    assert s.round == 2


def test_a_budget_below_one_lease_buys_one_every_few_rounds(audited_swarm):
    s = audited_swarm("a", max_rounds=99, quorum=1, audits={"budget": 0.4})
    bought = []
    for number in range(1, 61):
        s.ask("a")
        s.after(1)
        s.submit("a")
        bought.append(len(replays(s)))
        for lease_id in replays(s):
            s.audited(lease_id)
        end_round(s)
        assert s.round == number + 1
    assert set(bought) == {0, 1}
    assert 12 <= sum(bought) <= 0.4 * 60 + 1


def test_the_fast_do_not_use_up_what_audits_there_are(audited_swarm):
    names = ("a", "b", "c", "d")
    s = audited_swarm(*names, max_rounds=99, quorum=4, audits={"budget": 1.0})
    audited = dict.fromkeys(names, 0)
    for _ in range(40):
        s.ask(*names)
        s.after(1)
        s.submit(*names)  # always in this order
        for lease_id in replays(s):
            audited[s.record(lease_id).lease.worker] += 1
            s.audited(lease_id)
        s.aggregated()
    assert min(audited.values()) >= 4
    assert 20 <= sum(audited.values()) <= 41


def test_a_small_budget_looks_at_everybody_before_it_looks_at_most_of_them_again(audited_swarm):
    names = tuple(f"w{number}" for number in range(16))
    s = audited_swarm(*names, max_rounds=99, quorum=16, audits={"budget": 1.0})
    audited = dict.fromkeys(names, 0)
    for _ in range(24):
        s.ask(*names)
        s.after(1)
        s.submit(*names)
        for lease_id in replays(s):
            audited[s.record(lease_id).lease.worker] += 1
            s.audited(lease_id)
        s.aggregated()
    assert min(audited.values()) == 1, "four of them would be left by draws that ask for nothing"
    assert 20 <= sum(audited.values()) <= 25


def test_a_small_budget_goes_to_who_is_in_doubt_first_and_to_founders_last(audited_swarm, monkeypatch):
    """One audit a round, drawn surely: a quarter of it is anybody's, the rest the doubted one's alone."""
    always = Trust(weight=1.0, may_hold=True, audit_probability=1.0)
    for asking in (audits, audit_budget):
        monkeypatch.setattr(asking, "trust_of", lambda *_: always)
    s = audited_swarm("a", "b", "c", trusted=("f",), max_rounds=99, quorum=4, audits={"budget": 1.0})
    s.submit("a", "b", "c", "f")
    s.engine.state.update_worker(worker(s, "a").worker, audits_passed=4)
    s.engine.state.update_worker(worker(s, "b").worker, audits_failed=1)
    for lease_id in replays(s):
        s.audited(lease_id)
    s.aggregated()
    s.ask("a", "b", "c", "f")
    s.after(1)
    s.engine.state.update_round(audit_carried=0.5)
    shares = {name: audit_budget.share_paid(s.engine.state, worker(s, name)) for name in "abcf"}
    assert sum(shares.values()) == pytest.approx(1.5), "all of what there is, and no more"
    even = 0.25 * 1.5 / 4
    assert shares == pytest.approx({"b": even + 0.75, "c": even + 0.375, "a": even, "f": even})
    s.engine.state.update_worker(worker(s, "b").worker, accused=LeaseId("r1.2"))
    assert audit_budget.share_paid(s.engine.state, worker(s, "b")) < 2 * even, "it weighs nothing anyhow"
    s.engine.state.update_worker(worker(s, "a").worker, audits_passed=7)
    assert audit_budget.share_paid(s.engine.state, worker(s, "a")) == pytest.approx(even), "of a turn of its own by now"
    s.engine.state.update_round(audit_carried=3.0)
    assert audit_budget.share_paid(s.engine.state, worker(s, "f")) == 1.0, "a budget that is enough pays for all"


def test_a_small_budget_of_an_open_run_completes_one_record_after_another(audited_swarm):
    """Nobody counts there before its first leases were computed again: two of each in 16 rounds would be no use."""
    names = tuple(f"w{number}" for number in range(8))
    s = audited_swarm(*names, max_rounds=99, quorum=8, open_run=True, audits={"budget": 1.0, "first": 4})
    for _ in range(16):
        s.ask(*names)
        s.after(1)
        s.submit(*names)
        for lease_id in replays(s):
            s.audited(lease_id)
        end_round(s)
    complete = [name for name in names if worker(s, name).audits_passed >= 4]
    assert len(complete) >= 2, "in turns, the first would be complete after 25 rounds"


def test_what_is_left_over_is_kept_for_one_round(audited_swarm, chance):
    chance(0.0)
    s = audited_swarm("a", max_rounds=9, quorum=1, audits={"budget": 4.0})
    for _ in range(3):
        s.ask("a")
        s.submit("a")
        end_round(s)
    assert audit_budget.credit(s.engine.state) == 8.0


def test_draws_are_secret_and_repeatable(swarm, chance):
    """Of a worker that is audited one time in four."""
    chance(0.25)
    first, again, other = (_rounds_drawn(swarm, secret) for secret in (b"s" * 16, b"s" * 16, b"t" * 16))
    assert first == again != other
    assert 4 <= len(first) <= 18
    assert 4 <= len(other) <= 18


def test_audits_look_twice_as_often_while_gains_are_noise(audited_swarm, chance):
    """A gain of 0.05 to the third is a measure, under it none; the same draws, held against another limit."""
    chance(0.25)
    names = [f"w{number}" for number in range(40)]

    def drawn(se: float) -> set[str]:
        s = audited_swarm(*names, audits={"budget": 999.0})
        s.submit(*names, se=se)
        return {record.lease.worker for record in s.engine.state.leases.values() if record.audit_due}

    clear, noise = drawn(0.05 / 3.1), drawn(0.05 / 2.9)
    assert clear < noise
    assert 4 <= len(clear) <= 16
    assert 12 <= len(noise) <= 28


def _rounds_drawn(swarm, secret: bytes) -> list[int]:
    s = swarm(columns=1, quorum=1, max_rounds=60, audits=config(budget=99.0))
    s.engine = Engine.create(s.created, secret)[0]
    s.engine.due(0.0)
    s.join("a")
    for _ in range(40):
        s.ask("a")
        s.submit("a")
        end_round(s)
    return [command.lease.round for command in s.log if isinstance(command, ReplayLease)]


# ---- what an auditor finds


def test_one_auditor_alone_decides_nothing_but_the_submissions_fate(audited_swarm, pick):
    s = audited_swarm("a", "b", "c")
    s.submit("a", "b", "c")
    told = pick(AnnounceVerdict, s.audited("r1.1", 0.5))
    assert [(one.worker, one.accepted) for one in told] == [("a", False)]
    assert "0.5" not in told[0].reason
    assert "0.02" not in told[0].reason
    s.audited("r1.2")
    s.audited("r1.3")
    assert [one.lease_id for one in s.waiting_for(AggregateRound).contributions] == ["r1.2", "r1.3"]
    assert worker(s, "a").ban is None
    assert worker(s, "a").accused == "r1.1"
    (case,) = s.engine.state.accusations
    assert (case.outcome, case.accusers) == (AuditOutcome.UNDECIDED, ("",))
    (note,) = audit_notes(s.engine.state)
    assert "a's r1.1 could not be reproduced by the coordinator" in note
    assert "barnraise coordinator ban a" in note
    s.aggregated()
    assert s.round == 2
    s.engine.state.accusations += tuple(
        dataclasses.replace(case, lease_id=LeaseId(f"r{n}.1"), round=RoundNumber(n)) for n in (2, 3)
    )
    (note,) = audit_notes(s.engine.state)
    assert note.startswith("round 3: a's r3.1, and 2 of its leases before that, could not be reproduced")


def test_a_second_opinion_comes_from_a_trusted_worker_that_does_not_know(audited_swarm, pick):
    s = audited_swarm("a", "b", trusted=("t",))
    s.submit("a", "b", "t")
    s.ask("t")
    (granted,) = pick(GrantLease, s.audited("r1.1", 0.5))
    shadow, audited = granted.lease, s.record("r1.1").lease
    assert (shadow.worker, shadow.audits, audited.audits) == ("t", "r1.1", None)
    same = [field.name for field in dataclasses.fields(Lease) if field.name not in {"lease_id", "round"}]
    assert [getattr(shadow, name) for name in same] == [getattr(audited, name) for name in same]
    s.audited("r1.2")
    assert s.phase is Phase.AGGREGATING, "a second opinion holds nobody up: it is out of this round already"
    s.send("t")
    assert isinstance(s.engine.pending[-1], CompareSubmissions)
    s.compared("t", 0.5)
    ban = worker(s, "a").ban
    assert ban is not None
    assert ban.by == "engine"
    assert worker(s, "a").audits_failed == 1
    assert s.engine.state.accusations[0].outcome is AuditOutcome.CONFIRMED
    s.aggregated()
    s.ask("a")
    assert lease_of(s, "a") == "r1.1", "no lease for a banned key"


def test_an_auditor_that_is_banned_meanwhile_is_not_heard_and_another_is_asked(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t", "u"))
    s.submit("a", "b", "t")
    s.ask("t")
    s.audited("r1.1", 0.5)
    s.send("t")
    (comparing,) = [one for one in s.engine.pending if isinstance(one, CompareSubmissions)]
    s.handle(ev.WorkerBanned(at_s=s.now_s, worker=WorkerId("t"), by="operator", why=""))
    assert not s.engine.is_pending(comparing.command_id), "its bytes are gone: it could be tried for ever"
    assert worker(s, "a").ban is None
    s.submit("u")
    s.ask("u")
    given = [one.lease for one in s.engine.state.leases.values() if one.lease.audits == "r1.1"]
    assert [one.worker for one in given] == ["t", "u"]


def test_the_auditor_answers_with_the_very_same_bytes(audited_swarm, pick):
    """An honest replay of an honest lease: no duplicate, and what one of them rests on is not thrown away."""
    s = audited_swarm("a", "b", trusted=("t", "u"))
    s.submit("a", "b", "t")
    s.ask("t")
    s.audited("r1.1", 0.5)
    found = s.commit("t", digest=s.digest("r1.1")) + s.upload("t", digest=s.digest("r1.1"))
    assert pick(AnnounceVerdict, found) == []
    found = s.compared("t")
    assert s.digest("r1.1") not in [one.digest for one in pick(DropPayload, found)], "a third opinion needs it"
    assert s.leases("t")[-1].status is LeaseStatus.ACCEPTED
    assert worker(s, "t").accepted == 2
    assert worker(s, "a").ban is None


def test_two_that_disagree_are_settled_by_a_third_and_the_false_one_pays_then(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t", "u"), audits={"by_coordinator": False})
    s.enrol("v", trusted=True, owner="owner of v")
    s.submit("a", "b", "t", "u")
    s.ask("t")
    assert s.lease("t").audits == "r1.1"
    s.send("t")
    s.compared("t", 0.9)
    assert worker(s, "t").false_accusations == 0
    s.ask("u")
    assert s.lease("u").audits == "r1.1", "the second opinion; r1.2 waits"
    s.send("u")
    s.compared("u", 0.0)
    assert worker(s, "t").false_accusations == 0, "one word against another"
    s.ask("v")
    assert s.lease("v").audits == "r1.1"
    s.send("v")
    s.compared("v", 0.0)
    assert worker(s, "t").false_accusations == 1
    assert worker(s, "a").ban is None
    assert worker(s, "a").audits_passed == 1
    assert s.engine.state.accusations[0].outcome is AuditOutcome.CLEARED


def test_machines_of_one_owner_are_one_auditor_and_nobody_audits_its_own(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), audits={"by_coordinator": False}, max_rounds=9)
    s.enrol("t2", trusted=True, owner="owner of t")
    s.enrol("u", owner="owner of t")
    s.submit("a", "b", "t")
    s.ask("t")
    shadow = s.lease("t")
    s.send("t")
    s.compared("t", 0.9)
    audited = s.record(str(shadow.audits))
    assert audited.status is LeaseStatus.REJECTED
    assert not audited.audit_due, "nobody else is left: it is the operator's"
    assert worker(s, "a").ban is None
    people = audits.asked(s.engine.state, audited)
    assert not audits.may_audit(s.config.audits, worker(s, "t2"), audited, people)
    own = audits.asked(s.engine.state, s.record(lease_of(s, "t")))
    assert not audits.may_audit(s.config.audits, worker(s, "t2"), audited, own)


def test_audits_that_were_not_certain_find_what_has_counted_already(audited_swarm, chance):
    chance(1.0 - 1e-9)
    s = audited_swarm("a", "b", trusted=("t",))
    s.submit("a", "b", "t")
    assert len(replays(s)) == 2
    assert len(s.waiting_for(AggregateRound).contributions) == 3, "chance draws hold nobody up"
    s.aggregated()
    dropped = [one.digest for one in s.log if isinstance(one, DropPayload)]
    assert dropped == [s.digest("r1.3")], "the others' bytes stay for the audit"
    s.ask("t")
    s.audited("r1.1", 0.5)
    assert s.record("r1.1").status is LeaseStatus.ACCEPTED, "its round is over"
    assert s.record("r1.1").audit_due


# ---- who never answers, and what is kept how long


def test_an_auditor_that_never_answers_holds_up_nobody_for_longer_than_its_lease(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), audits={"by_coordinator": False}, max_rounds=9)
    s.submit("a", "b", "t")
    s.ask("t")
    shadow = s.lease("t")
    assert shadow.audits == "r1.1"
    before = worker(s, "t")
    for _ in range(40):
        if s.phase is Phase.AGGREGATING:
            break
        s.beat("a", "b", "t")
        s.after(5)
    assert s.now_s < shadow.deadline_s + 6, "its next one is not waited for"
    assert s.record(shadow.lease_id).status is LeaseStatus.EXPIRED
    assert sorted(weights(s).values()) == [0.5, 0.5, 1.0]
    after = worker(s, "t")
    assert (after.leases_expired, after.cooling_until_s) == (before.leases_expired, before.cooling_until_s)
    assert s.engine.state.totals.leases_expired == 0


def test_a_shadow_takes_no_seat_and_is_waited_for_as_an_audit_alone(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=9)
    s.submit("a", "b", "t")
    s.ask("t")
    tally = s.engine.state.index.tally
    before = (list(tally.leased), dict(tally.holders), tally.awaited)
    s.audited("r1.1", 0.5)
    assert s.lease("t").audits == "r1.1"
    gone = (list(tally.leased), dict(tally.holders), tally.awaited)
    assert gone[0] == before[0]
    assert gone[2] == before[2] == 0
    assert gone[1]["t"] == before[1]["t"] == 1
    s.send("t")
    assert s.engine.state.index.measuring == 0


def test_bytes_and_base_are_kept_as_long_as_an_audit_may_come_and_not_longer(audited_swarm, pick):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=12, audits={"keep_rounds": 4}, round_deadline_s=30.0)
    s.submit("a", "b", "t")
    s.audited("r1.1", 0.5)  # the second opinion is t's, which is away
    s.audited("r1.2")
    s.validated()
    s.aggregated()
    kept = []
    for _ in range(6):
        state = s.engine.state
        kept.append(("r1.1" in needed_by(state).payloads, oldest_version_needed(state) == 0))
        s.ask("a", "b")
        s.after(1)
        s.submit("b")
        for lease_id in replays(s):
            s.audited(lease_id)
        s.beat("a", "b")
        s.after(31)
        s.aggregated()
    assert kept == [(True, True)] * 4 + [(False, False)] * 2
    assert s.digest("r1.1") in [one.digest for one in s.log if isinstance(one, DropPayload)]
    assert s.engine.state.accusations[0].outcome is AuditOutcome.UNDECIDED


def test_one_that_has_waited_long_goes_before_a_lease_of_ones_own(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=9, audits={"by_coordinator": False, "wait_s": 20.0})
    s.submit("a", "b", "t")
    s.beat("a", "b", "t")
    s.after(21)
    assert s.phase is Phase.AGGREGATING, "nobody took it, and it is waited for no more"
    s.aggregated()
    s.ask("a", "b", "t")
    assert s.lease("t").audits == "r1.1"


def test_a_coordinator_that_cannot_replay_leaves_it_to_others(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=9)
    s.submit("a", "b", "t")
    for _ in range(3):
        s.failed("replay:r1.1", "no way to compute leases again", ev.CommandTrouble.CONTENT)
    assert replays(s) == ["r1.2"]
    s.ask("t")
    assert s.lease("t").audits == "r1.1"


def test_an_answer_that_is_none_is_held_against_the_auditor_alone(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=9, audits={"by_coordinator": False})
    s.submit("a", "b", "t")
    s.ask("t")
    s.send("t")
    s.compared("t", error="not finite")
    assert s.leases("t")[-1].status is LeaseStatus.REJECTED
    assert worker(s, "t").rejected == {"malformed": 1}
    assert s.record("r1.1").audits == ()
    assert worker(s, "a").audits_failed == 0


# ---- repeated, late and nonsensical


def test_results_that_nobody_waits_for_change_nothing(audited_swarm):
    s = audited_swarm("a", "b")
    s.submit("a", "b")
    s.audited("r1.1")
    for again in (lambda: s.audited("r1.1", 0.9), lambda: s.audited("r9.9")):
        with pytest.raises(IllegalEvent, match="not a pending audit"):
            again()
    with pytest.raises(IllegalEvent, match="is about"):
        s.handle(
            ev.LeaseReplayed(at_s=s.now_s, command_id="replay:r1.2", lease_id=LeaseId("r1.1"), auditor=WorkerId("b"))
        )
    with pytest.raises(IllegalEvent, match="not a pending audit"):
        s.handle(ev.LeaseReplayed(at_s=s.now_s, command_id="measure:r1.2", lease_id=LeaseId("r1.2"), auditor=None))


def test_a_restart_in_the_middle_goes_on_with_every_audit(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",), max_rounds=9)
    s.submit("a", "b", "t")
    s.ask("t")
    s.audited("r1.1", 0.5)
    s.send("t")
    again = s.replayed()
    assert again.snapshot() == s.engine.snapshot()
    restored = Engine.restore(again.snapshot(), s.secret)
    assert [one.command_id for one in restored.pending] == [one.command_id for one in s.engine.pending]
    s.engine = restored
    s.compared("t", 0.5)
    assert worker(s, "a").ban is not None


def test_the_end_of_a_run_ends_its_audits(audited_swarm):
    s = audited_swarm("a", "b", trusted=("t",))
    s.submit("a", "b", "t")
    s.ask("t")
    s.audited("r1.1", 0.5)
    s.send("t")
    s.stop()
    assert not any(isinstance(one, ReplayLease | CompareSubmissions) for one in s.engine.pending)
    s.do_slow_work()
    assert s.phase is Phase.OVER
    assert needed_by(s.engine.state).payloads == {}


@pytest.mark.parametrize(
    "changes",
    [{"budget": -1.0}, {"least_probability": 1.5}, {"tolerance": 0.0}, {"unpaid_weight": 2.0}, {"keep_rounds": 0}],
)
def test_settings_that_make_no_sense_are_refused(swarm, changes):
    with pytest.raises(ConfigError, match=f"audits.{next(iter(changes))}"):
        check_config(dataclasses.replace(swarm().config, audits=dataclasses.replace(AuditConfig(), **changes)))


# ---- contradicted while a version is being made of it


def contradicted_while_aggregating(audited_swarm):
    """Draws are not certain, so the round does not wait: the answer comes when the outer step is under way."""
    s = audited_swarm("a", "b", "c")
    s.submit("a", "b", "c")
    for lease_id in replays(s)[:2]:
        s.audited(lease_id)
    s.at(s.engine.state.config.round_deadline_s + s.now_s)
    s.tick()
    assert s.phase is Phase.AGGREGATING
    before = [one.lease_id for one in s.waiting_for(AggregateRound).contributions]
    s.audited("r1.3", 1.0)
    assert "r1.3" in before
    return s


def test_whom_an_auditor_contradicts_is_in_no_further_attempt(audited_swarm):
    s = contradicted_while_aggregating(audited_swarm)
    assert "r1.3" in [one.lease_id for one in s.waiting_for(AggregateRound).contributions]  # it had begun
    for _ in range(3):
        s.failed("aggregate:r1", "0 / 0", ev.CommandTrouble.CONTENT)
    s.tried()
    again = s.waiting_for(AggregateRound)
    assert [one.lease_id for one in again.contributions] == ["r1.1", "r1.2"]
    assert s.record("r1.3").verdict.key == "audit_failed"
    s.aggregated()
    assert [one.lease_id for one in s.engine.state.history[-1].left_out] == ["r1.3"]
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_nor_in_one_without_the_harmful(audited_swarm):
    s = contradicted_while_aggregating(audited_swarm)
    s.aggregated(gain=-5.0)
    s.harm_found("r1.2")
    assert [one.lease_id for one in s.waiting_for(AggregateRound).contributions] == ["r1.1"]
    assert s.record("r1.3").verdict.key == "audit_failed"
