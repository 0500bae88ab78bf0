"""What the engine knows: frozen records in a few dictionaries, and nothing that a replay of the journal would not give.

Records are replaced, never changed, so `EngineState.copy` is shallow and an event is applied to a copy that takes the
state's place only when nothing was raised. Heartbeats live elsewhere (presence.py) on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, fields, replace

from coordinator.engine.commands import SlowCommand
from coordinator.engine.config import EngineConfig
from coordinator.engine.events import BlockNorm
from coordinator.engine.lease import Lease
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus, Phase, move_lease, move_phase
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """How long one lease took, from journalled facts alone."""

    steps: int
    train_s: float
    """As the worker says, at most `wall_s`."""
    wall_s: float
    """From grant to commit, by the coordinator's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Set aside until the earlier of the two ends."""

    until_round: RoundNumber
    until_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One enrolled worker."""

    worker: WorkerId
    name: str
    trusted: bool
    max_columns: int
    tokens_per_s: float
    heard_at_s: float
    """Last journalled event from it."""
    present: bool = True
    waiting_since_s: float | None = None
    waits_until_s: float | None = None
    """None while waiting: until it does something else."""
    reports: tuple[SpeedReport, ...] = ()
    held_round: RoundNumber | None = None
    held_columns: tuple[int, ...] = ()
    """Columns of its latest lease, and that lease's round."""
    cooling_until_s: float = 0.0
    """After losing more than one lease in a round: no busy circle of leases handed back."""
    rejected_in_row: int = 0
    quarantine: Quarantine | None = None
    leases_granted: int = 0
    leases_expired: int = 0
    leases_returned: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason key to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judgement of one submission: a stable key for counting, and words with numbers for people."""

    accepted: bool
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A lease and what became of it."""

    lease: Lease
    status: LeaseStatus = LeaseStatus.GRANTED
    regrants: int = 0
    digest: Digest | None = None
    payload_bytes: int = 0
    codec: str = ""
    committed_at_s: float | None = None
    train_loss_first: float = 0.0
    train_loss_last: float = 0.0
    norms: tuple[BlockNorm, ...] = ()
    """At the common number of steps."""
    heldout_gain: float = 0.0
    heldout_gain_se: float = 0.0
    verdict: Verdict | None = None
    ended: str = ""
    """Why it expired or was returned."""
    counted_in: RoundNumber | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """The round that is open, or being aggregated."""

    round: RoundNumber
    base_version: Version
    opened_at_s: float
    gathered_at_s: float | None = None
    """When enough workers were first waiting."""
    first_lease_at_s: float | None = None
    settled_at_s: float | None = None
    """When every column had its quorum, or nobody left who could bring it."""
    grace_until_s: float | None = None
    spare_wait_until_s: float | None = None
    """A column is short and somebody who could serve it has yet to ask: so long is waited."""
    next_lease: int = 1
    sticky: dict[WorkerId, tuple[int, ...]] = field(default_factory=dict)
    """Who held which columns in the round before."""
    redrawn: dict[int, tuple[WorkerId, ...]] = field(default_factory=dict)
    """Who is to leave each column's replica set this round."""
    accepted: int = 0
    rejected: int = 0
    expired: int = 0
    returned: int = 0
    gains: tuple[float, ...] = ()
    """Held-out gains of what was accepted this round, for the running median."""
    close_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A closed round."""

    round: RoundNumber
    base_version: Version
    version: Version | None
    """None: nothing acceptable came, the blocks are unchanged."""
    opened_at_s: float
    closed_at_s: float
    accepted: int
    rejected: int
    expired: int
    returned: int
    late_used: int
    """Accepted submissions of earlier rounds that counted here."""
    update_norm_l2: float | None
    val_loss: float | None
    val_loss_se: float | None
    close_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Held-out loss of one version."""

    version: Version
    val_loss: float
    val_loss_se: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An exported version."""

    version: Version
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A pending command that could not be carried out so far."""

    count: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters over the whole run."""

    leases_granted: int = 0
    leases_expired: int = 0
    leases_returned: int = 0
    spares: int = 0
    submissions_accepted: int = 0
    submissions_rejected: dict[str, int] = field(default_factory=dict)
    """Reason key to count."""


@dataclass(slots=True, kw_only=True)
class EngineState:
    """Everything that a journal's replay gives."""

    engine_version: int
    config: EngineConfig
    now_s: float
    phase: Phase
    version: Version
    manifest: Digest
    round: RoundState
    workers: dict[WorkerId, WorkerRecord] = field(default_factory=dict)
    leases: dict[LeaseId, LeaseRecord] = field(default_factory=dict)
    pending: dict[str, SlowCommand] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    norm_history: dict[BlockId, tuple[float, ...]] = field(default_factory=dict)
    data_epoch: int = 0
    next_sequence: int = 0
    """First position, in this epoch's permutation, that no lease has named yet."""
    totals: Totals = field(default_factory=Totals)
    history: tuple[RoundRecord, ...] = ()
    validations: tuple[Validation, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    stop_reason: str | None = None
    end_reason: str | None = None

    def copy(self) -> EngineState:
        """A state that can be changed without this one noticing."""
        twin = copy(self)
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, dict):
                setattr(twin, entry.name, dict(value))
        return twin

    def move_to(self, phase: Phase) -> None:
        """Change the phase, by the table."""
        self.phase = move_phase(self.phase, phase)

    def set_status(self, lease_id: LeaseId, status: LeaseStatus) -> LeaseRecord:
        """Change a lease's status, by the table."""
        record = self.leases[lease_id]
        self.leases[lease_id] = replace(record, status=move_lease(lease_id, record.status, status))
        return self.leases[lease_id]

    def leases_of_round(self) -> Iterator[LeaseRecord]:
        """Leases of the present round."""
        return (record for record in self.leases.values() if record.lease.round == self.round.round)

    def update_worker(self, worker: WorkerId, **changes: object) -> WorkerRecord:
        """Replace fields of a worker's record."""
        self.workers[worker] = replace(self.workers[worker], **changes)  # type: ignore[arg-type]
        return self.workers[worker]

    def update_lease(self, lease_id: LeaseId, **changes: object) -> LeaseRecord:
        """Replace fields of a lease's record; its status moves through `set_status` only."""
        self.leases[lease_id] = replace(self.leases[lease_id], **changes)  # type: ignore[arg-type]
        return self.leases[lease_id]

    def update_round(self, **changes: object) -> RoundState:
        """Replace fields of the present round."""
        self.round = replace(self.round, **changes)  # type: ignore[arg-type]
        return self.round

    def open_lease_of(self, worker: WorkerId) -> LeaseRecord | None:
        """The granted, not yet committed lease of a worker: at most one."""
        records = self.leases.values()
        return next((r for r in records if r.lease.worker == worker and r.status is LeaseStatus.GRANTED), None)

    def is_awaited(self, record: LeaseRecord) -> bool:
        """Whether the present round still waits for something to come of this lease."""
        if record.status is LeaseStatus.UPLOADED:
            return True
        if record.lease.round != self.round.round:
            return False
        if record.status is LeaseStatus.COMMITTED:
            return self.workers[record.lease.worker].present
        return record.status is LeaseStatus.GRANTED

    def digest_in_use(self, digest: Digest, *, besides: LeaseId) -> bool:
        """Whether a lease other than `besides`, live and not counted yet, rests on these bytes."""
        return any(
            record.digest == digest and record.status in LIVE_STATUSES and record.counted_in is None
            for lease_id, record in self.leases.items()
            if lease_id != besides
        )

    def staleness_of(self, lease: Lease) -> int:
        """Rounds between a lease's own and the one in which its submission would count now."""
        counts_in = self.round.round + (self.phase is Phase.AGGREGATING)
        return counts_in - lease.round
