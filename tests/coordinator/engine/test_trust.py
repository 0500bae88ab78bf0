"""Trust is a pure function of a worker's record and the configuration, and everybody asks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine import contributions
from coordinator.engine import reasons as r
from coordinator.engine.config import EngineConfig
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import BLAMED_KEYS, Case, Verdict, rejected
from coordinator.engine.rows import Quarantine, WorkerRecord
from coordinator.engine.trust import Trust, is_served, quarantine_after, refused_in_row, trust_of
from protocol.ids import RoundNumber, RunId, WorkerId

CONFIG = EngineConfig(run_id=RunId("run"), columns=4, train_sequences=10_000, max_rounds=9)
ALL_KEYS = sorted({*BLAMED_KEYS, r.LATE, r.INCOMPLETE, r.UNMEASURABLE, r.UNUSABLE})
keys, rounds = st.sampled_from(ALL_KEYS), st.integers(1, 10_000).map(RoundNumber)
times, counts = st.floats(0.0, 1e9), st.integers(0, 50)


def verdict(key: str) -> Verdict:
    return rejected(key, Case.SAME_BYTES)


ASIDE = Quarantine(until_round=RoundNumber(9), until_s=900.0, why=verdict(r.MALFORMED).why)
configs = st.builds(
    replace,
    st.just(CONFIG),
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
    rejected_in_row=counts,
    quarantine=st.sampled_from([None, ASIDE]),
    leases_granted=counts,
    leases_expired=counts,
    leases_returned=counts,
    accepted=counts,
    rejected=st.dictionaries(keys, counts, max_size=3),
)


@given(config=configs, record=records)
def test_trust_is_bounded_and_today_follows_from_quarantine_alone(config: EngineConfig, record: WorkerRecord) -> None:
    found = trust_of(config, record)
    assert found == trust_of(config, record)
    assert 0.0 <= found.weight <= 1.0
    assert 0.0 <= found.audit_probability <= 1.0
    assert (found.weight, found.may_hold) == (1.0, record.quarantine is None)


@given(record=records, expired=counts, returned=counts, late=counts)
def test_dropping_out_takes_no_trust_away(record: WorkerRecord, expired: int, returned: int, late: int) -> None:
    lost = replace(
        record,
        leases_expired=record.leases_expired + expired,
        leases_returned=record.leases_returned + returned,
        rejected={**record.rejected, r.LATE: late},
        present=False,
    )
    assert trust_of(CONFIG, lost) == trust_of(CONFIG, record)


@given(config=configs, record=records, key=keys, round_=rounds, now_s=times)
def test_only_blamed_refusals_in_a_row_set_a_worker_aside(
    config: EngineConfig, record: WorkerRecord, key: str, round_: RoundNumber, now_s: float
) -> None:
    in_row = refused_in_row(record, verdict(key))
    assert in_row == record.rejected_in_row + (1 if key in BLAMED_KEYS else 0)
    aside = quarantine_after(config, in_row, verdict(key), round_=round_, now_s=now_s)
    assert (aside is not None) == (key in BLAMED_KEYS and in_row >= config.quarantine_after)
    more = quarantine_after(config, in_row + 1, verdict(key), round_=round_, now_s=now_s)
    assert aside is None or more is not None
    if aside is not None:
        assert aside.why.case is Case.SET_ASIDE
        assert not is_served(aside, round_=round_, now_s=now_s)
        assert not is_served(aside, round_=RoundNumber(round_ + config.quarantine_rounds), now_s=now_s)
        assert is_served(aside, round_=RoundNumber(round_ + config.quarantine_rounds + 1), now_s=now_s)
        assert is_served(aside, round_=round_, now_s=now_s + config.quarantine_s)


@given(round_=rounds, now_s=times, later=st.integers(0, 100), longer_s=st.floats(0.0, 1e6))
def test_a_quarantine_that_is_over_stays_over(round_: RoundNumber, now_s: float, later: int, longer_s: float) -> None:
    if is_served(ASIDE, round_=round_, now_s=now_s):
        assert is_served(ASIDE, round_=RoundNumber(round_ + later), now_s=now_s + longer_s)


def test_a_submission_weighs_what_its_worker_is_trusted_with(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = swarm(max_rounds=2)
    s.join("a", "b", "c")
    s.submit("a", "b")
    state = s.engine.state
    accepted = [record for record in state.leases_of_round() if record.status is LeaseStatus.ACCEPTED]
    plain = contributions.contributions_of(state, accepted)
    less = accepted[0].lease.worker

    def half(_config: EngineConfig, record: WorkerRecord) -> Trust:
        return Trust(weight=0.5 if record.worker == less else 1.0, may_hold=True, audit_probability=0.0)

    monkeypatch.setattr(contributions, "trust_of", half)
    weighed = contributions.contributions_of(state, accepted)
    assert [one.weight for one in weighed] == [plain[0].weight / 2, *(one.weight for one in plain[1:])]


def test_nobody_decides_by_a_quarantine_but_trust() -> None:
    """Others move it, show it and index its end; whether it keeps a worker from a lease is asked here."""
    engine = Path(contributions.__file__).parent
    deciding = [path.name for path in engine.glob("*.py") if "record.quarantine is" in path.read_text()]
    assert deciding == ["trust.py"]
