"""What a run needs on disk to go on: the one definition that opening, backup and verify work from.

Decides which submissions and versions the state still speaks of. Pure: it reads an engine's state and touches nothing.
Always: whatever a pending command will read is among it, and so is everything that a worker was told is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordinator.engine.commands import AggregateRound, CompareSubmissions, MeasureSubmission, ReplayLease
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus
from coordinator.engine.state import EngineState
from protocol.ids import Digest, LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What must be there, or may still come."""

    version: int
    """The latest that was published: all of it must be there."""
    manifest: Digest
    """Of that version."""
    payloads: Mapping[LeaseId, Digest]
    """Submissions that have arrived and are still to be measured, counted or audited, or that a rollback would count
    again: their bytes must be there."""
    uploads: Mapping[LeaseId, Digest]
    """Commits whose bytes have yet to come: what is there of them need not be sent again."""

    residuals: tuple[tuple[LeaseId, Digest], ...] = ()
    """Opened for audits that are not over: their bytes must be there."""
    openings: tuple[tuple[LeaseId, Digest], ...] = ()
    """Asked for by such audits: what is there of them need not be sent again."""

    @property
    def submissions(self) -> list[tuple[LeaseId, Digest]]:
        """Lease and digest of all four: an opening keeps these and clears away every other submission."""
        return [*self.payloads.items(), *self.residuals, *self.openings, *self.uploads.items()]

    def versions_among(self, kept: Iterable[int]) -> list[int]:
        """Of the versions that are kept, those that belong to the run, ascending; the latest always does.

        A newer one was written and not published: it is made again.
        """
        return sorted({self.version, *(version for version in kept if version <= self.version)})


def needed_by(state: EngineState) -> Needed:
    """What `state` speaks of.

    A submission that was counted is not among it, unless it is kept for an audit or a rollback: its process may have
    died after the outer step and before it dropped the bytes.
    """
    payloads: dict[LeaseId, Digest] = {}
    uploads: dict[LeaseId, Digest] = {}
    for lease_id, record in state.leases.items():
        if record.digest is None:
            continue
        live = record.status in LIVE_STATUSES and record.counted_in is None
        if not (live or record.audit_due):
            continue
        (uploads if record.status is LeaseStatus.COMMITTED else payloads)[lease_id] = record.digest
    for command in state.pending.values():
        match command:
            case MeasureSubmission():
                payloads[command.lease.lease_id] = command.digest
            case ReplayLease():
                payloads[command.lease.lease_id] = command.digest
            case CompareSubmissions():
                payloads[command.lease.lease_id] = command.digest
                payloads[command.again.lease_id] = command.again_digest
            case AggregateRound():
                payloads |= {one.lease_id: one.digest for one in command.contributions}
    for past in state.past_steps:
        payloads |= {one.lease_id: one.digest for one in past.attempt.contributions}
    audited = [record for record in state.leases.values() if record.audit_due]
    return Needed(
        residuals=tuple((one.lease.lease_id, digest) for one in audited for digest in one.residuals_open),
        openings=tuple((one.lease.lease_id, digest) for one in audited for digest in one.residuals_missing),
        version=int(state.version),
        manifest=state.manifest,
        payloads=payloads,
        uploads=uploads,
    )
