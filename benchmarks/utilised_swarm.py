"""A swarm under the real engine in virtual time whose machines take time to fetch, train and send, and do nothing else.

Decides what a worker of `benchmarks.utilisation` does next, by its line and the bytes of a lease, and how long the
coordinator's own work takes; keeps when each machine trained. Touches nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from coordinator.engine.commands import (
    AggregateRound,
    CancelLease,
    Command,
    GrantLease,
    MeasureSubmission,
    SlowCommand,
)
from coordinator.engine.config import EngineConfig
from coordinator.engine.engine import Engine
from coordinator.engine.events import LeaseRequested, RunCreated, SubmissionUploaded, WorkerEnrolled, WorkerSeen
from coordinator.engine.lease import GrantedLease
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.lease_length import AssumedLine, LeaseBytes
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, Version, WorkerId, digest_of
from simulator.virtual.canned import canned_commit, canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

LEARNING_ROUNDS = 3
ASKS_S = 0.2
"""A call there and back, the encoding and the disk besides."""
SECRET = b"a benchmark's secret"


@dataclass(slots=True, kw_only=True)
class SimulatedMachine:
    """One simulated worker: what it is doing, and when it trained."""

    worker: WorkerId
    line: AssumedLine
    step_s: float
    has: Version | None = None
    """The version that its disk holds."""
    lease_id: LeaseId | None = None
    is_sending: bool = False
    waits: bool = False
    """For its line: two finished submissions are the most."""
    trained: list[tuple[float, float]] = field(default_factory=list)


class UtilisedLoop(EngineLoop):
    """One engine and its machines."""

    def __init__(
        self,
        machines: Sequence[SimulatedMachine],
        config: EngineConfig,
        traffic: LeaseBytes,
        *,
        max_columns: int,
        overlap: bool,
        coordinator_s: float,
    ) -> None:
        self.machines = {one.worker: one for one in machines}
        self._traffic, self._overlap = traffic, overlap
        self._measure_s, self._aggregate_s = 0.5 * coordinator_s / len(machines), 0.5 * coordinator_s
        self._free_s = 0.0  # when the coordinator's one executor is
        self._draw = random.Random(len(machines))
        created = RunCreated(at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"v0"))
        engine, commands = Engine.create(created, SECRET)
        super().__init__(engine, Agenda())
        engine.due(0.0)
        for command in commands:
            self.carry_out(command)
        for one in machines:
            joined = WorkerEnrolled(
                at_s=0.0,
                worker=one.worker,
                name=one.worker[-2:],
                trusted=False,
                max_columns=max_columns,
                tokens_per_s=1.0 / one.step_s,
            )
            self.agenda.plan(joined)
            self.agenda.after(0.0, partial(self._ask, one))
        self.agenda.after(0.0, self._beat)

    def run(self) -> None:
        """To the end of the run."""
        while not self.engine.state.ended:
            self.advance()

    def carry_out(self, command: Command) -> None:
        """A lease is worked on; slow work is done by one executor, one after the other."""
        match command:
            case GrantLease(lease=lease):
                self._work_on(self.machines[lease.worker], lease)
            case CancelLease(worker=worker, lease_id=lease_id):
                one = self.machines[worker]
                if one.lease_id == lease_id:
                    one.lease_id = None
                    self.agenda.after(ASKS_S, partial(self._ask, one))
            case SlowCommand():
                takes = {MeasureSubmission: self._measure_s, AggregateRound: self._aggregate_s}.get(type(command), 0.0)
                self._free_s = max(self._free_s, self.now_s) + takes
                self.agenda.after(self._free_s - self.now_s, partial(self._finish, command))

    def _finish(self, command: SlowCommand) -> None:
        if self.engine.is_pending(command.command_id):
            steps = command.lease.inner_steps if isinstance(command, MeasureSubmission) else 0
            self.apply(canned_result(command, self.now_s, norm_l2=lambda: 1.0 * steps, gain=lambda: 0.01 * steps))

    def _beat(self) -> None:
        for worker, one in self.machines.items():
            self.engine.handle(WorkerSeen(at_s=self.now_s, worker=worker, lease_id=one.lease_id))
        self.agenda.after(self.engine.state.config.heartbeat_interval_s, self._beat)

    # ---- a machine ------------------------------------------------------------------------------------

    def _ask(self, one: SimulatedMachine) -> None:
        if one.lease_id is None and not one.waits:
            self.apply(LeaseRequested(at_s=self.now_s, worker=one.worker))

    def _work_on(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.lease_id = lease.lease_id
        if one.has is None:
            down_bytes = self._traffic.whole_bytes
        else:
            down_bytes = self._traffic.down_bytes * (lease.base_version - one.has)
        one.has = lease.base_version
        self.agenda.after(down_bytes * 8e-6 / one.line.down_mbit_s, partial(self._train, one, lease))

    def _train(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        if one.lease_id == lease.lease_id:
            train_s = lease.inner_steps * one.step_s * self._draw.uniform(0.98, 1.02)
            self.agenda.after(train_s, partial(self._commit, one, lease, train_s))

    def _commit(self, one: SimulatedMachine, lease: GrantedLease, train_s: float) -> None:
        one.trained.append((self.now_s - train_s, self.now_s))
        if one.lease_id != lease.lease_id:
            return
        one.lease_id = None
        try:
            self.apply(canned_commit(lease, self.now_s, train_s, payload_bytes=self._traffic.up_bytes))
        except IllegalEvent:
            self.agenda.after(ASKS_S, partial(self._ask, one))
            return
        one.waits = one.is_sending or not self._overlap
        if not one.is_sending:
            self._send(one, lease)
        else:
            self.agenda.after(0.0, partial(self._send_later, one, lease))

    def _send_later(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        if one.is_sending:
            self.agenda.after(1.0, partial(self._send_later, one, lease))
        else:
            one.waits = False
            self._send(one, lease)

    def _send(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.is_sending = True
        self.agenda.after(self._traffic.up_bytes * 8e-6 / one.line.up_mbit_s, partial(self._sent, one, lease))
        if self._overlap:
            self.agenda.after(ASKS_S, partial(self._ask, one))

    def _sent(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.is_sending = False
        digest = digest_of(lease.lease_id.encode())
        with contextlib.suppress(IllegalEvent):  # forgotten meanwhile: it came too many rounds late
            self.apply(SubmissionUploaded(at_s=self.now_s, worker=one.worker, lease_id=lease.lease_id, digest=digest))
        if not self._overlap:
            one.waits = False
            self.agenda.after(ASKS_S, partial(self._ask, one))

    def shares(self) -> list[float]:
        """Of each machine's time since the engine knows who is who, the share in training."""
        since_s, until_s = (
            self.engine.state.history[LEARNING_ROUNDS].opened_at_s,
            self.engine.state.history[-1].closed_at_s,
        )
        return [
            sum(max(0.0, min(end_s, until_s) - max(start_s, since_s)) for start_s, end_s in one.trained)
            / (until_s - since_s)
            for one in self.machines.values()
        ]
