"""A worker's line: the one submission that is on its way to the coordinator, while other work may go on beside it.

Decides when it is offered (committed) again, sent, kept or let go; nothing about leases (worker/session.py does). Holds
always: one submission at a time, and it is not forgotten before it is settled, or refused for good; an answer to a call
that was replaced is old news. Knows no clock, network or file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from protocol.errors import IllegalEvent
from protocol.ids import LeaseId
from worker import messages as m
from worker.messages import Lane, News
from worker.pauses import Pauses

NO_CALL = -1
"""No call has this ticket."""


class Line(Enum):
    """What the line is doing."""

    FREE = "free"
    CUT = "cut"
    """There is something to send and no session to send it in."""
    OFFERING = "offering"
    """Committing again tells from which byte to go on."""
    SENDING = "uploading"


@dataclass(slots=True)
class Offers:
    """Refusals in a row that were not for good, and how long to wait before the next try."""

    pauses: Pauses
    refusals: int = 0

    def kept(self, event: m.CallRefused) -> tuple[m.Tell, float]:
        """The submission is kept, and offered again after so many seconds."""
        pause_s = min(self.pauses.refused_s * 2.0**self.refusals, self.pauses.most_refused_s)
        self.refusals = min(self.refusals + 1, 10)
        return m.Tell(news=News.SUBMISSION_KEPT, reason=event.reason, cause=event.cause, pause_s=pause_s), pause_s


@dataclass(slots=True)
class Sending:
    """One worker's line. Each method gets the ticket that its call would have."""

    offers: Offers
    state: Line = Line.FREE
    lease_id: LeaseId | None = None
    """Whose submission it is."""
    ticket: int = NO_CALL
    """Of the call that is going on."""

    @property
    def is_busy(self) -> bool:
        """Whether a submission is on its way."""
        return self.lease_id is not None

    def hold(self, lease_id: LeaseId) -> None:
        """An earlier process left this one; it is offered once there is a session."""
        self.lease_id, self.state = lease_id, Line.CUT

    def take(self, lease_id: LeaseId, offset: int, ticket: int) -> list[m.SessionCommand]:
        """`lease_id`'s submission is committed to: send it from `offset` on."""
        assert self.lease_id is None
        self.lease_id = lease_id
        return self._send(offset, ticket)

    def offer(self, ticket: int, after_s: float = 0.0) -> list[m.SessionCommand]:
        """Ask from which byte to go on."""
        assert self.lease_id is not None
        self.state, self.ticket = Line.OFFERING, ticket
        return [m.CommitSubmission(ticket=ticket, lane=Lane.LINE, lease_id=self.lease_id, after_s=after_s)]

    def cut(self) -> list[m.SessionCommand]:
        """The session is lost, or the worker leaves: whatever goes on is given up."""
        if self.lease_id is None:
            return []
        self.state, self.ticket = Line.CUT, NO_CALL
        return [m.CancelCall(lane=Lane.LINE)]

    def give_up(self) -> list[m.SessionCommand]:
        """What was being sent will count nowhere; it stays on disk."""
        cut = self.cut()
        self.state, self.lease_id = Line.FREE, None
        return cut

    def cancelled(self, ticket: int) -> list[m.SessionCommand]:
        """The coordinator says that the lease is over: this news may have crossed a commit, whose answer settles it."""
        return self.offer(ticket) if self.state is Line.SENDING else []

    def handle(self, event: m.Reply, ticket: int) -> list[m.SessionCommand]:
        """An answer to the present call; IllegalEvent where it answers no such call."""
        allowed, apply = ANSWERS.get(type(event), (None, None))
        if apply is None or self.state is not (allowed or self.state):
            raise IllegalEvent(f"{type(event).__name__} while the line is {self.state.value}")
        return apply(self, event, ticket)

    def _on_committed(self, event: m.Committed, ticket: int) -> list[m.SessionCommand]:
        return self._settle() if event.settled else self._send(event.offset, ticket)

    def _on_uploaded(self, _: m.Uploaded, ticket: int) -> list[m.SessionCommand]:
        del ticket
        return self._settle()

    def _on_broken(self, _: m.UploadBroken, ticket: int) -> list[m.SessionCommand]:
        return self.offer(ticket)

    def _on_refused(self, event: m.CallRefused, ticket: int) -> list[m.SessionCommand]:
        if event.final:
            return [refused_for_good(event), *self._settle()]
        kept, pause_s = self.offers.kept(event)
        return [kept, *self.offer(ticket, after_s=pause_s)]

    def _send(self, offset: int, ticket: int) -> list[m.SessionCommand]:
        assert self.lease_id is not None
        self.state, self.ticket = Line.SENDING, ticket
        return [m.UploadSubmission(ticket=ticket, lane=Lane.LINE, lease_id=self.lease_id, offset=offset)]

    def _settle(self) -> list[m.SessionCommand]:
        assert self.lease_id is not None
        dropped = m.DropSubmission(lease_id=self.lease_id)
        self.state, self.lease_id, self.ticket, self.offers.refusals = Line.FREE, None, NO_CALL, 0
        return [dropped]


def refused_for_good(event: m.CallRefused) -> m.Tell:
    """What the volunteer is told."""
    return m.Tell(news=News.SUBMISSION_REFUSED, reason=event.reason, cause=event.cause, detail=event.detail)


ANSWERS: dict[type[m.Reply], tuple[Line | None, Callable[[Sending, Any, int], list[m.SessionCommand]]]] = {
    m.Committed: (Line.OFFERING, Sending._on_committed),
    m.Uploaded: (Line.SENDING, Sending._on_uploaded),
    m.UploadBroken: (Line.SENDING, Sending._on_broken),
    m.CallRefused: (None, Sending._on_refused),
}
"""Each answer that the line may get: what it must be doing (None: anything), and what applies it."""
