"""What slow work ends in, but for measuring and aggregating. Named from events.py, like all events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coordinator.engine.event import Event
from protocol.ids import Digest, LeaseId, Version, WorkerId
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
