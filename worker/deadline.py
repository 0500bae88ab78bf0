"""When the lease in hand runs out, told once. Touches the event loop's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from protocol.ids import LeaseId
from worker.lease import ReceivedLease


class Deadline:
    """Calls back when the lease that was granted last runs out; what it was told before is off."""

    def __init__(self, act: Callable[[LeaseId], None]) -> None:
        self._act = act
        self._timer: asyncio.TimerHandle | None = None
        self.lease: ReceivedLease | None = None
        """The one that was granted last."""
        self._ends_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until it runs out."""
        return self._ends_s - asyncio.get_running_loop().time()

    def set(self, lease: ReceivedLease) -> None:
        """`lease` was granted, or granted again with more time."""
        self.cancel()
        self.lease = lease
        loop = asyncio.get_running_loop()
        self._ends_s = loop.time() + lease.ttl_s
        self._timer = loop.call_later(lease.ttl_s, self._act, lease.lease_id)

    def cancel(self) -> None:
        """It does not matter any more."""
        if self._timer is not None:
            self._timer.cancel()
