"""A swarm of names and a hand-wound clock: what the engine's tests speak in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import (
    AggregateRound,
    Command,
    CompareSubmissions,
    Contribution,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    ReplayLease,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.config import EngineConfig, InnerRecipe, ScreeningConfig
from coordinator.engine.engine import Engine
from coordinator.engine.index import Index
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import Phase
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.tally import RoundTally
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import IllegalEvent
from protocol.ids import Digest, LeaseId, RunId, WorkerId, digest_of
from protocol.lease import AS_PUBLISHED, FrozenColumns
from simulator.arithmetic import EVERYBODYS_ARITHMETIC
from simulator.virtual.canned import compared_as
from simulator.virtual.engine_loop import Agenda, EngineLoop

C = TypeVar("C")
SECRET = b"a secret of the tests"
MACHINE, CONTENT = ev.CommandTrouble.MACHINE, ev.CommandTrouble.CONTENT
MOST_RECORDS_CHECKED = 40
"""A check of everything after each event is for small swarms."""


def small_config(**changes: Any) -> EngineConfig:
    """Four columns, recipes of 8 steps, no gathering, everything quick to reach by hand."""
    inner = changes.pop("inner", InnerRecipe(inner_steps=8, batch_sequences=4))
    screening = changes.pop("screening", ScreeningConfig())
    base = EngineConfig(
        run_id=RunId("run"),
        columns=4,
        train_sequences=10_000,
        max_rounds=3,
        gather_s=0.0,
        round_deadline_s=600.0,
        lease_ttl_s=120.0,
        min_lease_s=10.0,
        checkpoint_every=2,
        most_steps_share=1.0,  # what fast workers do beyond the recipe has its own tests
        inner=inner,
        screening=screening,
    )
    return replace(base, **changes)


class Swarm(EngineLoop):
    """Drives one engine with a virtual clock, and keeps the journal that a pump would have kept."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.secret = SECRET
        self.created = ev.RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"v0")
        )
        engine, commands = Engine.create(self.created, SECRET)
        super().__init__(engine, Agenda())
        assert self.engine.due(0.0) == []  # the first question of a process; nobody is there to be greeted
        self.journal: list[ev.Event] = []
        self.log: list[Command] = list(commands)
        self.text = SnapshotText()

    # ---- plumbing

    @property
    def now_s(self) -> float:
        return self.agenda.now_s

    @now_s.setter
    def now_s(self, now_s: float) -> None:
        """A clock that is set, back or forth, and no timer runs out."""
        self.agenda.now_s = now_s

    def handle(self, event: ev.Event) -> list[Command]:
        if not isinstance(event, ev.WorkerSeen):
            self.journal.append(event)
        before = self.engine.snapshot()
        try:
            commands = self.engine.handle(event)
        except IllegalEvent:
            assert self.engine.snapshot() == before, "an illegal event changed the state"
            self.check_index()
            raise
        self.check_index()
        self.check_text()
        self.log += commands
        return commands

    def check_index(self) -> None:
        """What the engine kept up to date is what looking at the whole state anew gives."""
        state = self.engine.state
        kept, anew = described(state.index, state.now_s), described(state.indexed(), state.now_s)
        assert kept == anew

    def check_text(self) -> None:
        """A snapshot that is written from texts kept since the last event says what the whole state says."""
        if self.engine.state.records > MOST_RECORDS_CHECKED:
            return
        written = "".join(self.text.pieces(self.engine.state))
        assert written == json.dumps(self.engine.snapshot(), separators=(",", ":"))

    def at(self, now_s: float) -> Swarm:
        """Move the clock, letting the pump's part happen on the way."""
        self.wind_to(now_s)
        return self

    def after(self, seconds: float) -> Swarm:
        return self.at(self.now_s + seconds)

    def replayed(self) -> Engine:
        """What a restart would read from the journal."""
        engine, _ = Engine.create(self.created, SECRET)
        for event in self.journal:
            try:
                engine.handle(event)
            except IllegalEvent:
                continue
        return engine

    # ---- workers

    def enrol(
        self,
        *names: str,
        columns: int = 0,
        speed: float = 0.0,
        owner: str = "",
        trusted: bool = False,
        invite: str = "",
        sibling_of: str | None = None,
    ) -> None:
        for name in names:
            self.handle(
                ev.WorkerEnrolled(
                    at_s=self.now_s,
                    worker=WorkerId(name),
                    name=name,
                    trusted=trusted,
                    max_columns=columns,
                    tokens_per_s=speed,
                    owner=owner,
                    invite=invite,
                    sibling_of=None if sibling_of is None else WorkerId(sibling_of),
                )
            )

    def ask(self, *names: str, wait_s: float | None = None) -> list[Command]:
        found: list[Command] = []
        for name in names:
            found += self.handle(ev.LeaseRequested(at_s=self.now_s, worker=WorkerId(name), wait_s=wait_s))
        return found

    def join(self, *names: str, **how: Any) -> None:
        self.enrol(*names, **how)
        self.ask(*names)

    def beat(self, *names: str) -> None:
        for name in names:
            assert self.handle(ev.WorkerSeen(at_s=self.now_s, worker=WorkerId(name))) == []

    def silent(self, name: str) -> list[Command]:
        """As if the worker had not been heard since its last journalled event, for as long as it takes."""
        worker = WorkerId(name)
        last_s = self.engine.state.workers[worker].heard_at_s
        return self.handle(ev.WorkerSilent(at_s=self.now_s, worker=worker, last_seen_at_s=last_s))

    def give_back(self, name: str, reason: str = "leaving") -> list[Command]:
        lease_id = self.lease(name).lease_id
        return self.handle(ev.LeaseReturned(at_s=self.now_s, worker=WorkerId(name), lease_id=lease_id, reason=reason))

    def commit(self, name: str, lease: GrantedLease | None = None, **changes: Any) -> list[Command]:
        lease = lease or self.lease(name)
        fields: dict[str, Any] = {
            "digest": self.digest(lease.lease_id),
            "payload_bytes": 1000,
            "codec": "fp32",
            "inner_steps_done": lease.inner_steps,
            "train_loss_first": 5.0,
            "train_loss_last": 4.0,
            "train_s": max(0.1, self.now_s - lease.granted_at_s),
            "micro_batch": 1,
            "arithmetic": str(EVERYBODYS_ARITHMETIC),
        }
        return self.handle(
            ev.SubmissionCommitted(
                at_s=self.now_s, worker=WorkerId(name), lease_id=lease.lease_id, **{**fields, **changes}
            )
        )

    def upload(self, name: str, lease: GrantedLease | None = None, digest: Digest | None = None) -> list[Command]:
        lease = lease or self.lease(name)
        digest = digest or self.digest(lease.lease_id)
        return self.handle(
            ev.SubmissionUploaded(at_s=self.now_s, worker=WorkerId(name), lease_id=lease.lease_id, digest=digest)
        )

    def submit(self, *names: str, **measured: Any) -> list[Command]:
        """Commit, upload and have measured."""
        found: list[Command] = []
        for name in names:
            lease = self.lease(name)
            found += self.commit(name, lease) + self.upload(name, lease) + self.measured(lease.lease_id, **measured)
        return found

    # ---- results of slow work

    def measured(
        self,
        lease_id: str,
        *,
        gain: float = 0.05,
        se: float = 0.0,
        full: float = 0.0,
        own: float | None = None,
        spread: float = 0.0,
        norm: float = 1.0,
        malformed: str = "",
        **norms: float,
    ) -> list[Command]:
        lease = self.record(lease_id).lease
        rate = lease.recipe.learning_rate / self.config.inner.learning_rate  # honest norms follow it
        return self.handle(
            ev.SubmissionMeasured(
                at_s=self.now_s,
                command_id=f"measure:{lease_id}",
                lease_id=LeaseId(lease_id),
                malformed=malformed,
                norms=()
                if malformed
                else tuple(ev.BlockNorm(block=b, norm_l2=norms.get(b, norm) * rate) for b in lease.blocks),
                heldout_gain=gain,
                part_spread=spread,
                heldout_gain_se=se,
                full_gain=full,
                own_gain=own,
            )
        )

    def aggregated(
        self, gain: float = 0.01, best: float | None = None, frozen: FrozenColumns = AS_PUBLISHED
    ) -> list[Command]:
        """With a version that is better by `gain` than its parent, and by `best` than the best of late."""
        command = self.waiting_for(AggregateRound)
        return self.handle(
            ev.RoundAggregated(
                at_s=self.now_s,
                command_id=command.command_id,
                round=command.round,
                version=command.version,
                parent_version=command.parent_version,
                manifest=digest_of(f"v{command.version}".encode()),
                update_norm_l2=1.5,
                compared=tuple(
                    replace(one, gain=gain if place == 0 or best is None else best)
                    for place, one in enumerate(compared_as(command, gain=gain))
                ),
                frozen=frozen,
            )
        )

    def rebuilt(self, change_l2: float = 1.0, frozen: FrozenColumns = AS_PUBLISHED) -> list[Command]:
        command = self.waiting_for(RebuildVersion)
        return self.handle(
            ev.VersionRebuilt(
                at_s=self.now_s,
                command_id=command.command_id,
                version=command.version,
                parent_version=command.parent_version,
                manifest=digest_of(f"rebuilt v{command.version}".encode()),
                change_l2=change_l2,
                frozen=frozen,
            )
        )

    def validated(self) -> list[Command]:
        command = self.waiting_for(ValidateVersion)
        return self.handle(
            ev.VersionValidated(
                at_s=self.now_s, command_id=command.command_id, version=command.version, val_loss=3.0, val_loss_se=0.01
            )
        )

    def exported(self) -> list[Command]:
        command = self.waiting_for(WriteCheckpoint)
        return self.handle(
            ev.CheckpointWritten(
                at_s=self.now_s, command_id=command.command_id, version=command.version, path=f"v{command.version}"
            )
        )

    def failed(self, command_id: str, error: str = "disk full", trouble: ev.CommandTrouble = MACHINE) -> list[Command]:
        return self.handle(ev.CommandFailed(at_s=self.now_s, command_id=command_id, error=error, trouble=trouble))

    def tried(self, *failed: str, lost: bool = False) -> list[Command]:
        """Those leases' submissions fail alone."""
        command = self.waiting_for(TryContributions)
        alone = tuple(ev.FailedAlone(lease_id=LeaseId(lease_id), error="0 / 0", lost=lost) for lease_id in failed)
        return self.handle(
            ev.ContributionsTried(
                at_s=self.now_s, command_id=command.command_id, round=command.attempt.round, failed=alone
            )
        )

    def audited(
        self, lease_id: str, distance: float = 0.0, error: str = "", arithmetic: str | None = None
    ) -> list[Command]:
        """The coordinator's own answer to the audit of that lease."""
        return self._audited(f"replay:{lease_id}", lease_id, None, distance, error, arithmetic)

    def compared(self, auditor: str, distance: float = 0.0, error: str = "") -> list[Command]:
        """What comes of holding the auditor's latest lease, which is a shadow, against the one that it audits."""
        lease = self.lease(auditor)
        assert lease.audits is not None
        return self._audited(f"compare:{lease.lease_id}", lease.audits, WorkerId(auditor), distance, error)

    def answer_audits(self, error: str = "") -> None:
        """All of the coordinator's own audits that are pending find the same, or fail with `error`."""
        for command in [one for one in self.engine.pending if isinstance(one, ReplayLease)]:
            self.answer(command, error=error)

    def answer(
        self, command: ReplayLease | CompareSubmissions, distance: float = 0.0, error: str = ""
    ) -> list[Command]:
        """What comes of an audit that is pending."""
        auditor = command.again.worker if isinstance(command, CompareSubmissions) else None
        return self._audited(command.command_id, command.lease.lease_id, auditor, distance, error)

    def _audited(
        self,
        command_id: str,
        lease_id: str,
        auditor: WorkerId | None,
        distance: float,
        error: str,
        arithmetic: str | None = None,
    ) -> list[Command]:
        return self.handle(
            ev.LeaseReplayed(
                at_s=self.now_s,
                command_id=command_id,
                lease_id=LeaseId(lease_id),
                auditor=auditor,
                trunk=distance,
                columns=distance / 2,
                arithmetic=str(EVERYBODYS_ARITHMETIC) if arithmetic is None else arithmetic,
                error=error,
            )
        )

    def send(self, *names: str) -> list[Command]:
        """Commit and upload, and leave the rest to the coordinator."""
        found: list[Command] = []
        for name in names:
            lease = self.lease(name)
            found += self.commit(name, lease) + self.upload(name, lease)
        return found

    def harm_found(self, *harmful: str, suspected: tuple[str, ...] = ()) -> list[Command]:
        """Those leases' submissions make the model worse."""
        command = self.waiting_for(FindHarmful)
        return self.handle(
            ev.HarmfulFound(
                at_s=self.now_s,
                command_id=command.command_id,
                round=command.attempt.round,
                harmful=tuple(map(LeaseId, harmful)),
                suspected=tuple(map(LeaseId, suspected)),
                passes=8,
            )
        )

    def tick(self) -> list[Command]:
        return self.handle(ev.Ticked(at_s=self.now_s))

    def stop(self, reason: str = "enough") -> list[Command]:
        return self.handle(ev.RunStopped(at_s=self.now_s, reason=reason))

    def do_slow_work(self) -> None:
        """Carry out everything that is pending, well."""
        while self.engine.pending:
            command = self.engine.pending[0]
            if isinstance(command, MeasureSubmission):
                self.measured(command.lease.lease_id)
            elif isinstance(command, AggregateRound):
                self.aggregated()
            elif isinstance(command, TryContributions):
                self.tried()
            elif isinstance(command, RebuildVersion):
                self.rebuilt()
            elif isinstance(command, ReplayLease | CompareSubmissions):
                self.answer(command)
            elif isinstance(command, FindHarmful):
                self.harm_found()
            elif isinstance(command, ValidateVersion):
                self.validated()
            else:
                self.exported()

    # ---- looking

    @property
    def phase(self) -> Phase:
        return self.engine.state.phase

    @property
    def round(self) -> int:
        return self.engine.state.round.round

    def record(self, lease_id: str) -> LeaseRecord:
        return self.engine.state.leases[LeaseId(lease_id)]

    def leases(self, name: str) -> list[LeaseRecord]:
        return [r for r in self.engine.state.leases.values() if r.lease.worker == name]

    def lease(self, name: str) -> GrantedLease:
        """The latest lease of a worker."""
        return self.leases(name)[-1].lease

    def waiting_for(self, kind: type[C]) -> C:
        return next(command for command in self.engine.pending if isinstance(command, kind))

    def contributions(self) -> Sequence[Contribution]:
        """What the round that is being aggregated is made of."""
        return self.waiting_for(AggregateRound).contributions

    def reasons(self) -> dict[str, str]:
        return {wait.subject: wait.reason for wait in self.engine.explain(self.now_s)}

    @staticmethod
    def digest(lease_id: str) -> Digest:
        return digest_of(f"payload of {lease_id}".encode())


