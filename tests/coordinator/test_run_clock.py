"""Run time: what steps of the wall clock, suspends and restarts do to a run's events and to the work in progress."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine import events as ev
from coordinator.engine import gaps
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Case, Reason
from coordinator.engine.records import event_from_json, event_to_json
from coordinator.engine.rows import LeaseRecord, Quarantine
from coordinator.engine.state import EngineState
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.clock import LOOK_EVERY_S, MOST_AWAY_S, STEP_S, Clocks, RunClock, machine_s
from coordinator.run.migrations import MIGRATIONS
from protocol.errors import IllegalEvent
from protocol.ids import RunId, WorkerId, digest_of

SECRET = b"s" * 32
NOON_S = 1.8e9
HOUR_S = 3600.0
SILENCE_S = 30.0
ANNA, BEN = WorkerId("anna"), WorkerId("ben")


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.machine_s, self.calendar_s = 77.7, NOON_S
        self.clocks = Clocks(machine=lambda: self.machine_s, wall=lambda: self.calendar_s)

    def passes(self, seconds: float) -> None:
        self.machine_s += seconds
        self.calendar_s += seconds


class Coordinator:
    """An engine and its journal on a machine, driven as the pump drives them."""

    def __init__(self, machine: Machine, **changes: Any) -> None:
        config = {"lease_ttl_s": 120.0, "min_lease_s": 10.0, "gather_s": 0.0, "round_deadline_s": 600.0, **changes}
        recipe = InnerRecipe(inner_steps=8, batch_sequences=4)
        created = ev.RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, base_manifest=digest_of(b"v0"), wall_s=machine.calendar_s,
            config=EngineConfig(run_id=RunId("run"), columns=4, train_sequences=10_000, inner=recipe, **config),
        )  # fmt: skip
        self.machine = machine
        self.journal = [event_to_json(created)]
        self.times_s: list[float] = []
        self.start()

    def start(self) -> None:
        """A new process."""
        self.engine = self.replayed()
        state = self.engine.state
        self.clock = RunClock(self.machine.clocks, last_s=state.now_s, last_wall_s=state.wall_at_s(state.now_s))
        self.tick()

    def replayed(self) -> Engine:
        engine, _ = Engine.create(typing.cast(Any, event_from_json(self.journal[0])), SECRET)
        for record in self.journal[1:]:
            engine.handle(event_from_json(record))
        return engine

    def handle(self, event: ev.Event) -> None:
        self.journal.append(event_to_json(event))
        self.times_s.append(event.at_s)
        try:
            self.engine.handle(event)
        except IllegalEvent:
            self.journal.pop()

    def tick(self, *come: ev.Event) -> None:
        news = [*self.engine.greeting(self.clock.now_s()), *self.clock.news()]
        for event in [*news, *come, *([] if news else self.engine.due(self.clock.now_s()))]:
            self.handle(event)

    def passes(self, seconds: float, *alive: WorkerId) -> None:
        """Time in which the coordinator is there, and these workers beat."""
        until_s = self.machine.machine_s + seconds
        while self.machine.machine_s < until_s:
            self.machine.passes(min(1.0, until_s - self.machine.machine_s))
            for worker in alive:
                self.engine.handle(ev.WorkerSeen(at_s=self.clock.now_s(), worker=worker))
            self.tick()

    def join(self, *workers: WorkerId) -> None:
        for worker in workers:
            self.tick(
                ev.WorkerEnrolled(
                    at_s=self.clock.now_s(), worker=worker, name=worker, trusted=False, max_columns=4,
                    tokens_per_s=100.0,
                )
            )  # fmt: skip
            self.tick(ev.LeaseRequested(at_s=self.clock.now_s(), worker=worker, wait_s=20.0))

    def commit(self, worker: WorkerId, train_s: float = 20.0) -> LeaseRecord:
        lease_id = self.lease(worker).lease.lease_id
        self.tick(
            ev.SubmissionCommitted(
                at_s=self.clock.now_s(), worker=worker, lease_id=lease_id, digest=digest_of(worker.encode()),
                payload_bytes=10, codec="fp32", inner_steps_done=8, train_loss_first=2.0, train_loss_last=1.0,
                train_s=train_s,
            )
        )  # fmt: skip
        return self.engine.state.leases[lease_id]

    def lease(self, worker: WorkerId) -> LeaseRecord:
        return list(self.engine.state.leases_of(worker))[-1]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def run(machine: Machine) -> Coordinator:
    coordinator = Coordinator(machine)
    coordinator.join(ANNA, BEN)
    assert [coordinator.lease(worker).status for worker in (ANNA, BEN)] == [LeaseStatus.GRANTED] * 2
    return coordinator


def assert_honest_work_counts_and_silence_is_found(run: Coordinator) -> None:
    """Anna delivers; Ben said nothing since: not blamed too early, and found within the limit."""
    run.passes(SILENCE_S - 2.0, ANNA)
    assert run.lease(BEN).status is LeaseStatus.GRANTED
    committed = run.commit(ANNA)
    assert (committed.status, committed.verdict) == (LeaseStatus.COMMITTED, None)
    run.passes(3.0, ANNA)
    assert run.lease(BEN).status is LeaseStatus.EXPIRED
    assert "silent for 3" in run.lease(BEN).end_reason
    assert run.replayed().snapshot() == run.engine.snapshot()
    assert run.times_s == sorted(run.times_s)


@pytest.mark.parametrize("step_s", [2 * HOUR_S, -2 * HOUR_S, 40 * 365 * 24 * HOUR_S])
def test_a_wall_clock_that_steps_for_a_moment_costs_nobody_anything(
    machine: Machine, run: Coordinator, step_s: float
) -> None:
    run.passes(10.0, ANNA, BEN)
    deadline_s = run.lease(ANNA).lease.deadline_s
    machine.calendar_s += step_s
    run.passes(7.0, ANNA, BEN)
    machine.calendar_s -= step_s
    assert run.lease(ANNA).lease.deadline_s == deadline_s
    assert_honest_work_counts_and_silence_is_found(run)


@pytest.mark.parametrize("step_s", [2 * HOUR_S, -2 * HOUR_S])
def test_a_wall_clock_that_stays_stepped_costs_nobody_anything(
    machine: Machine, run: Coordinator, step_s: float
) -> None:
    machine.calendar_s += step_s
    assert_honest_work_counts_and_silence_is_found(run)


def test_a_suspend_of_hours_moves_deadlines_and_begins_silence_anew(machine: Machine, run: Coordinator) -> None:
    run.passes(10.0, ANNA, BEN)
    left_s = run.lease(ANNA).lease.deadline_s - run.clock.now_s()
    machine.passes(3 * HOUR_S)
    run.tick()
    assert run.clock.now_s() == pytest.approx(10.0 + 3 * HOUR_S), "run time counts suspend"
    assert run.lease(ANNA).lease.deadline_s - run.clock.now_s() == pytest.approx(left_s)
    assert_honest_work_counts_and_silence_is_found(run)


def test_a_commit_that_wakes_the_coordinator_is_not_late(machine: Machine, run: Coordinator) -> None:
    machine.passes(3 * HOUR_S)
    assert run.commit(ANNA).status is LeaseStatus.COMMITTED


@pytest.mark.parametrize(
    ("away_s", "added_s"),
    [(300.0, 300.0), (30 * HOUR_S, MOST_AWAY_S), (-2 * HOUR_S, 0.0)],
    ids=["5 minutes", "30 hours", "before the last record"],
)
def test_a_restart_adds_the_calendars_time_between_nothing_and_a_day(
    machine: Machine, run: Coordinator, away_s: float, added_s: float
) -> None:
    run.passes(10.0, ANNA, BEN)
    run.tick(ev.Ticked(at_s=run.clock.now_s()))
    last_s, left_s = run.engine.state.now_s, run.lease(ANNA).lease.deadline_s - run.engine.state.now_s
    calendar_s = machine.calendar_s - (run.clock.now_s() - last_s)
    machine.machine_s, machine.calendar_s = 3.0, calendar_s + away_s  # perhaps booted anew
    run.start()
    assert run.clock.now_s() == pytest.approx(last_s + added_s)
    assert run.lease(ANNA).lease.deadline_s - run.clock.now_s() == pytest.approx(left_s)
    assert run.engine.state.wall_at_s(run.clock.now_s()) == pytest.approx(machine.calendar_s), "people see the calendar"
    assert_honest_work_counts_and_silence_is_found(run)


def test_restarts_in_a_row_move_a_deadline_by_no_more_than_the_time_that_passed(
    machine: Machine, run: Coordinator
) -> None:
    deadline_s = run.lease(ANNA).lease.deadline_s
    for _ in range(5):
        machine.passes(60.0)
        run.start()
        run.start()
    assert run.lease(ANNA).lease.deadline_s == pytest.approx(deadline_s + 300.0)


def test_people_are_told_of_steps_above_two_seconds_and_see_the_calendar_of_each_moment(
    machine: Machine, run: Coordinator
) -> None:
    def steps() -> list[float]:
        return [event.step_s for event in map(event_from_json, run.journal) if isinstance(event, ev.ClockStepped)]

    run.passes(100.0, ANNA)
    machine.calendar_s += STEP_S - 0.1
    run.passes(1.0, ANNA)
    assert steps() == []
    machine.calendar_s += HOUR_S
    run.passes(LOOK_EVERY_S, ANNA)
    assert steps() == [pytest.approx(HOUR_S + STEP_S - 0.1)]
    run.passes(50.0, ANNA)
    state = run.engine.state
    assert state.wall_at_s(run.clock.now_s()) == pytest.approx(machine.calendar_s)
    assert state.wall_at_s(0.0) == NOON_S
    assert state.wall_at_s(60.0) == NOON_S + 60.0


def test_a_slow_drift_of_the_two_clocks_is_followed(machine: Machine, run: Coordinator) -> None:
    for _ in range(100):
        machine.calendar_s += 0.1
        run.passes(1.0, ANNA)
    now_s = run.clock.now_s()
    assert abs(run.engine.state.wall_at_s(now_s) - machine.calendar_s) <= STEP_S + 0.1  # type: ignore[operator]


def test_a_gap_makes_no_worker_look_slow(machine: Machine, run: Coordinator) -> None:
    run.passes(10.0, ANNA, BEN)
    machine.passes(3 * HOUR_S)
    run.passes(10.0, ANNA, BEN)
    run.commit(ANNA, train_s=15.0)
    (report,) = run.engine.state.workers[ANNA].reports
    assert (report.train_s, report.wall_s) == (15.0, pytest.approx(20.0, abs=1.0))
    run.commit(BEN, train_s=2 * HOUR_S)  # it trained through the gap: no overhead is made of that
    (report,) = run.engine.state.workers[BEN].reports
    assert (report.train_s, report.wall_s) == (2 * HOUR_S, 2 * HOUR_S)


# ---- no moment is forgotten ----------------------------------------------------------------------------------

HISTORY = {
    "EngineState.now_s", "WorkerRecord.tokens_per_s", "SpeedReport.train_s", "SpeedReport.wall_s",
    "UploadReport.upload_s", "LeaseRecord.gap_s", "LeaseRecord.committed_at_s", "LeaseRecord.uploaded_at_s",
    "GrantedLease.granted_at_s", "RoundState.opened_at_s", "RoundState.settled_at_s", "RoundRecord.opened_at_s",
    "RoundRecord.closed_at_s", "CalendarMark.at_s", "CalendarMark.wall_s", "SettingChange.at_s", "Ban.at_s",
    "WorkerRecord.appealed_at_s", "Accusation.at_s", "RoundState.rows_since_s", "OrderRecord.at_s", "Announcement.at_s",
}  # fmt: skip
"""What happened, and how long it took; counted from a grant, a gap is taken off (`LeaseRecord.gap_s`)."""
MOVED = {
    "WorkerRecord.heard_at_s", "WorkerRecord.waiting_since_s", "WorkerRecord.waits_until_s",
    "WorkerRecord.cooling_until_s", "Quarantine.until_s", "GrantedLease.deadline_s",
    "LeaseRecord.overdue_at_s", "LeaseRecord.audit_since_s", "Hold.since_s",
    *(f"RoundState.{name}" for name in gaps.MOVED_OF_A_ROUND),
}  # fmt: skip


def moments_of(kind: type, seen: set[type]) -> set[str]:
    """Names of all numbers of seconds in a record and the records in it, but for settings."""
    if kind in seen or kind is EngineConfig:
        return set()
    seen.add(kind)
    found: set[str] = set()
    hints = typing.get_type_hints(kind, localns={"Undo": object})
    for entry in dataclasses.fields(kind):
        if not entry.init:
            continue
        inside = [hints[entry.name]]
        while inside:
            part = inside.pop()
            inside += typing.get_args(part)
            if part is float and entry.name.endswith("_s"):
                found.add(f"{kind.__name__}.{entry.name}")
            if dataclasses.is_dataclass(part):
                found |= moments_of(typing.cast(type, part), seen)
    return found


def test_each_moment_of_the_state_is_said_to_move_or_to_stay() -> None:
    """Whoever adds one to the state decides here, and in coordinator/engine/gaps.py, what a gap does to it."""
    assert moments_of(EngineState, set()) == HISTORY | MOVED


def test_every_open_moment_moves_by_the_gap_and_no_other(run: Coordinator) -> None:
    state, gap_s = run.engine.state, 5000.0
    run.passes(5.0, ANNA, BEN)
    aside = Quarantine(until_round=typing.cast(Any, 9), until_s=700.0, why=Reason(case=Case.AS_TOLD))
    state.update_worker(ANNA, cooling_until_s=600.0, quarantine=aside, waits_until_s=800.0, waiting_since_s=1.0)
    lost = run.lease(BEN).lease.lease_id
    state.set_status(lost, LeaseStatus.EXPIRED)
    state.update_round(
        gathered_at_s=0.5, first_lease_at_s=1.0, settled_at_s=2.0, grace_until_s=900.0, spare_wait_until_s=950.0
    )
    held = run.lease(ANNA).lease.lease_id
    state.update_lease(held, overdue_at_s=850.0)
    before = state.copy()
    now_s = run.clock.now_s() + gap_s
    run.engine.handle(ev.CoordinatorResumed(at_s=now_s, gap_s=gap_s))
    anna = state.workers[ANNA]
    assert anna.quarantine is not None
    assert (anna.cooling_until_s, anna.quarantine.until_s) == (600.0 + gap_s, 700.0 + gap_s)
    assert (anna.heard_at_s, anna.waiting_since_s, anna.waits_until_s) == (now_s, None, None)
    for lease_id, record in state.leases.items():
        old = before.leases[lease_id]
        moved = dataclasses.replace(old.lease, deadline_s=old.lease.deadline_s + gap_s)
        overdue_at_s = 850.0 + gap_s if lease_id == held else None
        assert record == dataclasses.replace(old, lease=moved, gap_s=gap_s, overdue_at_s=overdue_at_s)
    moments = {name: getattr(before.round, name) + gap_s for name in gaps.MOVED_OF_A_ROUND}
    assert state.round == dataclasses.replace(before.round, **moments)


def test_an_invalid_gap_is_refused(run: Coordinator) -> None:
    for gap_s in (-1.0, math.nan, math.inf):
        with pytest.raises(IllegalEvent, match="gap"):
            run.engine.handle(ev.CoordinatorResumed(at_s=run.clock.now_s(), gap_s=gap_s))
    with pytest.raises(IllegalEvent, match="calendar"):
        run.engine.handle(ev.ClockStepped(at_s=run.clock.now_s(), wall_s=math.nan, step_s=0.0))


# ---- the property --------------------------------------------------------------------------------------------

SECONDS = st.floats(min_value=0.0, max_value=3 * 24 * HOUR_S)
DEEDS = st.one_of(
    st.tuples(st.just("step"), st.floats(min_value=-1e9, max_value=1e9)),
    st.tuples(st.just("suspend"), SECONDS),
    st.tuples(st.just("restart"), SECONDS),
    st.tuples(st.just("passes"), st.floats(min_value=0.0, max_value=60.0)),
    st.tuples(st.sampled_from(["ask", "commit"]), st.sampled_from([0.0, 1.0])),
)


@settings(max_examples=60, deadline=None)
@given(deeds=st.lists(DEEDS, max_size=25))
def test_run_time_never_goes_back_and_a_replay_gives_the_same_state(deeds: list[tuple[str, float]]) -> None:
    machine = Machine()
    run = Coordinator(machine)
    run.join(ANNA, BEN)
    for deed, amount in deeds:
        worker = BEN if amount == 1.0 else ANNA
        match deed:
            case "step":
                machine.calendar_s += amount
            case "suspend":
                machine.passes(amount)
            case "restart":
                machine.calendar_s += amount
                machine.machine_s = 1.0
                run.start()
            case "passes":
                run.passes(amount, ANNA)
            case "ask":
                run.tick(ev.LeaseRequested(at_s=run.clock.now_s(), worker=worker, wait_s=20.0))
            case "commit":
                run.commit(worker)
        run.tick()
        assert run.times_s == sorted(run.times_s)
        assert all(b - a <= MOST_AWAY_S + 3 * 24 * HOUR_S for a, b in zip(run.times_s, run.times_s[1:], strict=False))
        shown_s = run.engine.state.wall_at_s(run.clock.now_s())
        assert shown_s == pytest.approx(machine.calendar_s, abs=STEP_S + 1e-3)
    assert json.dumps(run.replayed().snapshot()) == json.dumps(run.engine.snapshot())


# ---- a run of before -----------------------------------------------------------------------------------------


def test_a_run_whose_times_were_the_wall_clocks_goes_on_without_a_jump() -> None:
    """As engine version 2 left it: no calendar, and `at_s` was seconds since the epoch."""
    machine = Machine()
    run = Coordinator(machine)
    old = json.loads(json.dumps(run.engine.snapshot()))
    old |= {"engine_version": 2, "now_s": NOON_S, "end_reason": None}
    old["round"] |= {"opened_at_s": NOON_S - 100.0, "close_reason": None}
    for name, place in (("calendar", old), ("ended", old), ("closed", old["round"])):
        del place[name]
    migrated = MIGRATIONS[2](old)
    engine = Engine.restore({**migrated, "engine_version": ENGINE_VERSION}, SECRET)
    machine.passes(60.0)
    state = engine.state
    clock = RunClock(machine.clocks, last_s=state.now_s, last_wall_s=state.wall_at_s(state.now_s))
    assert clock.now_s() == pytest.approx(NOON_S + 60.0)
    assert clock.news() == []
    assert state.wall_at_s(state.round.opened_at_s) == NOON_S - 100.0


# ---- the machine ---------------------------------------------------------------------------------------------


def test_run_time_is_taken_from_a_clock_that_counts_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def clock_gettime(which: int) -> float:
        told.append(which)
        return 5.0

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    assert (machine_s(), told.pop()) == (5.0, 7)
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.setattr("sys.platform", "darwin")
    assert (machine_s(), told.pop()) == (5.0, time.CLOCK_MONOTONIC)
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(time, "monotonic", lambda: 6.0)
    assert (machine_s(), told) == (6.0, [])


def test_reading_the_clock_often_loses_nothing() -> None:
    """A run of before counts from the epoch, where a float has a quarter of a microsecond."""
    machine = Machine()
    clock = RunClock(machine.clocks, last_s=NOON_S, last_wall_s=NOON_S)
    for _ in range(20_000):
        machine.machine_s += 5e-8
        clock.now_s()
    assert clock.now_s() - NOON_S == pytest.approx(0.001, abs=1e-6)
