"""What the engine knows: frozen records in a few dictionaries, and nothing that a replay of the journal would not give.

Records are replaced, never changed, and only through the methods below, which note what was there before (undo.py) and
keep the index (index.py) in step. Heartbeats live elsewhere (presence.py) on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from coordinator.engine.commands import SlowCommand
from coordinator.engine.config import MAX_COLUMNS, EngineConfig
from coordinator.engine.events import BlockNorm, Substitute
from coordinator.engine.history import (
    CalendarMark,
    Checkpoint,
    Failure,
    LeftOut,
    RoundRecord,
    SettingChange,
    Totals,
    Validation,
    wall_at_s,
)
from coordinator.engine.index import Index
from coordinator.engine.lease import Lease
from coordinator.engine.phases import LeaseStatus, Phase, move_lease, move_phase
from coordinator.engine.reasons import Reason, Verdict, told
from coordinator.engine.undo import Undo
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
class UploadReport:
    """How long the bytes of one submission took, by the coordinator's clock alone."""

    payload_bytes: int
    upload_s: float
    """From commit to all bytes; to the end of the lease where they had not come by then, which is at most the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Set aside until the earlier of the two ends."""

    until_round: RoundNumber
    until_s: float
    why: Reason


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
    owner: str = ""
    """Whose machine it is; empty: nobody's but its own. Never changes."""
    present: bool = True
    waiting_since_s: float | None = None
    waits_until_s: float | None = None
    """None while waiting: until it does something else."""
    reports: tuple[SpeedReport, ...] = ()
    uploads: tuple[UploadReport, ...] = ()
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

    @property
    def person(self) -> str:
        """Equal for the machines of one owner, and for no others: who it is that has one vote."""
        return f"owner {self.owner}" if self.owner else self.worker


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A lease and what became of it."""

    lease: Lease
    status: LeaseStatus = LeaseStatus.GRANTED
    regrants: int = 0
    gap_s: float = 0.0
    """Of the time since its grant, so much in which the coordinator was not there."""
    digest: Digest | None = None
    payload_bytes: int = 0
    codec: str = ""
    committed_at_s: float | None = None
    upload_broken: bool = False
    """Since the commit something came between: how long the bytes take tells nothing about the uplink."""
    uploaded_at_s: float | None = None
    train_loss_first: float = 0.0
    train_loss_last: float = 0.0
    norms: tuple[BlockNorm, ...] = ()
    """At the common number of steps."""
    heldout_gain: float = 0.0
    heldout_gain_se: float = 0.0
    verdict: Verdict | None = None
    ended: Reason | None = None
    """Why it expired or was returned, or was accepted and counts nowhere."""
    counted_in: RoundNumber | None = None

    @property
    def end_reason(self) -> str:
        """Why it ended, in words; empty where it did not, or by a verdict."""
        return told(self.ended) if self.ended else ""


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
    granting: bool = False
    """One decision grants `EngineConfig.most_grants` leases at most; more are to follow, with the next `Ticked`."""
    sticky: dict[WorkerId, tuple[int, ...]] = field(default_factory=dict)
    """Who held which columns in the round before."""
    redrawn: dict[int, tuple[WorkerId, ...]] = field(default_factory=dict)
    """Who is to leave each column's replica set this round."""
    accepted: int = 0
    rejected: int = 0
    expired: int = 0
    returned: int = 0
    closed: Reason | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def close_reason(self) -> str:
        """Why it closed, in words; empty while it is open."""
        return told(self.closed) if self.closed else ""


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
    substitutes: tuple[Substitute, ...] = ()
    """Blocks of the latest version that the run's rule did not answer for."""
    validations: tuple[Validation, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    calendar: tuple[CalendarMark, ...] = ()
    """For people; nothing is decided by it."""
    next_config: EngineConfig | None = None
    """What was changed since the round opened is in it; the next round's."""
    setting_changes: tuple[SettingChange, ...] = ()
    fixed_settings: dict[str, str] = field(default_factory=dict)
    """Key to JSON of settings that are none of the engine's: what the run began with, for the start to compare."""
    stop_reason: str | None = None
    ended: Reason | None = None

    index: Index = field(init=False, repr=False, compare=False)
    """Follows from the above; in no snapshot."""
    _undo: Undo | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not 1 <= self.config.columns <= MAX_COLUMNS:
            raise ValueError(f"a run has 1 to {MAX_COLUMNS} expert columns, got {self.config.columns}")
        self.index = Index(self)

    # ---- one event, whole or not at all ---------------------------------------------------------------

    def begin(self) -> Undo:
        """An event is about to be applied."""
        self._undo = Undo({name: getattr(self, name) for name in _RECORDED})
        return self._undo

    def end(self) -> None:
        """The event is applied."""
        self._undo = None
        self.index.forget_cooled(self.now_s)

    def take_back(self) -> None:
        """The event cannot be applied: everything is as it was before."""
        assert self._undo is not None
        undo, round_before = self._undo, self.round
        for name, value in undo.take_back().items():
            setattr(self, name, value)
        self._undo = None
        if not undo.is_empty or self.round is not round_before:
            self.index = Index(self)

    def copy(self) -> EngineState:
        """The state as it is now, to keep."""
        return EngineState(**self.recorded())

    def recorded(self) -> dict[str, Any]:
        """What a snapshot holds, as it is now: tables change with the next event, their records and all else never."""
        values = {name: getattr(self, name) for name in _RECORDED}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}

    def seen_at(self, now_s: float) -> EngineState:
        """This very state as of another moment: for reading, and at once."""
        twin = copy(self)
        twin.now_s = now_s
        return twin

    # ---- records --------------------------------------------------------------------------------------

    def move_to(self, phase: Phase) -> None:
        """Change the phase, by the table."""
        self.phase = move_phase(self.phase, phase)

    def put_worker(self, record: WorkerRecord) -> WorkerRecord:
        """Add or replace a worker's record."""
        old = self.workers.get(record.worker)
        if self._undo is not None:
            self._undo.note(self.workers, record.worker)
        self.workers[record.worker] = record
        self.index.put_worker(old, record)
        return record

    def put_lease(self, record: LeaseRecord) -> LeaseRecord:
        """Add or replace a lease's record."""
        lease_id = record.lease.lease_id
        old = self.leases.get(lease_id)
        if self._undo is not None:
            self._undo.note(self.leases, lease_id)
        self.leases[lease_id] = record
        self.index.put_lease(old, record)
        return record

    def keep_leases(self, kept: dict[LeaseId, LeaseRecord]) -> None:
        """Forget all leases but `kept`."""
        forgotten = [record for lease_id, record in self.leases.items() if lease_id not in kept]
        self.leases = kept
        for record in forgotten:
            self.index.put_lease(record, None)

    def put_pending(self, command: SlowCommand) -> None:
        """A command is to be carried out."""
        if self._undo is not None:
            self._undo.note_whole(self.pending)
        self.pending[command.command_id] = command

    def put_failure(self, command_id: str, failure: Failure) -> None:
        """A pending command was tried in vain."""
        if self._undo is not None:
            self._undo.note_whole(self.failures)
        self.failures[command_id] = failure

    def drop_pending(self, command_id: str) -> None:
        """A command is done, or no longer wanted."""
        if self._undo is not None:
            self._undo.note_whole(self.pending)
            self._undo.note_whole(self.failures)
        self.pending.pop(command_id, None)
        self.failures.pop(command_id, None)

    def open_round(self, current: RoundState) -> None:
        """Another round takes the place of the present one."""
        self.round = current
        self.index.turn_to(current)

    def set_status(self, lease_id: LeaseId, status: LeaseStatus) -> LeaseRecord:
        """Change a lease's status, by the table."""
        record = self.leases[lease_id]
        return self.put_lease(replace(record, status=move_lease(lease_id, record.status, status)))

    def update_worker(self, worker: WorkerId, **changes: object) -> WorkerRecord:
        """Replace fields of a worker's record."""
        return self.put_worker(replace(self.workers[worker], **changes))  # type: ignore[arg-type]

    def update_lease(self, lease_id: LeaseId, **changes: object) -> LeaseRecord:
        """Replace fields of a lease's record; its status moves through `set_status` only."""
        return self.put_lease(replace(self.leases[lease_id], **changes))  # type: ignore[arg-type]

    def update_round(self, **changes: object) -> RoundState:
        """Replace fields of the present round."""
        self.round = replace(self.round, **changes)  # type: ignore[arg-type]
        return self.round

    # ---- looking --------------------------------------------------------------------------------------

    def wall_at_s(self, at_s: float) -> float | None:
        """Calendar time at run time `at_s`, in seconds since the epoch; None in a run that has none."""
        return wall_at_s(self.calendar, at_s)

    @property
    def chosen_config(self) -> EngineConfig:
        """The settings as they were last set, whether or not they count yet."""
        return self.config if self.next_config is None else self.next_config

    @property
    def end_reason(self) -> str | None:
        """Why the run is over, in words; None while it is not."""
        return told(self.ended) if self.ended else None

    @property
    def records(self) -> int:
        """How many workers and leases a snapshot would hold."""
        return len(self.workers) + len(self.leases)

    def leases_of_round(self) -> Iterator[LeaseRecord]:
        """Leases of the present round."""
        return (self.leases[lease_id] for lease_id in self.index.tally.leases)

    def leases_of(self, worker: WorkerId) -> Iterator[LeaseRecord]:
        """All known leases of a worker, oldest first."""
        return (self.leases[lease_id] for lease_id in self.index.leases_of(worker))

    def open_lease_of(self, worker: WorkerId) -> LeaseRecord | None:
        """The granted, not yet committed lease of a worker: at most one."""
        lease_id = self.index.open_leases.get(worker)
        return None if lease_id is None else self.leases[lease_id]

    def person_of(self, lease: Lease) -> str:
        """Whose vote a lease's submission is."""
        return self.workers[lease.worker].person

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
        resting = self.index.resting_on(digest)
        return bool(resting) and resting != {besides}

    def staleness_of(self, lease: Lease) -> int:
        """Rounds between a lease's own and the one in which its submission would count now."""
        counts_in = self.round.round + (self.phase is Phase.AGGREGATING)
        return counts_in - lease.round


_RECORDED = tuple(entry.name for entry in fields(EngineState) if entry.init)
"""What a snapshot holds."""
