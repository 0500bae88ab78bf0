"""What a worker's session does between two events: the moves that several of them end in.

Decides nothing about which event leads to which move (worker/session.py does), only what a move always brings with it:
a ticket of its own for every call, and a state that the table allows. Knows no clock, network or file.
"""

from __future__ import annotations

from protocol.causes import Cause
from protocol.ids import LeaseId
from protocol.lease import Lease
from worker import messages as m
from worker.messages import EXIT_FAILED, News
from worker.pauses import Pauses
from worker.sending import Offers, Sending, refused_for_good
from worker.states import State, moved
from worker.words import say

MAX_FAILURES = 3  # in a row; a machine that fails three leases fails the fourth, and each one costs the run a replica


class SessionMoves:
    """One worker's state, and the moves that change it."""

    def __init__(self, pauses: Pauses | None = None) -> None:
        self._pauses = pauses or Pauses()
        self.state = State.DISCONNECTED
        self.lease: Lease | None = None
        self.session = 0  # number of the newest; 0 before the first
        self.line = Sending(Offers(self._pauses))
        self._ticket = 0
        """Of the newest call, be it the line's."""
        self._live = 0  # of the newest that is not
        self._training = 0
        self.is_training = False
        """Whether a lease is in training, be there a session or not."""
        self._trained: LeaseId | None = None
        """Whose submission waits to be committed to, or for the line."""
        self._offset = 0  # from which byte it is to be sent
        self._offers, self._failures, self._is_paused = Offers(self._pauses), 0, False
        self._refrain_s = 0.0
        """How long not to ask for another lease, after one that the volunteer's rules do not accept."""

    @property
    def lease_id(self) -> LeaseId | None:
        """The lease that heartbeats speak for, besides the one that is being sent: held, or just trained."""
        return self._trained or (self.lease.lease_id if self.lease else None)

    @property
    def has_unsent(self) -> bool:
        """Whether a trained submission waits on disk."""
        return self._trained is not None or self.line.is_busy

    def _open(self, _: m.Enrolled | None = None) -> list[m.SessionCommand]:
        self.session += 1
        self._move(State.OPENING)
        return [*self.line.cut(), m.OpenSession(ticket=self._next_ticket(), session=self.session)]

    def _ask(self, after_s: float = 0.0) -> list[m.SessionCommand]:
        if self._failures >= MAX_FAILURES:
            return self._finish(EXIT_FAILED, say("failed.too_often", times=self._failures))
        self.lease = None
        if self._is_paused:
            return self._rest()
        self._move(State.IDLE)
        return [m.AcquireLease(ticket=self._next_ticket(), after_s=after_s, may_wait=True)]

    def _rest(self) -> list[m.SessionCommand]:
        self._move(State.PAUSED)
        self._next_ticket()  # whatever is still on its way is old news: a lease among it is had by asking again
        return [m.CancelCall()]

    def _commit(self, after_s: float = 0.0) -> list[m.SessionCommand]:
        assert self._trained is not None
        self._move(State.COMMITTING)
        return [m.CommitSubmission(ticket=self._next_ticket(), lease_id=self._trained, after_s=after_s)]

    def _hand_over(self) -> list[m.SessionCommand]:
        """To the line, which is free; what comes next is asked for beside it."""
        assert self._trained is not None
        sent = self.line.take(self._trained, self._offset, self._line_ticket())
        self._trained = None
        return [*sent, *self._ask()]

    def _refused(self, event: m.CallRefused) -> list[m.SessionCommand]:
        if event.final:
            return [refused_for_good(event), *self._let_go()]
        kept, pause_s = self._offers.kept(event)
        return [kept, *self._commit(after_s=pause_s)]

    def _let_go(self) -> list[m.SessionCommand]:
        assert self._trained is not None
        dropped = m.DropSubmission(lease_id=self._trained)
        self._trained, self._failures, self._offers.refusals = None, 0, 0
        return [dropped, *self._ask()]

    def _give_up(self, event: m.CallRefused | m.FetchFailed | m.TrainingFailed) -> list[m.SessionCommand]:
        reason, detail = event.reason, event.detail if isinstance(event, m.TrainingFailed) else ""
        self._failures += 1
        failed = m.Tell(news=News.LEASE_FAILED, reason=reason, cause=event.cause, detail=detail)
        return [failed, *self._give_back(reason)]

    def _give_back(self, reason: str) -> list[m.SessionCommand]:
        assert self.lease is not None
        self._move(State.RETURNING)
        return [m.ReturnLease(ticket=self._next_ticket(), lease_id=self.lease.lease_id, reason=reason)]

    def _stop_training(self) -> list[m.SessionCommand]:
        if not self.is_training:
            return []
        self.is_training = False
        return [m.StopTraining(training=self._training)]

    def _finish(
        self, exit_code: int, reason: str, cause: Cause | None = None, *, run_over: bool = False
    ) -> list[m.SessionCommand]:
        self._move(State.OVER)
        self._next_ticket()  # whatever is still on its way is old news
        cut = self.line.cut()
        finish = m.Finish(exit_code=exit_code, reason=reason, cause=cause, keeps=self.has_unsent, run_over=run_over)
        return [*cut, finish]

    def _next_ticket(self) -> int:
        self._live = self._line_ticket()
        return self._live

    def _line_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def _move(self, state: State) -> None:
        self.state = moved(self.state, state)
