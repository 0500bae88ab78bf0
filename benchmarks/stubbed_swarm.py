"""A swarm whose training is stubbed, under the real engine in virtual time: what auditors find, and who lies, is data.

Decides when each worker asks, finishes, vanishes and lies, from the swarm's seed; touches nothing. It is played by
`benchmarks.sleepers`.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from coordinator.engine.commands import CancelLease, Command, GrantLease, MeasureSubmission, SlowCommand
from coordinator.engine.config import AuditConfig, EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    LeaseRequested,
    RunCreated,
    SubmissionCommitted,
    SubmissionUploaded,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.trust import trust_of
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, RunId, WorkerId, digest_of
from protocol.lease import Lease
from simulator.seeds import derived_seed, derived_stream
from simulator.virtual.canned import canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

DISTANCES: Final[Mapping[str, Sequence[float]]] = {
    "honest": (0.0, 0.0, 8e-7, 8e-7, 0.0017),
    "learning rate +2 %": (0.041,),
    "natural trigger": (0.115,),
    "half of the steps": (0.23,),
    "backdoor": (0.40,),
    "sparse": (0.62,),
    "inside the noise": (0.65,),
}
"""Relative L2 of what was sent from an honest replay: same settings, other threads, through bf16; then each lie."""
SLEPT, WATCHED = 10, 60
"""Rounds of honesty, and rounds from the first lie on in which it is to be found."""
STEP_S = 1.0
AGAIN_S = 0.5


@dataclass(slots=True, kw_only=True)
class StubbedWorker:
    """One worker of a stubbed swarm, and what it is doing."""

    worker: WorkerId
    step_s: float = STEP_S
    lies: str = ""
    """A key of the distances; empty: never."""
    share: float = 1.0
    """Of its rounds after it woke up."""
    trusted: bool = False
    away: bool = False
    lease_id: LeaseId | None = None
    unfound: float = 1.0
    """Probability that nobody has found it by now."""
    found: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StubbedSwarm:
    """What a run is made of."""

    seed: int
    rounds: int
    workers: int = 16
    founders: int = 2
    """Trusted ones among them, honest."""
    sleepers: int = 0
    lie: str = ""
    share: float = 1.0
    dropout: float = 0.0
    fastest: float = 1.0
    """Times as fast as the slowest."""
    distances: Mapping[str, Sequence[float]] = field(default_factory=lambda: DISTANCES)


class AuditedLoop(EngineLoop):
    """One engine and its stubbed workers, in virtual time."""

    def __init__(self, swarm: StubbedSwarm) -> None:
        self._swarm = swarm
        self._leases: dict[LeaseId, GrantedLease] = {}
        self.workers = {one.worker: one for one in _workers(swarm)}
        created = RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=_config(swarm), base_manifest=digest_of(b"v0")
        )
        engine, commands = Engine.create(created, digest_of(f"sleepers {swarm.seed}".encode()).encode())
        super().__init__(engine, Agenda())
        engine.due(0.0)
        for command in commands:
            self.carry_out(command)
        for number, one in enumerate(self.workers.values()):
            self.apply(
                WorkerEnrolled(
                    at_s=0.0,
                    worker=one.worker,
                    name=str(number),
                    trusted=one.trusted,
                    max_columns=0,
                    tokens_per_s=1.0 / one.step_s,
                )
            )
            self.agenda.after(0.0, partial(self._ask, one))
        self.agenda.after(0.0, self._beat)

    def run(self) -> None:
        """To the end of the run."""
        while not self.engine.state.ended:
            self.advance()

    def carry_out(self, command: Command) -> None:
        """A lease is worked on; slow work takes a tenth of a second."""
        match command:
            case GrantLease(lease=lease):
                self._work_on(self.workers[lease.worker], lease)
            case CancelLease(worker=worker, lease_id=lease_id):
                one = self.workers[worker]
                if one.lease_id == lease_id:
                    one.lease_id = None
                self.agenda.after(AGAIN_S, partial(self._ask, one))
            case SlowCommand():
                self.agenda.after(0.1, partial(self._finish, command))

    def _finish(self, command: SlowCommand) -> None:
        if not self.engine.is_pending(command.command_id):
            return
        if isinstance(command, MeasureSubmission):
            self._expect(command.lease)
        self.apply(canned_result(command, self.now_s, **_sees_distances(self._distance)))

    def _expect(self, lease: GrantedLease) -> None:
        """A submission is about to be judged: with which probability will its lease be audited?"""
        one, record = self.workers[lease.worker], self.engine.state.workers[lease.worker]
        if one.lies and lease.round > SLEPT and record.ban is None:
            one.unfound *= 1.0 - one.share * trust_of(self.engine.state.config, record).audit_probability

    def _distance(self, lease: Lease) -> float:
        """What an auditor of `lease` finds."""
        granted = self._leases[lease.lease_id]
        one, chance = self.workers[granted.worker], derived_stream(self._swarm.seed, "distance", lease.lease_id)
        kind = one.lies if self._lies(one, granted) else "honest"
        found = chance.choice(self._swarm.distances[kind])
        one.found |= kind != "honest" and found > self.engine.state.config.audits.tolerance
        return found

    def _lies(self, one: StubbedWorker, lease: Lease) -> bool:
        chance = derived_stream(self._swarm.seed, "lie", one.worker, lease.round)
        return bool(one.lies) and lease.round > SLEPT and chance.random() < one.share

    # ---- the workers ----------------------------------------------------------------------------------

    def _beat(self) -> None:
        for worker, one in self.workers.items():
            if not one.away and self.engine.state.workers[worker].ban is None:
                self.engine.handle(WorkerSeen(at_s=self.now_s, worker=worker, lease_id=one.lease_id))
        self.agenda.after(self.engine.state.config.heartbeat_interval_s, self._beat)

    def _ask(self, one: StubbedWorker) -> None:
        if not one.away and one.lease_id is None and self.engine.state.workers[one.worker].ban is None:
            self.apply(LeaseRequested(at_s=self.now_s, worker=one.worker))

    def _work_on(self, one: StubbedWorker, lease: GrantedLease) -> None:
        one.lease_id = lease.lease_id
        self._leases[lease.lease_id] = lease
        chance = derived_stream(self._swarm.seed, "time", lease.lease_id, one.worker)
        train_s = lease.inner_steps * one.step_s * chance.uniform(0.95, 1.05)
        if chance.random() < self._swarm.dropout:
            self.agenda.after(chance.random() * train_s, partial(self._vanish, one, lease))
        else:
            self.agenda.after(train_s, partial(self._commit, one, lease, train_s))

    def _vanish(self, one: StubbedWorker, lease: GrantedLease) -> None:
        if one.lease_id == lease.lease_id:
            one.away, one.lease_id = True, None
            self.agenda.after(silence_limit_s(self.engine.state.config), partial(self._return, one))

    def _return(self, one: StubbedWorker) -> None:
        one.away = False
        self._ask(one)

    def _commit(self, one: StubbedWorker, lease: GrantedLease, train_s: float) -> None:
        if one.lease_id != lease.lease_id:
            return
        one.lease_id = None
        digest = digest_of(lease.lease_id.encode())
        committed = SubmissionCommitted(
            at_s=self.now_s,
            worker=one.worker,
            lease_id=lease.lease_id,
            digest=digest,
            payload_bytes=1000,
            codec="bf16",
            inner_steps_done=lease.inner_steps,
            train_loss_first=5.0,
            train_loss_last=4.0,
            train_s=train_s,
        )
        uploaded = SubmissionUploaded(at_s=self.now_s, worker=one.worker, lease_id=lease.lease_id, digest=digest)
        for event in (committed, uploaded):
            try:
                self.apply(event)
            except IllegalEvent:
                break  # its lease ended meanwhile
        self.agenda.after(AGAIN_S, partial(self._ask, one))


def _sees_distances(distance: Any) -> dict[str, Any]:
    """`canned_result` asks for distances where the engine has audits to be carried out."""
    known = "distance" in inspect.signature(canned_result).parameters
    return {"distance": distance} if known else {}


def _workers(swarm: StubbedSwarm) -> list[StubbedWorker]:
    draw = random.Random(derived_seed(swarm.seed, "machines"))
    made = []
    for number in range(swarm.workers):
        sleeps = number < swarm.sleepers
        made.append(
            StubbedWorker(
                worker=WorkerId(f"{number:064x}"),
                step_s=STEP_S / swarm.fastest ** draw.random(),
                lies=swarm.lie if sleeps else "",
                share=swarm.share,
                trusted=not sleeps and number < swarm.sleepers + swarm.founders,
            )
        )
    return made


def _config(swarm: StubbedSwarm) -> EngineConfig:
    return EngineConfig(
        run_id=RunId("sleepers"),
        columns=8,
        train_sequences=10**12,
        max_rounds=swarm.rounds,
        min_workers=1,
        gather_s=0.0,
        heartbeat_interval_s=5.0,
        min_lease_s=5.0,
        validate_every=0,
        checkpoint_every=0,
        audits=AuditConfig(budget=float(swarm.workers)),
        inner=InnerRecipe(inner_steps=30, batch_sequences=16),
    )
