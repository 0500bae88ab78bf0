"""Everything that can happen to a run. Events are facts in the past tense, frozen, and carry their own time.

All but `WorkerSeen` are journalled before they are applied (coordinator/run/pump.py). Time is run time
(coordinator/run/clock.py) and monotone: the engine uses max(last, event's). Calendar time is in a few events for people
to read, and decides nothing. Nothing here knows where an event came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.engine.answers import GainAnswer
from coordinator.engine.config import EngineConfig
from coordinator.engine.event import Event
from coordinator.engine.membership_events import CapabilityChanged, WorkerEnrolled, WorkerLeft
from coordinator.engine.order_events import (
    Announced,
    HoldLifted,
    InviteRevoked,
    InvitesMade,
    OperatorKeyAdded,
    OperatorKeyRevoked,
    RunHeld,
    RunStopped,
    SettingChanged,
)
from coordinator.engine.result_events import (
    CheckpointWritten,
    CommandFailed,
    CommandTrouble,
    ContributionsTried,
    FailedAlone,
    LeaseReplayed,
    ResidualOpened,
    VersionRebuilt,
    VersionValidated,
)
from coordinator.engine.standing_events import (
    AuditAsked,
    InviteBanned,
    InviteUnbanned,
    OwnerBanned,
    OwnerUnbanned,
    RollbackOrdered,
    WorkerBanned,
    WorkerPardoned,
    WorkerUnbanned,
)
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import AS_PUBLISHED, FrozenColumns

__all__ = [
    "Announced",
    "AuditAsked",
    "CapabilityChanged",
    "CheckpointWritten",
    "CommandFailed",
    "CommandTrouble",
    "ContributionsTried",
    "Event",
    "FailedAlone",
    "HoldLifted",
    "InviteBanned",
    "InviteRevoked",
    "InviteUnbanned",
    "InvitesMade",
    "LeaseReplayed",
    "OperatorKeyAdded",
    "OperatorKeyRevoked",
    "OwnerBanned",
    "OwnerUnbanned",
    "ResidualOpened",
    "RollbackOrdered",
    "RunHeld",
    "RunStopped",
    "SettingChanged",
    "VersionRebuilt",
    "VersionValidated",
    "WorkerBanned",
    "WorkerEnrolled",
    "WorkerLeft",
    "WorkerPardoned",
    "WorkerUnbanned",
]
"""What is defined elsewhere, and is one of the events all the same."""


_FIRST, _BEFORE_ALL = Version(0), RoundNumber(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated(Event):
    """First event of every journal."""

    engine_version: int
    config: EngineConfig
    base_manifest: Digest
    """Digest of the manifest of the version that it begins with."""
    wall_s: float | None = None
    """Calendar time at `at_s`, in seconds since the epoch; None in simulations that have none."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings that are fixed at `init` and none of the engine's: key to JSON, for the next starts to compare."""
    frozen: FrozenColumns = AS_PUBLISHED
    """What that version has for columns that are not held."""
    version: Version = _FIRST
    """Above 0 where the run goes on from an archive of another one."""
    round: RoundNumber = _BEFORE_ALL
    """The last one of that other run's that made the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFixed(Event):
    """A start found settings that no earlier event had fixed: the run, or the setting, is older than the comparison."""

    settings: dict[str, str]
    """Key to JSON. What is fixed already stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeen(Event):
    """A sign of life (a heartbeat, or any signed call). Never journalled, and never part of the engine's state: what
    follows from silence is journalled instead, as `WorkerSilent` (see `Engine.due`)."""

    worker: WorkerId
    lease_id: LeaseId | None = None
    inner_step: int = 0
    train_loss: float | None = None
    tokens_per_s: float = 0.0
    paused_until_s: float | None = None
    """Its owner's rules want no new work before this time, at the least; infinity: nobody knows until when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSilent(Event):
    """The pump's finding, proposed by `Engine.due`, that a worker was not heard for the silence limit.

    Heartbeats are not journalled, so this is: a replay then expires the very same leases.
    """

    worker: WorkerId
    last_seen_at_s: float
    """Ignored when the state has heard from the worker after this: the finding was overtaken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorResumed(Event):
    """The coordinator is there again: after a restart, or its process stood still.

    Whoever was there has one full silence limit to speak, and every open moment moves by the gap.
    """

    gap_s: float = 0.0
    """Run time in which nobody was here: since the last record before a restart, or since the process stood still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStepped(Event):
    """Calendar time went another way than run time: the wall clock was set, or nobody was here for more than a day.

    For people, who read from it what the calendar showed at any run time. It moves no deadline.
    """

    wall_s: float
    """Calendar time at `at_s`, in seconds since the epoch."""
    step_s: float
    """By how much it jumped; negative: back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequested(Event):
    """A worker is idle and wants work. A worker that already holds an open lease is given that same lease again."""

    worker: WorkerId
    wait_s: float | None = None
    """How long its call stays open for a `GrantLease`; None: until the worker is heard to do something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReturned(Event):
    """The worker handed a lease back (it is leaving, or cannot do it)."""

    worker: WorkerId
    lease_id: LeaseId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionCommitted(Event):
    """The worker committed to a digest; counts in its round if this is before the lease's deadline."""

    worker: WorkerId
    lease_id: LeaseId
    digest: Digest
    payload_bytes: int
    codec: str
    inner_steps_done: int
    train_loss_first: float
    train_loss_last: float
    train_s: float
    micro_batch: int = 0
    """Sequences that went through the model at a time, as the worker says; 0: it does not."""
    arithmetic: str = ""
    """The class in which it was computed (protocol/arithmetic.py), as the worker says; empty: it does not."""
    residuals_in: tuple[Digest, ...] = ()
    """What the encoding of each of the lease's blocks began with; "": nothing. (): the codec keeps nothing."""
    residuals_out: tuple[Digest, ...] = ()
    """What it left."""
    residuals_back: tuple[Digest, ...] = ()
    """What is left where the submission comes to nothing: what it began with, and all that was computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionUploaded(Event):
    """All bytes of a committed submission are durable in the artifact store."""

    worker: WorkerId
    lease_id: LeaseId
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNorm:
    """L2 norm of one block of a submission's pseudo-gradient, as sent."""

    block: BlockId
    norm_l2: float
    base_l2: float = 0.0
    """Norm of that block's weights in the base version; 0 where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionMeasured(Event):
    """Result of `MeasureSubmission`: facts only; the engine judges."""

    command_id: str
    lease_id: LeaseId
    malformed: str
    """Empty, or why the payload does not decode to what was leased (schema, size, dtype, non-finite)."""
    norms: tuple[BlockNorm, ...] = ()
    heldout_gain: float = 0.0
    """Held-out loss before minus after `MeasureSubmission.part` of the submission, nats a token."""
    heldout_gain_se: float = 0.0
    """Standard error of that gain, sequences paired."""
    full_gain: float = 0.0
    """The same after `MeasureSubmission.taken` of it, on other held-out sequences."""
    full_gain_se: float = 0.0
    own_gain: float | None = None
    """The same as `full_gain` on sequences of the lease itself; None where it was not asked for."""
    part_spread: float = 0.0
    """Standard deviation of `heldout_gain` over these sequences; its error is never less than what is usual gives."""
    part_sequences: int = 0
    """Held-out sequences behind `heldout_gain`; 0 where that was not measured."""
    full_sequences: int = 0
    measured_by: WorkerId | None = None
    """The trusted worker whose figures these are; None: the coordinator's own. Norms always are."""
    answers: tuple[GainAnswer, ...] = ()
    """What trusted workers said, its own first; where there are two, they agree."""
    false: tuple[WorkerId, ...] = ()
    """Of those whose answers the coordinator held against its own, those whose are something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpan:
    """Expert columns `first` to `last`, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitute:
    """Blocks that the run's rule did not answer for, what did instead, and why."""

    rule: str
    """The run's."""
    in_force: str
    """What answered; empty: nothing did, the blocks stay as they were."""
    fewest: int
    most: int
    """How many submissions they had."""
    trunk: bool
    columns: tuple[ColumnSpan, ...]
    error: str = ""
    """What the run's rule failed with; empty: there were too few contributions for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionComparison:
    """A new version against an older one, on the same held-out sequences."""

    version: Version
    """The older one."""
    gain: float
    """Its held-out loss less the new one's, nats a token; negative where the new one is worse."""
    gain_se: float
    """Standard error of that, sequences paired."""
    loss: float
    """The older one's held-out loss there."""
    sequences: int = 0
    """Behind these; 0 in events of an older release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregated(Event):
    """Result of `AggregateRound`: a new manifest is durable in the artifact store, not yet the run's."""

    command_id: str
    round: RoundNumber
    version: Version
    parent_version: Version
    manifest: Digest
    update_norm_l2: float
    substitutes: tuple[Substitute, ...] = ()
    compared: tuple[VersionComparison, ...] = ()
    """With each of `AggregateRound.compared_with`, in that order."""
    frozen: FrozenColumns = AS_PUBLISHED
    """What it has for columns that are not held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmfulFound(Event):
    """Result of `FindHarmful`."""

    command_id: str
    round: RoundNumber
    harmful: tuple[LeaseId, ...]
    """Each alone makes a model that is worse, beyond margin and tolerance."""
    suspected: tuple[LeaseId, ...]
    """Worse within these, or only as one of a group; or the model is no longer worse without them."""
    passes: int
    """Models that were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """Time passed. The pump sends one when `Engine.next_wakeup_s()` is reached."""
