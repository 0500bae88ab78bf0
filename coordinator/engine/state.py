"""What the engine knows: tables of frozen rows (rows.py), and nothing that a replay of the journal would not give.

Records are replaced, never changed, and only through the methods below, which note what was there before (undo.py) and
keep the index (index.py) in step. Heartbeats live elsewhere (presence.py) on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from coordinator.engine.commands import SlowCommand
from coordinator.engine.config import MAX_COLUMNS, EngineConfig
from coordinator.engine.events import Substitute
from coordinator.engine.history import (
    Accusation,
    CalendarMark,
    Checkpoint,
    Failure,
    RoundRecord,
    SettingChange,
    Totals,
    UsualGain,
    Validation,
    VersionLevel,
    wall_at_s,
)
from coordinator.engine.hold import Announcement, Hold, HoldKind, OrderRecord
from coordinator.engine.index import Index
from coordinator.engine.lease import GrantedLease
from coordinator.engine.past import PastStep, PlannedRollback, RollbackRecord
from coordinator.engine.phases import LeaseStatus, Phase, move_lease, move_phase
from coordinator.engine.reasons import Reason, told
from coordinator.engine.rows import Ban, LeaseRecord, RoundState, SeenNorm, WorkerRecord
from coordinator.engine.undo import Undo
from protocol.ids import BlockId, Digest, LeaseId, Version, WorkerId
from protocol.lease import AS_PUBLISHED, FrozenColumns
from protocol.pseudonyms import pseudonym


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
    norm_history: dict[BlockId, tuple[SeenNorm, ...]] = field(default_factory=dict)
    gain_spread: float = 0.0
    """By how much people's gains differed in the latest rounds that could tell, nats a token at the recipe's own rate:
    `screening.spread_of`."""
    data_epoch: int = 0
    next_sequence: int = 0
    """First position, in this epoch's permutation, that no lease has named yet."""
    totals: Totals = field(default_factory=Totals)
    history: tuple[RoundRecord, ...] = ()
    substitutes: tuple[Substitute, ...] = ()
    """Blocks of the latest version that the run's rule did not answer for."""
    usual_gain: UsualGain | None = None
    """Of the latest round that closed with any."""
    standings: tuple[VersionLevel, ...] = ()
    """Versions of the latest rounds that no later one of them is better than; the latest is the run's."""
    withheld_in_row: int = 0
    """Rounds, up to the latest, of which neither all nor all but the harmful could be published as they were."""
    validations: tuple[Validation, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    calendar: tuple[CalendarMark, ...] = ()
    """For people; nothing is decided by it."""
    next_config: EngineConfig | None = None
    """What was changed since the round opened is in it; the next round's."""
    setting_changes: tuple[SettingChange, ...] = ()
    accusations: tuple[Accusation, ...] = ()
    """Leases that an auditor could not reproduce, oldest first."""
    fixed_settings: dict[str, str] = field(default_factory=dict)
    """Key to JSON of settings that are not the engine's: what the run began with, for the start to compare."""
    past_steps: tuple[PastStep, ...] = ()
    """What a rollback could take back, oldest first; what they name is kept on disk."""
    planned_rollback: PlannedRollback | None = None
    rollbacks: tuple[RollbackRecord, ...] = ()
    banned_owners: dict[str, Ban] = field(default_factory=dict)
    banned_invites: dict[str, Ban] = field(default_factory=dict)
    """By short digest. Whoever comes with one of these is banned from the start."""
    frozen: FrozenColumns = AS_PUBLISHED
    """What stands in for columns that a lease of the latest version does not hold."""
    hold: Hold | None = None
    announcement: Announcement | None = None
    orders: tuple[OrderRecord, ...] = ()
    """What people ordered, oldest first."""
    stop_reason: str | None = None
    ended: Reason | None = None

    names: Mapping[WorkerId, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What workers are called, from the registry: for sentences alone. In no event and no snapshot, so that whoever
    leaves can be forgotten."""
    index: Index = field(init=False, repr=False, compare=False)
    """Follows from the above; in no snapshot."""
    _undo: Undo | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not 1 <= self.config.columns <= MAX_COLUMNS:
            raise ValueError(f"a run has 1 to {MAX_COLUMNS} expert columns, got {self.config.columns}")
        self.index = self.indexed()

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
            self.index = self.indexed()

    def indexed(self) -> Index:
        """An index of the tables as they are now."""
        return Index(self.config, workers=self.workers, leases=self.leases, current=self.round)

    def copy(self) -> EngineState:
        """The state as it is now, to keep."""
        twin = EngineState(**self.recorded())
        twin.names = self.names
        return twin

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
        self.leases = kept
        self.index.keep_leases(kept)

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
        self.index.turn_to(current, self.config)

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

    def called(self, worker: WorkerId) -> str:
        """What a worker is called; never empty. Older journals and simulations have names in their events."""
        record = self.workers.get(worker)
        return self.names.get(worker) or (record.name if record else "") or pseudonym(worker)

    def wall_at_s(self, at_s: float) -> float | None:
        """Calendar time at run time `at_s`, in seconds since the epoch; None in a run that has none."""
        return wall_at_s(self.calendar, at_s)

    @property
    def paused(self) -> bool:
        """Whether time stands by the operator's order."""
        return self.hold is not None and self.hold.kind is HoldKind.PAUSED

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

    def person_of(self, lease: GrantedLease) -> str:
        """Whose vote a lease's submission is."""
        return self.workers[lease.worker].person

    def is_awaited(self, record: LeaseRecord) -> bool:
        """Whether the present round still waits for something to come of this lease."""
        if record.lease.audits is not None:
            return False
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

    def staleness_of(self, lease: GrantedLease) -> int:
        """Rounds between a lease's own and the one in which its submission would count now."""
        counts_in = self.round.round + (self.phase is Phase.AGGREGATING)
        return counts_in - lease.round


_RECORDED = tuple(entry.name for entry in fields(EngineState) if entry.init)
"""What a snapshot holds."""
