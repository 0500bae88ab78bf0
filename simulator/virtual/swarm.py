"""A swarm in one process: the real engine, journal, executor and training, under a clock that only events move.

Decides when each simulated volunteer asks, finishes, uploads, vanishes and returns, from its speed, its uplink and the
simulation's seed; everything else is the product's own code. No sockets, no threads and no waiting, so a swarm costs
what its training costs, and the same seed on the same machine gives the same weights. Touches one run folder, as a
coordinator does: an interrupted run goes on from its journal, and leases that were in training are trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.engine.commands import (
    AnnounceVerdict,
    CancelLease,
    Command,
    DropPayload,
    EndRun,
    GrantLease,
    OpenResiduals,
    SlowCommand,
)
from coordinator.engine.events import (
    Event,
    LeaseRequested,
    ResidualOpened,
    SubmissionCommitted,
    SubmissionUploaded,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.records import event_to_json
from coordinator.run.clock import Clocks
from coordinator.run.opened import OpenedRun
from protocol.errors import IllegalEvent, LocalError
from protocol.ids import Digest, LeaseId, Version, WorkerId
from protocol.lease import Lease
from protocol.submission import Blocks
from simulator.adversaries.adversary import Adversary
from simulator.adversaries.attack import Delivery
from simulator.arithmetic import EVERYBODYS_ARITHMETIC
from simulator.seeds import derived_stream
from simulator.virtual.colluding import Group
from simulator.virtual.encoding import Encodings
from simulator.virtual.engine_loop import Agenda, EngineLoop
from simulator.virtual.volunteer import Volunteer
from worker.train.residuals import Coded
from worker.train.trainer import LeaseResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

STILL = Clocks(machine=lambda: 0.0, wall=lambda: 0.0)
"""To open a run with: the engine's time is the latest of all events, and the swarm's events carry it."""
ASKS_AGAIN_S = 0.1
"""Between the end of one lease and the question for the next."""
COORDINATOR = WorkerId("")
"""As whom the coordinator trains when it computes a lease again."""
LOOKS_AGAIN_S = 1.0
"""How often somebody who means to be late looks whether the round has closed."""
EXECUTION_S = 0.1
"""Virtual time that a slow command takes."""


class Training(Protocol):
    """What becomes of a lease: `PureLeases` (inner.py), or a variant that an experiment compares it with."""

    def __call__(self, worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        """Train `lease` from the blocks of its base version."""


@dataclass(slots=True)
class _Machine:
    """What a volunteer is doing."""

    volunteer: Volunteer
    here: bool = False
    """Whether it has come."""
    away: bool = False
    lease_id: LeaseId | None = None
    uploading: set[LeaseId] = field(default_factory=set)


class VirtualSwarm(EngineLoop):
    """One run, played to its end by `play`, or moment by moment by `advance`. Owns the clock, not the run."""

    def __init__(
        self,
        run: OpenedRun,
        volunteers: Sequence[Volunteer],
        training: Training,
        *,
        seed: int,
        colluders: Mapping[WorkerId, Adversary] | None = None,
        on_verdict: Callable[[AnnounceVerdict], None] = lambda _verdict: None,
    ) -> None:
        """`colluders`: volunteers who lie, and see what the others of them have (colluding.py).

        `on_verdict` is told what workers are told of their submissions.
        """
        super().__init__(run.engine, Agenda(run.engine.state.now_s))
        self._run = run
        self._group = Group(colluders or {})
        self._training = training
        self._on_verdict = on_verdict
        self._seed = seed
        self._machines = {volunteer.worker: _Machine(volunteer) for volunteer in volunteers}
        self._encodings = Encodings()
        self._bases: dict[Version, Blocks] = {}
        run.executor.replay = self._replayed
        self.trained_sequences = 0
        """Sequences of all leases that were trained to their end, whether or not they came to count."""
        self._begin()

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.engine.state.phase is Phase.OVER

    def play(self, on_version: Callable[[Version], None] = lambda _version: None) -> None:
        """Until the run is over; told of each newly published version."""
        version = self.engine.state.version
        while not self.is_over:
            self.advance()
            if self.engine.state.version != version:
                version = self.engine.state.version
                on_version(version)

    # ---- the coordinator's side -------------------------------------------------------------------

    def _begin(self) -> None:
        for command in self.engine.pending:
            self.agenda.after(EXECUTION_S, partial(self._execute, command))
        self._enrol_who_comes()
        for record in self.engine.state.leases.values():
            if record.status is LeaseStatus.COMMITTED and record.digest and self._run.store.payloads.has(record.digest):
                self._go_on_uploading(record.lease, record.digest)
        self.agenda.after(0.0, self._beat)

    def _enrol_who_comes(self) -> None:
        """Those whose round it is, and at the beginning of a process everybody who is there already."""
        for machine in self._machines.values():
            volunteer = machine.volunteer
            if machine.here or volunteer.from_round > self.engine.state.round.round:
                continue
            machine.here = True
            if volunteer.worker not in self.engine.state.workers:
                self.apply(
                    WorkerEnrolled(
                        at_s=self.now_s,
                        worker=volunteer.worker,
                        name=volunteer.name,
                        trusted=volunteer.trusted,
                        owner=volunteer.owner,
                        max_columns=volunteer.max_columns,
                        tokens_per_s=1.0 / volunteer.step_s,
                    )
                )
            self.agenda.after(0.0, partial(self._ask, machine))

    def _go_on_uploading(self, lease: GrantedLease, digest: Digest) -> None:
        """An earlier process had it committed: training it again could end in other bits on some devices."""
        machine = self._machines[lease.worker]
        machine.uploading.add(lease.lease_id)
        self.agenda.after(machine.volunteer.upload_s, lambda: self._uploaded(machine, lease, digest))

    def handle(self, event: Event) -> list[Command]:
        """As the pump does: durable, then applied."""
        self._run.journal.append([event_to_json(event)])
        try:
            return self.engine.handle(event)
        except IllegalEvent:
            return []  # it is skipped again at every replay

    def carry_out(self, command: Command) -> None:
        """What the pump would dispatch or have executed."""
        match command:
            case GrantLease(lease=lease):
                self._start(self._machines[lease.worker], lease)
            case CancelLease(worker=worker, lease_id=lease_id):
                self._stop(self._machines[worker], lease_id)
            case AnnounceVerdict(worker=worker):
                self._group.told(worker, accepted=command.accepted)
                self._on_verdict(command)
            case DropPayload(digest=digest):
                self._run.store.drop_payload(digest)
            case OpenResiduals(worker=worker):
                machine = self._machines[worker]
                self.agenda.after(machine.volunteer.upload_s, partial(self._open_residuals, worker))
            case SlowCommand():
                self.agenda.after(EXECUTION_S, lambda: self._execute(command))
            case EndRun():
                self.agenda.clear()
            case _:
                pass

    def _execute(self, command: SlowCommand) -> None:
        if self.engine.is_pending(command.command_id):
            self.apply(self._run.executor.execute(command))

    # ---- the volunteers' side ---------------------------------------------------------------------

    def _beat(self) -> None:
        self._enrol_who_comes()
        for worker, machine in self._machines.items():
            if machine.here and not machine.away:
                self.engine.handle(WorkerSeen(at_s=self.now_s, worker=worker, lease_id=machine.lease_id))
        self.agenda.after(self.engine.state.config.heartbeat_interval_s, self._beat)

    def _ask(self, machine: _Machine) -> None:
        if machine.away or machine.lease_id is not None or machine.uploading:
            return
        self.apply(LeaseRequested(at_s=self.now_s, worker=machine.volunteer.worker))

    def _start(self, machine: _Machine, lease: GrantedLease) -> None:
        if machine.away or machine.lease_id == lease.lease_id:
            return
        machine.lease_id = lease.lease_id
        if self._group.conduct(lease).delivery is Delivery.NEVER:
            return  # it says that it is at it, until the lease is taken from it
        train_s = lease.inner_steps * machine.volunteer.step_s
        chance = derived_stream(self._seed, "dropout", lease.lease_id, machine.volunteer.name)
        if chance.random() < machine.volunteer.dropout:
            after_s = chance.random() * train_s
            self.agenda.after(after_s, lambda: self._vanish(machine, lease, train_s - after_s))
        else:
            self.agenda.after(train_s, lambda: self._commit(machine, lease))

    def _stop(self, machine: _Machine, lease_id: LeaseId) -> None:
        machine.uploading.discard(lease_id)
        if machine.lease_id == lease_id:
            machine.lease_id = None
        self.agenda.after(ASKS_AGAIN_S, lambda: self._ask(machine))

    def _vanish(self, machine: _Machine, lease: GrantedLease, left_s: float) -> None:
        if machine.lease_id != lease.lease_id:
            return
        machine.away, machine.lease_id = True, None
        # back when the lease would have ended, or when it has been given up, whichever is later
        given_up_s = silence_limit_s(self.engine.state.config)
        self.agenda.after(max(given_up_s, left_s), lambda: self._return(machine))

    def _return(self, machine: _Machine) -> None:
        machine.away = False
        self._ask(machine)

    def _commit(self, machine: _Machine, lease: GrantedLease) -> None:
        if machine.lease_id != lease.lease_id:
            return  # cancelled meanwhile: nothing needs to be trained
        machine.lease_id = None
        result, made = self._trained(lease)
        digest = self._run.store.payloads.put(made.payload)
        machine.uploading.add(lease.lease_id)
        self.apply(
            SubmissionCommitted(
                at_s=self.now_s,
                worker=lease.worker,
                lease_id=lease.lease_id,
                digest=digest,
                payload_bytes=len(made.payload),
                codec=lease.codec,
                residuals_in=made.began,
                residuals_out=made.left,
                residuals_back=made.back,
                inner_steps_done=result.metrics.inner_steps_done,
                train_loss_first=result.metrics.loss_first,
                train_loss_last=result.metrics.loss_last,
                train_s=lease.inner_steps * machine.volunteer.step_s,
                micro_batch=result.metrics.micro_batch,
                arithmetic=str(EVERYBODYS_ARITHMETIC),
            )
        )
        self._send(machine, lease, digest)

    def _send(self, machine: _Machine, lease: GrantedLease, digest: Digest) -> None:
        upload = partial(self._uploaded, machine, lease, digest)
        match self._group.conduct(lease).delivery:
            case Delivery.LATE if self.engine.state.round.round <= lease.round and not self.is_over:
                self.agenda.after(LOOKS_AGAIN_S, partial(self._send, machine, lease, digest))
            case Delivery.WITHHELD:
                self.agenda.after(machine.volunteer.upload_s, partial(self._stop, machine, lease.lease_id))
            case _:
                self.agenda.after(machine.volunteer.upload_s, upload)

    def _uploaded(self, machine: _Machine, lease: GrantedLease, digest: Digest) -> None:
        if lease.lease_id in machine.uploading:
            machine.uploading.discard(lease.lease_id)
            self.apply(SubmissionUploaded(at_s=self.now_s, worker=lease.worker, lease_id=lease.lease_id, digest=digest))
        self.agenda.after(ASKS_AGAIN_S, lambda: self._ask(machine))

    def _open_residuals(self, worker: WorkerId) -> None:
        """What audits ask of it, and it has."""
        for lease_id, content in self._encodings.asked(self.engine.state, worker):
            digest = self._run.store.payloads.put(content)
            self.apply(ResidualOpened(at_s=self.now_s, worker=worker, lease_id=lease_id, digest=digest))

    def _trained(self, lease: GrantedLease) -> tuple[LeaseResult, Coded]:
        round_leases = [record.lease for record in self.engine.state.leases_of_round()]
        result = self._group.answer(lease, round_leases, self._honest)
        self.trained_sequences += lease.sequences
        return result, self._encodings.coded(lease.worker, lease, result.pseudo_gradient)

    def _honest(self, lease: GrantedLease) -> LeaseResult:
        """What its holder computes before it lies, if it does."""
        data, length = lease.data, self._run.settings.sequence_length
        sequences_NL = self._run.dataset.sequences(data.seed, data.start, data.count, length).astype("int64")
        worked_on, sequences_NL = self._group.worked_on(lease, sequences_NL)
        return self._training(lease.worker, worked_on, self._base(lease), sequences_NL)

    def _replayed(
        self, lease: Lease, base: Blocks, sequences_NL: NDArray[Any], micro_batch: int, wanted: str
    ) -> tuple[Blocks, str]:
        """The coordinator's own: what whoever does not lie comes to, from the lease alone."""
        del micro_batch, wanted  # everybody here has the same machine
        return self._training(COORDINATOR, lease, base, sequences_NL).pseudo_gradient, str(EVERYBODYS_ARITHMETIC)

    def _base(self, lease: Lease) -> Blocks:
        """What a worker would have of its lease's version, held or not."""
        version, versions = lease.base_version, self._run.versions
        digest = versions.manifest_digest(version)
        if digest is None:
            raise LocalError(f"base version {version} is not kept")
        if version not in self._bases:
            oldest = min([version, *(lease.lease.base_version for lease in self.engine.state.leases.values())])
            self._bases = {kept: blocks for kept, blocks in self._bases.items() if kept >= oldest}
            self._bases[version] = versions.load_blocks(versions.manifest(digest))
        return {**self._bases[version], **versions.stand_ins(versions.manifest(digest), lease)}
