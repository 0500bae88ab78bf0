"""The heap of moments against a plain dictionary; sorted medians against `statistics`."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median, median_high, median_low
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.events import BlockNorm
from coordinator.engine.medians import MIN_PERSONS, Middle, medians_of
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord, SeenNorm, SpeedReport, UploadReport, WorkerRecord
from coordinator.engine.screening import remember
from coordinator.engine.speeds import Speeds, overhead_s, step_s, upload_s
from coordinator.engine.tally import RoundTally, Voice
from coordinator.engine.timetable import Timetable
from protocol.ids import TRUNK, WorkerId, column_block

quick = settings(max_examples=60, deadline=None, derandomize=True)
moments = st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0])


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), moments)), max_size=60), moments)
def test_a_timetable_is_a_dictionary_with_an_earliest_entry(changes, now_s):
    table: Timetable[int] = Timetable()
    plain: dict[int, float] = {}
    for key, moment_s in changes:
        if moment_s is None:
            table.discard(key)
            plain.pop(key, None)
        else:
            table.set(key, moment_s)
            plain[key] = moment_s
        first = table.earliest()
        assert (None if first is None else first[0]) == min(plain.values(), default=None)
        assert sorted(table.due(now_s)) == sorted(key for key, moment in plain.items() if moment <= now_s)
        assert table.first_after(now_s) == min((moment for moment in plain.values() if moment > now_s), default=None)
        assert {key: table.moment_s(key) for key in table} == plain
        assert len(table) == len(plain)


def test_moving_one_moment_for_ever_costs_no_memory():
    table: Timetable[str] = Timetable()
    for number in range(10_000):
        table.set("a", float(number))
    assert len(table._heap) < 100
    assert table.earliest() == (9999.0, "a")


reports = st.lists(
    st.builds(SpeedReport, steps=st.just(8), train_s=st.sampled_from([4.0, 8.0, 9.0, 80.0]), wall_s=st.just(90.0)),
    max_size=3,
).map(tuple)
uploads = st.lists(
    st.builds(UploadReport, payload_bytes=st.sampled_from([1, 1000]), upload_s=st.sampled_from([0.0, 5.0, 70.0])),
    max_size=3,
).map(tuple)
records = st.builds(
    lambda number, present, probe, found, sent: WorkerRecord(
        worker=WorkerId(f"w{number}"),
        name="",
        trusted=False,
        max_columns=0,
        tokens_per_s=probe,
        heard_at_s=0.0,
        present=present,
        reports=found,
        uploads=sent,
    ),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([0.0, 100.0, 250.0, 1000.0, float("inf"), float("nan")]),
    reports,
    uploads,
)


def speeds_anew(known: dict[WorkerId, WorkerRecord]) -> tuple[dict[WorkerId, float], float | None]:
    """Speeds and the median of those present, by looking at everybody."""
    measured = {w: s for w, r in known.items() if (s := step_s(r)) is not None}
    probes = {w: r.tokens_per_s for w, r in known.items() if 0 < r.tokens_per_s < float("inf")}
    both = [measured[w] * probes[w] for w in measured if w in probes]
    tokens = median(both) if both else 1.0
    speeds = {w: tokens / probe for w, probe in probes.items() if both or not measured} | measured
    present = [speeds[w] for w, r in known.items() if r.present and w in speeds]
    return speeds, median(present) if present else None


def ends_anew(known: dict[WorkerId, WorkerRecord], steps: int) -> float | None:
    """The median end of a whole lease, the same way; those never measured need besides training what is usual."""
    speeds, _ = speeds_anew(known)
    fixed = {w: overhead_s(r) + upload_s(r) for w, r in known.items() if r.reports}
    here = [fixed[w] for w, r in known.items() if r.present and w in fixed]
    usual = median(here) if here else 0.0
    ends = [steps * speeds[w] + fixed.get(w, usual) for w, r in known.items() if r.present and w in speeds]
    return median(ends) if ends else None


@quick
@given(st.lists(st.one_of(records, st.sampled_from([4, 8, 32])), max_size=30))
def test_speeds_are_those_of_looking_at_everybody_anew(changes):
    kept, steps = Speeds(8), 8
    known: dict[WorkerId, WorkerRecord] = {}
    for record in changes:
        if isinstance(record, int):
            steps = record
            kept.turn_to(steps)
            continue
        kept.put(known.get(record.worker), record)
        known[record.worker] = record
        speeds, middle = speeds_anew(known)
        assert {worker: kept.step_s(worker) for worker in known} == {worker: speeds.get(worker) for worker in known}
        assert kept.reference_step_s == middle
        assert kept.reference_end_s == ends_anew(known, steps)


def test_a_report_of_no_time_at_all_is_no_divisor_of_zero():
    record = WorkerRecord(worker=WorkerId("w"), name="", trusted=False, max_columns=0, tokens_per_s=0.0, heard_at_s=0.0)
    assert step_s(replace(record, reports=(SpeedReport(steps=2**31, train_s=5e-324, wall_s=1.0),))) == 1e-9


@quick
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.3, 5.0, math.nan])), max_size=20))
def test_the_median_gain_follows_what_is_accepted_and_withdrawn(changes):
    tally, there = RoundTally(1), []
    voice = Voice(present=True, votes=True, steady=True)
    for comes, gain in changes:
        if comes:
            there.append(gain)
        elif gain in there:
            there.remove(gain)
        else:
            continue
        tally.count(accepted(gain), seat="", person="w", voice=voice, by=1 if comes else -1)
        finite = [known for known in there if math.isfinite(known)]
        assert tally.gains_median(2) == (median(finite) if len(finite) >= 2 else None)


def accepted(gain: float) -> LeaseRecord:
    lease: Any = SimpleNamespace(worker=WorkerId("w"), columns=(0,), sequences=8)
    return LeaseRecord(lease=lease, status=LeaseStatus.ACCEPTED, heldout_gain=gain)


@quick
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.sampled_from([1.0, 2.0, 3.0])), max_size=30),
    st.integers(0, 30),
)
def test_norms_are_held_against_what_is_remembered(changes, first):
    """Remembered at once or one after the other, it is the same; medians are those of `statistics`, over people."""
    submissions = [
        (
            SeenNorm(person=person, norm_l2=0.0),
            (BlockNorm(block=TRUNK, norm_l2=9.0), BlockNorm(block=column_block(column), norm_l2=norm)),
        )
        for person, column, norm in changes
    ]
    history = remember(remember({}, submissions[:first], 9), submissions[first:], 9)
    assert history == remember({}, submissions, 9)
    medians = medians_of(history)
    everything = [seen for column in range(3) for seen in history.get(column_block(column), ())]
    middle = over_people(everything)
    for column in range(3):
        own = history.get(column_block(column), ())
        assert len(own) <= 9
        found, of = over_people(own), medians.of(column_block(column), 99)
        if found is None or middle is None:
            assert of == (middle or found)
        else:
            assert of == Middle(low=found.low, high=max(found.high, middle.high))
    known = {seen.person for seen in history.get(TRUNK, ())}
    assert (medians.of(TRUNK, 99) is not None) == (len(known) >= MIN_PERSONS)


def over_people(norms):
    people = {seen.person for seen in norms}
    medians = [median(seen.norm_l2 for seen in norms if seen.person == person) for person in people]
    return Middle(low=median_low(medians), high=median_high(medians)) if len(people) >= MIN_PERSONS else None
