"""Trust is a pure function of a worker's record and the configuration, and everybody asks it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine import contributions
from coordinator.engine import reasons as r
from coordinator.engine.config import AuditConfig, EngineConfig, check_config
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import BLAMED_KEYS, Case, Verdict, accepted, reason, rejected
from coordinator.engine.rows import Ban, Quarantine, WorkerRecord
from coordinator.engine.trust import (
    Trust,
    after_verdict,
    after_withdrawal,
    is_served,
    may_audit,
    quarantine_after,
    trust_of,
)
from coordinator.engine.trust_config import ReputationConfig
from protocol.errors import ConfigError
from protocol.ids import LeaseId, RoundNumber, RunId, WorkerId

CONFIG = EngineConfig(run_id=RunId("run"), columns=4, train_sequences=10_000, max_rounds=9)
AUDITED = replace(CONFIG, audits=AuditConfig(budget=1.0))
OPEN = replace(AUDITED, open_run=True)
ALL_KEYS = sorted({*BLAMED_KEYS, r.LATE, r.INCOMPLETE, r.UNMEASURABLE, r.UNUSABLE, r.BANNED})
keys, rounds = st.sampled_from(ALL_KEYS), st.integers(1, 10_000).map(RoundNumber)
times, counts = st.floats(0.0, 1e9), st.integers(0, 50)
GOOD = accepted(Case.UNSCREENED)


def verdict(key: str) -> Verdict:
    return rejected(key, Case.SAME_BYTES)


ASIDE = Quarantine(until_round=RoundNumber(9), until_s=900.0, why=verdict(r.MALFORMED).why, weight=0.75)
BAN = Ban(at_s=1.0, by="engine", why=reason(Case.BANNED))
configs = st.builds(
    replace,
    st.just(CONFIG),
    open_run=st.booleans(),
    audits=st.sampled_from([AuditConfig(), AuditConfig(budget=2.0)]),
    quarantine_after=st.integers(1, 20),
    quarantine_rounds=st.integers(1, 50),
    quarantine_s=st.floats(1.0, 1e6),
)
records = st.builds(
    WorkerRecord,
    worker=st.just(WorkerId("w")),
    name=st.text(max_size=4),
    trusted=st.booleans(),
    max_columns=st.integers(0, 8),
    tokens_per_s=st.floats(0.0, 1e6),
    heard_at_s=times,
    present=st.booleans(),
    cooling_until_s=times,
    judged_lately=st.floats(0.0, 20.0),
    refused_lately=st.floats(0.0, 20.0),
    quarantine=st.sampled_from([None, None, ASIDE]),
    quarantines=st.integers(0, 9),
    probation_left=st.integers(0, 3),
    valid_in_row=counts,
    audits_passed=counts,
    audits_failed=st.integers(0, 2),
    accused=st.sampled_from([None, None, LeaseId("r1.1")]),
    ban=st.sampled_from([None, None, BAN]),
    leases_granted=counts,
    leases_expired=counts,
    leases_returned=counts,
    accepted=counts,
    rejected=st.dictionaries(keys, counts, max_size=3),
)
NEW = WorkerRecord(
    worker=WorkerId("w"), name="w", trusted=False, max_columns=0, tokens_per_s=0.0, heard_at_s=0.0
)  # fmt: skip


@given(config=configs, record=records)
def test_trust_is_bounded_and_says_who_may_hold_and_weigh(config: EngineConfig, record: WorkerRecord) -> None:
    found = trust_of(config, record)
    assert found == trust_of(config, record)
    assert 0.0 <= found.weight <= 1.0
    assert 0.0 <= found.audit_probability <= 1.0
    assert found.may_hold == (record.quarantine is None and record.ban is None)
    if record.ban is not None:
        assert found == Trust(weight=0.0, may_hold=False, audit_probability=0.0)
    elif record.quarantine is not None:
        assert found.weight == ASIDE.weight
    elif record.accused is not None or record.probation_left:
        assert found.weight == 0.0
    if config.audits.budget == 0:
        assert found.audit_probability == 0.0
    elif record.ban is None:
        assert found.audit_probability >= config.audits.least_probability


@given(config=configs, record=records, expired=counts, returned=counts, late=counts)
def test_dropping_out_takes_no_trust_away(
    config: EngineConfig, record: WorkerRecord, expired: int, returned: int, late: int
) -> None:
    lost = replace(
        record,
        leases_expired=record.leases_expired + expired,
        leases_returned=record.leases_returned + returned,
        rejected={**record.rejected, r.LATE: late},
        present=False,
    )
    assert trust_of(config, lost) == trust_of(config, record)
    for key in (r.LATE, r.INCOMPLETE, r.UNMEASURABLE, r.UNUSABLE, r.BANNED):
        assert after_verdict(config, record, verdict(key)) == {}


@given(config=configs, record=records)
def test_slowly_up_and_fast_down(config: EngineConfig, record: WorkerRecord) -> None:
    record = replace(record, quarantine=None, ban=None, accused=None, probation_left=0)
    before = trust_of(config, record)
    up = trust_of(config, replace(record, **after_verdict(config, record, GOOD)))
    assert before.weight <= up.weight <= before.weight + 0.05 + 1e-12
    down = replace(record, **after_verdict(config, record, verdict(r.MALFORMED)))
    assert trust_of(config, down).weight <= before.weight
    if not record.trusted:
        assert trust_of(config, down).weight <= config.reputation.first_weight
        assert trust_of(config, down).audit_probability == (1.0 if config.audits.budget else 0.0)


def test_a_newcomer_to_a_closed_run_rises_from_half() -> None:
    weights = [trust_of(CONFIG, replace(NEW, valid_in_row=valid)).weight for valid in (0, 5, 10, 99)]
    assert weights == [0.5, 0.75, 1.0, 1.0]
    assert trust_of(CONFIG, replace(NEW, trusted=True)).weight == 1.0


def test_a_newcomer_to_an_open_run_weighs_nothing_until_audits_vouch_for_it() -> None:
    for passed, weight in ((0, 0.0), (2, 0.0), (3, 1.0)):
        assert trust_of(OPEN, replace(NEW, valid_in_row=50, audits_passed=passed)).weight == weight
    assert trust_of(OPEN, replace(NEW, trusted=True)).weight == 1.0
    # where nothing is audited nobody could ever be vouched for
    assert trust_of(replace(OPEN, audits=AuditConfig()), NEW).weight == 0.5


@pytest.mark.parametrize(
    ("changes", "probability"),
    [
        ({}, 1.0),
        ({"audits_passed": 9, "valid_in_row": 30}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 4}, 0.25),
        ({"audits_passed": 10, "valid_in_row": 0}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 400}, 0.05),
        ({"trusted": True}, 0.05),
        ({"trusted": True, "accused": LeaseId("r1.1")}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 400, "probation_left": 1}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 400, "audits_failed": 1}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 400, "refused_lately": 1.9, "judged_lately": 9.0}, 1.0),
        ({"audits_passed": 10, "valid_in_row": 400, "refused_lately": 1.9, "judged_lately": 19.0}, 0.05),
    ],
)
def test_how_likely_an_audit_is(changes: dict[str, Any], probability: float) -> None:
    record = replace(NEW, **changes)
    assert trust_of(AUDITED, record).audit_probability == probability
    assert trust_of(CONFIG, record).audit_probability == 0.0


def test_only_founders_with_a_clean_record_audit() -> None:
    founder = replace(NEW, trusted=True)
    assert may_audit(founder)
    assert not may_audit(NEW)
    for mark in ({"ban": BAN}, {"quarantine": ASIDE}, {"accused": LeaseId("r1.1")}, {"probation_left": 1}):
        assert not may_audit(replace(founder, **mark))


# ---- quarantine by share


def judged(config: EngineConfig, record: WorkerRecord, key: str) -> WorkerRecord:
    """What one more verdict makes of a record, quarantine included; `key` empty: accepted."""
    after = replace(record, **after_verdict(config, record, verdict(key) if key else GOOD))
    if key not in BLAMED_KEYS:
        return after
    aside = quarantine_after(config, after, key, round_=RoundNumber(1), now_s=0.0, weight=1.0)
    return replace(after, quarantine=aside, quarantines=after.quarantines + (aside is not None))


def set_aside_at(pattern: str, *, times: int) -> int | None:
    """After how many submissions of a pattern of Lies and Truths a worker is set aside."""
    record = NEW
    for count, what in enumerate(pattern * times, start=1):
        record = judged(CONFIG, record, r.HELDOUT_LOSS_ROSE if what == "L" else "")
        if record.quarantine is not None:
            return count
    return None


@pytest.mark.parametrize(
    ("pattern", "after"), [("L", 3), ("LLT", 4), ("LT", 5), ("TTLL", 7), ("LTT", 7), ("LTTTT", None), ("T", None)]
)
def test_a_share_is_counted_and_no_streak(pattern: str, after: int | None) -> None:
    assert set_aside_at(pattern, times=300) == after


@pytest.mark.parametrize(("rate", "most"), [(0.01, 2), (0.02, 7)])
def test_honest_workers_are_practically_never_set_aside(rate: float, most: int) -> None:
    """Of 5,000 honest workers, each twentieth with 300 submissions, the others with thirty.

    Expected: 0.4 at 1 %, 3 at 2 %, all in their first nine; `make soak` has twenty thousand.
    """
    assert set_aside_of(5_000, rate) <= most


@pytest.mark.soak
@pytest.mark.parametrize(("rate", "most"), [(0.01, 4), (0.02, 20)])
def test_twenty_thousand_honest_workers(rate: float, most: int) -> None:
    """Expected: 1.5 at 1 %, 12 at 2 %."""
    assert set_aside_of(20_000, rate) <= most


def set_aside_of(workers: int, rate: float) -> int:
    """How many of so many honest workers are set aside, of whose submissions a share of `rate` is refused."""
    chance, aside = random.Random(17), 0
    for worker in range(workers):
        record = NEW
        for number in range(30 if worker % 20 else 300):
            if chance.random() < rate:
                record = judged(CONFIG, record, r.HELDOUT_GAIN_TOO_SMALL)
                if record.quarantine is not None:
                    aside += 1
                    assert number < 20
                    break
            else:
                record = judged(CONFIG, record, "")
    return aside


@given(config=configs, record=records, key=keys, round_=rounds, now_s=times)
def test_each_quarantine_lasts_twice_as_long(
    config: EngineConfig, record: WorkerRecord, key: str, round_: RoundNumber, now_s: float
) -> None:
    record = replace(record, refused_lately=20.0, judged_lately=20.0)
    aside = quarantine_after(config, record, key, round_=round_, now_s=now_s, weight=0.5)
    assert aside is not None
    lasts = config.quarantine_rounds * 2 ** min(record.quarantines, config.reputation.most_doublings)
    assert (aside.why.case, aside.weight, aside.until_round) == (Case.SHARE_REFUSED, 0.5, round_ + lasts + 1)
    assert not is_served(aside, round_=RoundNumber(round_ + lasts), now_s=now_s)
    assert is_served(aside, round_=RoundNumber(round_ + lasts + 1), now_s=now_s)
    assert is_served(aside, round_=round_, now_s=aside.until_s)


def test_an_acceptance_that_does_not_stand_is_no_valid_submission() -> None:
    before = replace(NEW, valid_in_row=4, judged_lately=4.0)
    after = replace(before, **after_verdict(CONFIG, before, GOOD))
    withdrawn = replace(after, **after_withdrawal(after))
    assert (after.valid_in_row, withdrawn.valid_in_row) == (5, 4)
    assert withdrawn.judged_lately == pytest.approx(4.0 * 0.95)


@given(round_=rounds, now_s=times, later=st.integers(0, 100), longer_s=st.floats(0.0, 1e6))
def test_a_quarantine_that_is_over_stays_over(round_: RoundNumber, now_s: float, later: int, longer_s: float) -> None:
    if is_served(ASIDE, round_=round_, now_s=now_s):
        assert is_served(ASIDE, round_=RoundNumber(round_ + later), now_s=now_s + longer_s)


def test_a_liar_comes_back_on_probation_and_goes_for_longer(swarm: Any) -> None:
    s = swarm(max_rounds=60, quarantine_rounds=2)
    s.join("a", "b", "x")
    seen: list[tuple[bool, int, float]] = []
    for _ in range(12):
        s.after(5)
        s.submit("a", "b")
        if s.engine.state.open_lease_of(WorkerId("x")) is not None:
            s.submit("x", gain=-1.0)
        record = s.engine.state.workers[WorkerId("x")]
        seen.append((record.quarantine is not None, record.quarantines, trust_of(s.config, record).weight))
        s.ask("a", "b", "x")
        s.aggregated()
    # rounds 1-3 lying, 4-5 aside, 6 back and lying at once, 7-10 aside (twice as long), 11 back and lying again
    assert [aside for aside, _, _ in seen] == [False, False, *[True] * 10]
    assert [number for _, number, _ in seen] == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert seen[5][2] == 0.0  # what it had accepted when it was set aside for the second time weighs what it weighed


def test_probation_ends_with_valid_work(swarm: Any) -> None:
    s = swarm(max_rounds=60, quarantine_rounds=1)
    s.join("a", "b", "x")
    weights: list[float] = []
    for gain in (-1.0, -1.0, -1.0, None, 0.05, 0.05, 0.05, 0.05):
        s.after(5)
        s.submit("a", "b")
        if gain is not None:
            s.submit("x", gain=gain)
        weights.append(trust_of(s.config, s.engine.state.workers[WorkerId("x")]).weight)
        s.ask("a", "b", "x")
        s.aggregated()
    assert weights == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.65, 0.7]


def test_a_submission_weighs_what_its_worker_is_trusted_with(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = swarm(max_rounds=2)
    s.join("a", "b", "c")
    s.submit("a", "b")
    state = s.engine.state
    found = [record for record in state.leases_of_round() if record.status is LeaseStatus.ACCEPTED]
    plain = contributions.contributions_of(state, found)
    less, known = found[0].lease.worker, trust_of

    def half(config: EngineConfig, record: WorkerRecord) -> Trust:
        trust = known(config, record)
        return replace(trust, weight=trust.weight / 2) if record.worker == less else trust

    monkeypatch.setattr(contributions, "trust_of", half)
    weighed = contributions.contributions_of(state, found)
    assert [one.weight for one in weighed] == [plain[0].weight / 2, *(one.weight for one in plain[1:])]


def test_founders_have_twice_the_weight_of_newcomers(swarm: Any) -> None:
    s = swarm(max_rounds=2)
    s.join("a", trusted=True)
    s.join("b", "c")
    s.submit("a", "b", "c")
    weights = {s.record(c.lease_id).lease.worker: c.weight for c in s.contributions()}
    assert weights["a"] == pytest.approx(weights["b"] / 0.55)
    assert weights["b"] == weights["c"]


def test_fresh_sybils_of_an_open_run_count_nothing(swarm: Any) -> None:
    s = swarm(max_rounds=2, open_run=True, audits=AuditConfig(budget=1.0))
    s.join("a", trusted=True)
    s.join("x", "y")
    s.submit("a", "x", "y")
    s.answer_audits()
    assert [s.record(c.lease_id).lease.worker for c in s.contributions()] == ["a"]
    shadow = s.leases("x")[0]
    assert (shadow.status, shadow.counted_in) == (LeaseStatus.ACCEPTED, 1)
    assert "weighs nothing: its worker is on probation" in shadow.end_reason


def test_a_round_of_nobody_with_weight_publishes_nothing(swarm: Any) -> None:
    s = swarm(max_rounds=2, open_run=True, audits=AuditConfig(budget=1.0))
    s.join("x", "y", "z")
    s.submit("x", "y", "z")
    s.answer_audits()
    assert (s.round, s.engine.state.version) == (2, 0)


@pytest.mark.parametrize(
    "changes",
    [{"first_weight": 0.0}, {"full_after": 0}, {"memory": 1.0}, {"quarantine_share": 0.0}, {"most_doublings": 99}],
)
def test_a_reputation_that_could_not_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"reputation.{next(iter(changes))}"):
        check_config(replace(CONFIG, reputation=ReputationConfig(**changes)))


def test_nobody_decides_by_a_quarantine_but_trust() -> None:
    """Others move it, show it and index its end; whether it keeps a worker from a lease is asked here."""
    engine = Path(contributions.__file__).parent
    deciding = [path.name for path in engine.glob("*.py") if "record.quarantine is" in path.read_text()]
    assert deciding == ["trust.py"]
