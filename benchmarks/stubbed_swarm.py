"""A swarm whose training is stubbed, under the real engine in virtual time: what auditors find, and who lies, is data.

Decides when each worker asks, finishes, vanishes and lies, from the swarm's seed; touches nothing. It is played by
`benchmarks.sleepers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from coordinator.engine.commands import (
    AggregateRound,
    CancelLease,
    Command,
    CompareSubmissions,
    GrantLease,
    MeasureSubmission,
    ReplayLease,
    SlowCommand,
)
from coordinator.engine.config import AuditConfig, EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    LeaseRequested,
    RunCreated,
    SubmissionUploaded,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.pacing import norm_scale
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, RunId, WorkerId, digest_of
from protocol.lease import Lease
from simulator.seeds import derived_seed, derived_stream
from simulator.virtual.canned import canned_commit, canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

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
    max_columns: int = 0
    away: bool = False
    lease_id: LeaseId | None = None
    audited: int = 0
    """Leases of its, of those rounds in which sleepers are awake, of which an auditor has spoken."""
    done: int = 0
    """Leases of its that were judged in those rounds."""
    found: int = 0
    """Round of the first lie that an auditor told; 0: none."""
    banned: int = 0
    """Round in which the engine banned it; 0: never."""
    weighed_after: int = 0
    """Submissions that weighed something in a round that was aggregated after it was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StubbedSwarm:
    """What a run is made of."""

    seed: int
    rounds: int
    workers: int = 16
    founders: int = 1
    """Trusted ones among them, honest: auditors besides the coordinator."""
    budget: float = 16.0
    """Leases' work that audits may take a round."""
    sleepers: int = 0
    lie: str = ""
    share: float = 1.0
    dropout: float = 0.0
    fastest: float = 1.0
    """Times as fast as the slowest."""
    mixed_cuts: bool = False
    """Some hold half of the columns, some two, and the others all."""
    distances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What an auditor finds of honest leases (`honest`), and of each lie."""


class AuditedLoop(EngineLoop):
    """One engine and its stubbed workers, in virtual time."""

    def __init__(self, swarm: StubbedSwarm) -> None:
        self._swarm = swarm
        self._leases: dict[LeaseId, GrantedLease] = {}
        self._audited: set[LeaseId] = set()
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
                    max_columns=one.max_columns,
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
        scale = 1.0
        match command:
            case MeasureSubmission(lease=lease):
                scale = self._length(lease)
                self.workers[lease.worker].done += lease.round > SLEPT
            case AggregateRound():
                self._weigh(command)
        self.apply(canned_result(command, self.now_s, norm_l2=lambda: scale, distance=self._distance))
        if isinstance(command, ReplayLease | CompareSubmissions):
            self._note_ban(self.workers[command.lease.worker])

    def _length(self, lease: GrantedLease) -> float:
        """Of what an honest worker sends: it grows with the steps."""
        config = self.engine.state.config
        at_rate = config.inner.learning_rate / lease.recipe.learning_rate
        chance = derived_stream(self._swarm.seed, "norm", lease.lease_id)
        return at_rate / norm_scale(config, lease) * math.exp(chance.gauss(0.0, 0.1))

    def _weigh(self, command: AggregateRound) -> None:
        for one in command.contributions:
            if one.worker is not None and one.weight > 0.0:
                worker = self.workers[one.worker]
                worker.weighed_after += 0 < worker.found < self._leases[one.lease_id].round

    def _note_ban(self, one: StubbedWorker) -> None:
        if not one.banned and self.engine.state.workers[one.worker].ban is not None:
            one.banned = self.engine.state.round.round

    def _distance(self, lease: Lease) -> float:
        """What an auditor of `lease` finds."""
        granted = self._leases[lease.lease_id]
        one, chance = self.workers[granted.worker], derived_stream(self._swarm.seed, "distance", lease.lease_id)
        kind = one.lies if self._lies(one, granted) else "honest"
        distance = chance.choice(self._swarm.distances[kind])
        if lease.lease_id not in self._audited:
            self._audited.add(lease.lease_id)
            one.audited += lease.round > SLEPT
        if kind != "honest" and distance > self.engine.state.config.audits.tolerance:
            one.found = one.found or lease.round
        return distance

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
        committed = canned_commit(lease, self.now_s, train_s, payload_bytes=1000)
        digest = committed.digest
        uploaded = SubmissionUploaded(at_s=self.now_s, worker=one.worker, lease_id=lease.lease_id, digest=digest)
        for event in (committed, uploaded):
            try:
                self.apply(event)
            except IllegalEvent:
                break  # its lease ended meanwhile
        self.agenda.after(AGAIN_S, partial(self._ask, one))


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
                max_columns=draw.choice((0, 2, 4)) if swarm.mixed_cuts and number >= swarm.sleepers else 0,
            )
        )
    return made


def _config(swarm: StubbedSwarm) -> EngineConfig:
    return EngineConfig(
        run_id=RunId("sleepers"),
        columns=8 if swarm.mixed_cuts else 1,
        train_sequences=10**12,
        max_rounds=swarm.rounds,
        min_workers=1,
        gather_s=0.0,
        heartbeat_interval_s=30.0 if swarm.dropout == 0.0 else 5.0,
        min_lease_s=5.0,
        validate_every=0,
        checkpoint_every=0,
        audits=AuditConfig(budget=swarm.budget),
        inner=InnerRecipe(inner_steps=30, batch_sequences=16),
    )
