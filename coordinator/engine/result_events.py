"""What slow work and audits end in, but for measuring and aggregating. Named from events.py, like all events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coordinator.engine.answers import GainAnswer
from coordinator.engine.event import Event
from protocol.ids import Digest, LeaseId, RoundNumber, Version, WorkerId
from protocol.lease import AS_PUBLISHED, FrozenColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReplayed(Event):
    """Result of `ReplayLease` or `CompareSubmissions`: facts only; the engine judges."""

    command_id: str
    lease_id: LeaseId
    """The one that was computed again."""
    auditor: WorkerId | None
    """Who computed it again; None: the coordinator itself."""
    trunk: float = 0.0
    """Relative L2 distance of what was sent from what came of it again, after the codec: the trunk's."""
    columns: float = 0.0
    """The largest among the lease's columns."""
    arithmetic: str = ""
    """The class in which the coordinator computed it; a worker says its own when it commits."""
    error: str = ""
    """Why what the auditor sent is no answer (schema, size, dtype, non-finite); empty: it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionValidated(Event):
    """Result of `ValidateVersion`."""

    command_id: str
    version: Version
    val_loss: float
    """Held-out loss, nats a token, without the balance loss."""
    val_loss_se: float
    measured_by: WorkerId | None = None
    """The trusted worker whose word this is; None: the coordinator measured it."""
    answers: tuple[GainAnswer, ...] = ()
    """What trusted workers said of it."""
    false: tuple[WorkerId, ...] = ()
    """Of these, whose answers are something else than the coordinator measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWritten(Event):
    """Result of `WriteCheckpoint`."""

    command_id: str
    version: Version
    path: str


class CommandTrouble(StrEnum):
    """What a command failed of."""

    MACHINE = "machine"
    """The coordinator's disk or memory: nobody is to blame, and trying again is all there is to do."""
    CONTENT = "content"
    """Anything else: what went in, or a bug of ours. The same again fails again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandFailed(Event):
    """A command could not be carried out. It stays pending and is tried again by the pump."""

    command_id: str
    error: str
    trouble: CommandTrouble


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRebuilt(Event):
    """Result of `RebuildVersion`: a new manifest is durable in the artifact store, not yet the run's."""

    command_id: str
    version: Version
    parent_version: Version
    manifest: Digest
    change_l2: float
    """L2 norm of the difference from the version that it would take the place of, over all blocks."""
    frozen: FrozenColumns = AS_PUBLISHED
    """What it has for columns that are not held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualOpened(Event):
    """All bytes of a residual that a commit named are durable in the artifact store, for an audit."""

    worker: WorkerId
    lease_id: LeaseId
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAlone:
    """A contribution of which alone no new block could be made."""

    lease_id: LeaseId
    error: str
    lost: bool = False
    """Its bytes are no longer what they were when they came: our fault, not its worker's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionsTried(Event):
    """Result of `TryContributions`: which of them fail alone; none where all fail only together."""

    command_id: str
    round: RoundNumber
    failed: tuple[FailedAlone, ...]
