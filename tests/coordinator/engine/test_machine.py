"""Any sequence of events, legal or not, at any times: what holds always, holds."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.engine import events as ev
from coordinator.engine.bans import BY_ENGINE
from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    ReplayLease,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.config import AuditConfig
from coordinator.engine.contributions import oldest_version_needed
from coordinator.engine.engine import Engine
from coordinator.engine.phases import LIVE_STATUSES, OPEN_PHASES, PHASE_MOVES, Phase
from coordinator.run.needed import needed_by
from protocol.errors import IllegalEvent
from protocol.ids import WorkerId

NAMES = ["a", "b", "c", "d", "e"]
SECRET = b"a secret of the tests"
names = st.sampled_from(NAMES)


class EngineMachine(RuleBasedStateMachine):
    """Five workers that do whatever comes to mind, with a pump that wakes when it likes."""

    make: Any = None

    @initialize(
        columns=st.integers(1, 4),
        quorum=st.integers(1, 3),
        staleness=st.integers(0, 2),
        enabled=st.booleans(),
        min_workers=st.integers(1, 2),
        most_grants=st.sampled_from([1, 2, 256]),
        audits=st.builds(
            AuditConfig,
            budget=st.sampled_from([0.0, 0.3, 2.0, 99.0]),
            first=st.sampled_from([0, 1, 10]),
            least_probability=st.sampled_from([0.0, 0.5]),
            by_coordinator=st.booleans(),
            wait_s=st.sampled_from([0.0, 20.0]),
            keep_rounds=st.sampled_from([1, 3]),
        ),
        open_run=st.booleans(),
        rollback_rounds=st.sampled_from([0, 2, 3]),
    )
    def begin(self, columns, quorum, staleness, enabled, min_workers, most_grants, audits, open_run, rollback_rounds):
        from dataclasses import replace

        self.swarm = type(self).make(
            columns=columns,
            quorum=quorum,
            max_staleness=staleness,
            min_workers=min_workers,
            most_grants=most_grants,
            audits=audits,
            open_run=open_run,
            gather_s=1.0,
            max_rounds=4,
            round_deadline_s=60.0,
            lease_ttl_s=40.0,
            train_sequences=100,  # epochs turn over
            quarantine_after=2,
            rollback_rounds=rollback_rounds,
        )
        config = self.swarm.config
        assert config.screening.enabled
        if not enabled:
            config = replace(config, screening=replace(config.screening, enabled=False))
            self.swarm = type(self.swarm)(config)
        self.previous = self.swarm.engine.state.copy()

    def do(self, event: ev.Event) -> None:
        with contextlib.suppress(IllegalEvent):
            self.swarm.handle(event)

    def quietly(self, act, *arguments, **keywords) -> None:
        with contextlib.suppress(IllegalEvent):
            act(*arguments, **keywords)

    @rule(
        name=names,
        columns=st.integers(0, 4),
        owner=st.sampled_from(["", "", "anna", "ben"]),
        trusted=st.sampled_from([False, True]),
    )
    def enrol(self, name, columns, owner, trusted):
        self.quietly(self.swarm.enrol, name, columns=columns, owner=owner, trusted=trusted)

    @rule(name=names, wait_s=st.sampled_from([None, 0.0, 5.0]))
    def ask(self, name, wait_s):
        self.quietly(self.swarm.ask, name, wait_s=wait_s)

    @rule()
    def everybody_asks(self):
        for name in self.swarm.engine.state.workers:
            self.swarm.ask(name)

    @rule(name=names, steps=st.sampled_from([8, 8, 8, 1]), back=st.sampled_from([0.0, 0.0, 30.0]))
    def commit(self, name, steps, back):
        leases = self.swarm.leases(name)
        if leases:
            now_s, self.swarm.now_s = self.swarm.now_s, max(0.0, self.swarm.now_s - back)  # a clock that went back
            self.quietly(self.swarm.commit, name, inner_steps_done=steps)
            self.swarm.now_s = now_s

    @rule(name=names, other=names)
    def copy_commit(self, name, other):
        mine, theirs = self.swarm.leases(name), self.swarm.leases(other)
        if mine and theirs:
            self.quietly(self.swarm.commit, name, digest=self.swarm.digest(theirs[-1].lease.lease_id))

    @rule(name=names)
    def upload(self, name):
        if self.swarm.leases(name):
            self.quietly(self.swarm.upload, name)

    @rule(name=names, gain=st.sampled_from([0.05, 0.05, -1.0, float("nan")]), norm=st.sampled_from([1.0, 1.0, 50.0]))
    def submit(self, name, gain, norm):
        if self.swarm.leases(name):
            self.quietly(self.swarm.submit, name, gain=gain, norm=norm)

    @rule(name=names)
    def give_back(self, name):
        if self.swarm.leases(name):
            self.quietly(self.swarm.give_back, name)

    @rule(name=names)
    def silent(self, name):
        if WorkerId(name) in self.swarm.engine.state.workers:
            self.quietly(self.swarm.silent, name)

    @rule(name=names, which=st.sampled_from(["ban", "ban", "unban", "pardon", "rollback", "owner", "no owner"]))
    def judge(self, name, which):
        swarm = self.swarm
        how = {"at_s": swarm.now_s, "by": "operator", "why": ""}
        if which in {"owner", "no owner"}:
            kind = ev.OwnerBanned if which == "owner" else ev.OwnerUnbanned
            self.do(kind(owner="anna", **how))
            return
        kinds = {
            "ban": ev.WorkerBanned,
            "unban": ev.WorkerUnbanned,
            "pardon": ev.WorkerPardoned,
            "rollback": ev.RollbackOrdered,
        }
        self.do(kinds[which](worker=WorkerId(name), **how))

    @rule(name=names)
    def beat(self, name):
        if WorkerId(name) in self.swarm.engine.state.workers:
            self.swarm.beat(name)

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 15.0, 45.0]))
    def wait(self, seconds):
        self.swarm.after(seconds)

    @rule(which=st.integers(0, 5), distance=st.sampled_from([0.0, 0.0, 1.0, float("nan")]))
    def slow_work(self, which, distance):
        pending = self.swarm.engine.pending
        if not pending:
            return
        command = pending[which % len(pending)]
        if isinstance(command, MeasureSubmission):
            self.swarm.measured(command.lease.lease_id)
        elif isinstance(command, AggregateRound):
            self.swarm.aggregated(gain=-1.0 if which % 2 else 0.01)
        elif isinstance(command, FindHarmful):
            suspects = list(command.suspects)
            self.swarm.harm_found(*suspects[:which], suspected=tuple(suspects[which : which + 1]))
        elif isinstance(command, TryContributions):
            tried = [one.lease_id for one in command.attempt.contributions]
            self.swarm.tried(*tried[: which % (len(tried) + 1)], lost=which % 2 == 0)
        elif isinstance(command, RebuildVersion):
            self.swarm.rebuilt(change_l2=float(which))
        elif isinstance(command, ReplayLease | CompareSubmissions):
            self.swarm.answer(command, distance, error="no answer" if which == 5 else "")
        elif isinstance(command, ValidateVersion):
            self.swarm.validated()
        elif isinstance(command, WriteCheckpoint):
            self.swarm.exported()

    @rule(which=st.integers(0, 5), trouble=st.sampled_from(ev.CommandTrouble), times=st.sampled_from([1, 3]))
    def failure(self, which, trouble, times):
        pending = self.swarm.engine.pending
        for _ in range(times if pending else 0):
            self.quietly(self.swarm.failed, pending[which % len(pending)].command_id, trouble=trouble)

    @rule()
    def resumed(self):
        self.do(ev.CoordinatorResumed(at_s=self.swarm.now_s))

    @rule(lease=st.sampled_from(["r1.1", "r2.1", "r9.9"]))
    def nonsense(self, lease):
        self.do(ev.LeaseReturned(at_s=self.swarm.now_s, worker=WorkerId("z"), lease_id=lease, reason=""))
        self.do(ev.SubmissionMeasured(at_s=self.swarm.now_s, command_id="x", lease_id=lease, malformed="no"))
        self.do(
            ev.RunCreated(at_s=0.0, engine_version=1, config=self.swarm.config, base_manifest=self.swarm.digest(""))
        )

    @precondition(lambda self: self.swarm.round > 2)
    @rule()
    def stop(self):
        self.quietly(self.swarm.stop)

    # ---- what holds always

    @invariant()
    def moves_are_legal(self):
        # several moves may happen in one event; each is checked by the table itself, here only the ends
        state = self.swarm.engine.state
        assert state.version >= self.previous.version
        assert state.round.round >= self.previous.round.round
        assert state.now_s >= self.previous.now_s
        if self.previous.phase is Phase.OVER:
            assert state.phase is Phase.OVER
        assert any(state.phase in pair for pair in PHASE_MOVES)
        self.previous = state.copy()

    @invariant()
    def nobody_votes_twice(self):
        state = self.swarm.engine.state
        held: set[tuple[str, int, int]] = set()
        for record in state.leases.values():
            if record.status not in LIVE_STATUSES or record.lease.audits is not None:
                continue
            for column in record.lease.columns:
                seat = (state.workers[record.lease.worker].person, record.lease.round, column)
                assert seat not in held
                held.add(seat)
        for command in state.pending.values():
            if isinstance(command, AggregateRound):
                used = [(state.workers[state.leases[c.lease_id].lease.worker].person, c) for c in command.contributions]
                people = [person for person, c in used if c.include_trunk]
                assert set(people) == {person for person, _ in used}
                assert len(people) == len(set(people))
                votes = [(person, column) for person, c in used for column in c.columns]
                assert len(votes) == len(set(votes))

    @invariant()
    def data_counts_once(self):
        taken: set[tuple[int, int]] = set()
        for record in self.swarm.engine.state.leases.values():
            data = record.lease.data
            assert data.count == record.lease.sequences
            assert data.start + data.count <= self.swarm.config.train_sequences
            if record.lease.audits is not None:
                continue  # the same positions once more, which count nowhere
            for position in range(data.start, data.start + data.count):
                assert (data.seed, position) not in taken
                taken.add((data.seed, position))

    @invariant()
    def nothing_final_on_one_word(self):
        """Whoever is banned by the engine, or pays for an accusation, was contradicted by two people; own work none."""
        state = self.swarm.engine.state
        cases = state.accusations
        for record in state.workers.values():
            if record.ban is not None and record.ban.by == BY_ENGINE:
                assert any(one.worker == record.worker and len(set(one.accusers)) >= 2 for one in cases)
            if record.false_accusations:
                assert any(record.person in one.accusers and len(set(one.vouchers)) >= 2 for one in cases)
        for lease in state.leases.values():
            people = [result.auditor for result in lease.audits]
            assert len(people) == len(set(people)) <= 3
            assert state.person_of(lease.lease) not in people

    @invariant()
    def what_an_audit_needs_is_kept(self):
        state = self.swarm.engine.state
        needed = needed_by(state)
        for lease_id, record in state.leases.items():
            if record.audit_due:
                assert needed.payloads[lease_id] == record.digest
                assert oldest_version_needed(state) <= record.lease.base_version
        for command in state.pending.values():
            if isinstance(command, ReplayLease | CompareSubmissions):
                assert state.leases[command.lease.lease_id].audit_due

    @invariant()
    def shadows_count_nowhere(self):
        for command in self.swarm.engine.state.pending.values():
            if isinstance(command, AggregateRound):
                leases = self.swarm.engine.state.leases
                assert all(leases[one.lease_id].lease.audits is None for one in command.contributions)
                assert all(one.weight > 0 for one in command.contributions)

    @invariant()
    def one_open_lease_each(self):
        open_leases = [r.lease.worker for r in self.swarm.engine.state.leases.values() if r.status == "granted"]
        assert len(open_leases) == len(set(open_leases))

    @invariant()
    def a_closed_round_had_something_or_is_unchanged(self):
        for row in self.swarm.engine.state.history:
            assert (row.version is None) == (row.unpublished is not None)
            assert row.version is None or row.version == row.base_version + 1

    @invariant()
    def somebody_or_something_is_waited_for(self):
        engine = self.swarm.engine
        if engine.state.phase is Phase.OVER:
            assert not engine.pending
            return
        assert engine.explain(self.swarm.now_s), f"nothing explains why {engine.state.phase} goes on"
        for name in engine.state.workers:
            assert engine.wait_reason(name)
        if engine.state.phase in OPEN_PHASES - {Phase.GATHERING}:
            assert engine.next_wakeup_s() is not None or engine.pending

    @invariant()
    def due_is_never_late_for_nothing(self):
        engine, now_s = self.swarm.engine, self.swarm.now_s
        wakeup_s = engine.next_wakeup_s()
        if wakeup_s is not None and wakeup_s <= now_s:
            assert engine.due(now_s), "a pump would spin"

    @invariant()
    def a_snapshot_is_the_state(self):
        engine = self.swarm.engine
        snapshot = json.loads(json.dumps(engine.snapshot()))
        again = Engine.restore(snapshot, SECRET)
        assert json.dumps(again.snapshot()) == json.dumps(engine.snapshot())

    def teardown(self):
        if not hasattr(self, "swarm"):
            return
        text = json.dumps(self.swarm.engine.snapshot())
        assert json.dumps(self.swarm.replayed().snapshot()) == text
        self.both_ways()

    def both_ways(self) -> None:
        """A restored engine answers the second half of the journal exactly as one that saw it all."""
        half = len(self.swarm.journal) // 2
        whole, _ = Engine.create(self.swarm.created, SECRET)
        commands_of(whole, self.swarm.journal[:half])
        restored = Engine.restore(json.loads(json.dumps(whole.snapshot())), SECRET)
        rest = self.swarm.journal[half:]
        assert str(commands_of(restored, rest)) == str(commands_of(whole, rest))
        assert json.dumps(restored.snapshot()) == json.dumps(whole.snapshot())


def commands_of(engine: Engine, journal: list[ev.Event]) -> list[Any]:
    out: list[Any] = []
    for event in journal:
        try:
            out.append(engine.handle(event))
        except IllegalEvent as error:
            out.append(str(error))
    return out


def test_engine_machine(swarm):
    EngineMachine.make = staticmethod(swarm)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="minutes long: for after a change of the engine")
def test_engine_machine_for_long(swarm):
    EngineMachine.make = staticmethod(swarm)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=400, stateful_step_count=120, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
