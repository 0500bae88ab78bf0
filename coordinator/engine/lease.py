"""A lease as the engine keeps it: the protocol's, and to whom it was granted, when and until when.

Holds no behaviour beyond reading its own fields. `leases.py` puts it together: columns come from `placement.py`, steps
and deadline from `pacing.py`, rates from `schedules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import LeaseId, WorkerId
from protocol.lease import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedLease(Lease):
    """A lease in one worker's hands until its deadline, by the run's clock."""

    worker: WorkerId
    granted_at_s: float
    deadline_s: float
    spare: bool = False
    """Granted in mid-round because a column's quorum was at risk."""
    audits: LeaseId | None = None
    """The lease that it is the same as, to see what comes of it in other hands. Never on the wire: to its worker it is
    a lease like any other."""

    @property
    def order(self) -> tuple[int, int, str]:
        """Leases sorted by this are in the order in which they were granted (see `leases.grant`: `r3.9`, `r3.10`)."""
        return self.round, len(self.lease_id), self.lease_id
