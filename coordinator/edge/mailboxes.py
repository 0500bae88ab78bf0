"""What the engine has to say to each worker, until that worker's next call picks it up.

Decides nothing; the pump's dispatch fills it, the service empties it. Lives in memory: a grant that a restart
loses is given again when the worker asks, and verdicts and cancellations stay in the engine's state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from coordinator.engine.commands import AnnounceVerdict
from coordinator.engine.lease import GrantedLease
from protocol.ids import WorkerId

KEPT_VERDICTS = 64
"""Undelivered verdicts for one worker: far more rounds than anybody is away for and still wants to hear of."""


@dataclass(slots=True)
class Mailbox:
    """One worker's."""

    grant: asyncio.Future[GrantedLease] | None = None
    """The waiting AcquireLease call, if there is one."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """There is something that the worker is to upload for an audit: the waiting call ends."""
    verdicts: deque[AnnounceVerdict] = field(default_factory=lambda: deque(maxlen=KEPT_VERDICTS))

    def expect_grant(self) -> asyncio.Future[GrantedLease]:
        """Wait for a grant; an earlier wait of the same worker ends."""
        if self.grant is not None:
            self.grant.cancel()
        self.grant = asyncio.get_running_loop().create_future()
        return self.grant

    def deliver(self, lease: GrantedLease) -> None:
        """Hand the lease to the waiting call; without one it is dropped, since asking again brings it again."""
        if self.grant is not None and not self.grant.done():
            self.grant.set_result(lease)

    def take_verdicts(self) -> list[AnnounceVerdict]:
        """Verdicts since the last time."""
        taken = list(self.verdicts)
        self.verdicts.clear()
        return taken


class Mailboxes:
    """All workers', and the end of the run, which concerns all."""

    def __init__(self) -> None:
        self._boxes: dict[WorkerId, Mailbox] = {}
        self.ended = asyncio.Event()

    def of(self, worker: WorkerId) -> Mailbox:
        """The worker's mailbox."""
        return self._boxes.setdefault(worker, Mailbox())