def described(index: Index, now_s: float) -> dict[str, Any]:
    """An index as plain values, to compare two."""
    speeds, tally = index.speeds, index.tally
    return {
        "tally": {name: getattr(tally, name) for name in RoundTally.__slots__},
        "in order": list(tally.leases),
        "leases of": {worker: list(index.leases_of(worker)) for worker in index.places},
        "resting": index._resting_on,
        "audits": (set(index.open_audits), index._shadows),
        "open": index.open_leases,
        "deadlines": {key: index.deadlines.moment_s(key) for key in index.deadlines},
        "next deadline": (index.deadlines.earliest() or (None,))[0],
        "quarantines": {key: index.quarantines.moment_s(key) for key in index.quarantines},
        "cooling": {key for key in index.cooling if index.cooling.moment_s(key) > now_s},
        "machines": index.machines,
        "queue": index.queue,
        "sets": (index.present, index.idle, index.idle_fresh, index.free, index.measuring, index.places),
        "speeds": {name: getattr(speeds, name) for name in speeds.__slots__ if not name.startswith("_reference")},
        "reference": (speeds.reference_step_s, speeds.reference_end_s, speeds.least_step_s),
    }


def of(kind: type, commands: Sequence[Command]) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


@pytest.fixture
def swarm() -> Callable[..., Swarm]:
    return lambda **changes: Swarm(small_config(**changes))


@pytest.fixture
def pick() -> Callable[[type, Sequence[Command]], list[Any]]:
    """Commands of one kind."""
    return of
