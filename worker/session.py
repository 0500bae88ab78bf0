"""A worker's life as a state machine without I/O: events in, commands out.

Decides what a worker does next: enrol, open a session, ask for a lease, fetch, train, commit, pause, leave. What was
committed to goes to the line (worker/sending.py); the next lease is asked for and trained while it is sent, and the one
after that once the line is free. Nothing is asked for before all that is trained is committed to: a coordinator that
has not heard of it would grant the same again.
Knows no clock, network, file or tensor (worker/agent.py has those). What holds always: moves follow `LEGAL_MOVES`
(worker/states.py); an event the present state does not allow raises `IllegalEvent` and changes nothing; an answer to a
call that was replaced, or about a lease that is gone, is old news and ignored; a trained submission is never forgotten
before it is settled, or refused for good; while it is paused, nothing new is asked for or begun.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.causes import Cause
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId
from protocol.lease import Lease
from worker import messages as m
from worker.messages import EXIT_DEVICE_LOST, EXIT_FAILED, EXIT_OK, EXIT_REFUSED, News
from worker.pauses import Pauses
from worker.sending import Offers, Sending, refused_for_good
from worker.states import ASKING, HOLDING, IN_SESSION, WHILE_TRAINING, S, State, moved

MAX_FAILURES = 3  # in a row; a machine that fails three leases fails the fourth, and each one costs the run a replica


class Session:
    """One worker's state. `handle` is its only way to change."""

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

    @property
    def lease_id(self) -> LeaseId | None:
        """The lease that heartbeats speak for, besides the one that is being sent: held, or just trained."""
        return self._trained or (self.lease.lease_id if self.lease else None)

    @property
    def has_unsent(self) -> bool:
        """Whether a trained submission waits on disk."""
        return self._trained is not None or self.line.is_busy

    def handle(self, event: m.SessionEvent) -> list[m.SessionCommand]:
        """Apply one event and say what to do."""
        if self._is_old_news(event):
            return []
        if isinstance(event, m.Reply) and event.ticket == self.line.ticket:
            return self._on_line(event)
        if isinstance(event, m.LeaseCancelled) and event.lease_id == self.line.lease_id:
            return self.line.cancelled(self._line_ticket())
        allowed, apply = EVENTS[type(event)]
        if self.state not in allowed:
            raise IllegalEvent(f"{type(event).__name__} in state {self.state.value}")
        return apply(self, event)

    def _is_old_news(self, event: m.SessionEvent) -> bool:
        match event:
            case m.Reply(ticket=ticket):
                if ticket > self._ticket:
                    raise IllegalEvent(f"{type(event).__name__} answers call {ticket}; only {self._ticket} were made")
                return ticket not in (self._live, self.line.ticket)
            case m.Trained(training=number) | m.TrainingFailed(training=number):
                if number > self._training:
                    raise IllegalEvent(f"{type(event).__name__} {number}; only {self._training} were started")
                return number < self._training or not self.is_training
            case m.SessionLost(session=number):
                if number > self.session:
                    raise IllegalEvent(f"SessionLost {number}; only {self.session} were opened")
                return number < self.session or self.state in (State.OPENING, State.OVER)
            case m.LeaseCancelled(lease_id=lease_id):
                gone = self.state in (State.LEAVING, State.OVER)
                return gone or lease_id not in (self.lease_id, self.line.lease_id)
        return False

    # ---- the way in ---------------------------------------------------------------------------------------------

    def _on_started(self, event: m.Started) -> list[m.SessionCommand]:
        if event.unsent:
            self._trained = event.unsent[-1]
        if len(event.unsent) > 1:  # the lease of the newer was granted once the older was committed to
            self.line.hold(event.unsent[0])
        if event.enrolled:
            return self._open()
        self._move(State.ENROLLING)
        return [m.Enrol(ticket=self._next_ticket())]

    def _on_opened(self, _: m.Opened) -> list[m.SessionCommand]:
        sent = self.line.offer(self._line_ticket()) if self.line.is_busy else []
        if self._trained is not None:
            return [*sent, *self._commit()]
        if self.is_training:
            self._move(State.RESUMING)
            return [*sent, m.AcquireLease(ticket=self._next_ticket(), after_s=0.0, may_wait=False)]
        return [*sent, *self._ask()]

    def _on_session_lost(self, event: m.SessionLost) -> list[m.SessionCommand]:
        if self.state is State.LEAVING:
            return self._finish(EXIT_OK, "left; the session had ended")
        if not self.is_training and self._trained is None:
            self.lease = None  # the new session asks again and is given the same lease
        return [m.Tell(news=News.SESSION_LOST, reason=event.reason, trains_on=self.is_training), *self._open()]

    # ---- a lease ------------------------------------------------------------------------------------------------

    def _on_lease_granted(self, event: m.LeaseGranted) -> list[m.SessionCommand]:
        if self.is_training and self.lease is not None and event.lease.lease_id == self.lease.lease_id:
            self.lease = event.lease
            self._move(State.TRAINING)
            return []
        stopped = self._stop_training()
        self.lease = event.lease
        if self._is_paused:
            return [*stopped, *self._give_back("the volunteer's machine is to pause")]
        self._move(State.FETCHING)
        return [*stopped, m.FetchShard(ticket=self._next_ticket(), lease=event.lease)]

    def _on_told_to_wait(self, event: m.ToldToWait) -> list[m.SessionCommand]:
        stopped = self._stop_training()
        self.lease = None
        return [*stopped, *self._ask(after_s=event.retry_after_s)]

    def _on_run_ended(self, event: m.RunEnded) -> list[m.SessionCommand]:
        stopped = [*self._stop_training(), *self.line.give_up()]  # what is still being sent counts nowhere any more
        return [*stopped, *self._finish(EXIT_OK, f"the run is over: {event.reason}")]

    def _on_fetched(self, _: m.Fetched) -> list[m.SessionCommand]:
        assert self.lease is not None
        self._training += 1
        self.is_training = True
        self._move(State.TRAINING)
        return [m.StartTraining(training=self._training, lease=self.lease)]

    def _on_trained(self, _: m.Trained) -> list[m.SessionCommand]:
        assert self.lease is not None
        self.is_training = False
        self._trained = self.lease.lease_id
        return [] if self.state is State.OPENING else self._commit()

    def _on_training_failed(self, event: m.TrainingFailed) -> list[m.SessionCommand]:
        self.is_training = False
        if event.device_lost:  # the lease stays ours, and comes back to the process that is started next
            return self._finish(EXIT_DEVICE_LOST, event.reason, event.cause)
        if self.state is not State.OPENING:
            return self._give_up(event)
        self.lease, self._failures = None, self._failures + 1
        return [m.Tell(news=News.LEASE_FAILED, reason=event.reason, cause=event.cause, detail=event.detail)]

    def _on_lease_cancelled(self, event: m.LeaseCancelled) -> list[m.SessionCommand]:
        if self._trained is not None:
            # This news may have crossed a commit that brings the lease back: only a commit's own answer settles it.
            return self._commit() if self.state is State.HELD_UP else []
        commands = [m.Tell(news=News.LEASE_ENDED, reason=event.reason), *self._stop_training()]
        self.lease = None
        return commands if self.state is State.OPENING else [*commands, *self._ask()]

    # ---- a submission -------------------------------------------------------------------------------------------

    def _on_committed(self, event: m.Committed) -> list[m.SessionCommand]:
        if event.settled:
            return self._let_go()
        self._offset, self._failures, self._offers.refusals = event.offset, 0, 0
        if self.line.is_busy:
            self._move(State.HELD_UP)
            return [m.Tell(news=News.HELD_UP, reason="")]
        return self._hand_over()

    def _on_line(self, event: m.Reply) -> list[m.SessionCommand]:
        """An answer to what the line asked; one that frees it lets the next submission, and the next lease, go on."""
        commands = self.line.handle(event, self._line_ticket())
        is_free = not self.line.is_busy and self.state is State.HELD_UP
        return [*commands, *(self._hand_over() if is_free else ())]

    def _on_returned(self, event: m.Returned | m.CallRefused) -> list[m.SessionCommand]:
        if self.state is State.LEAVING:
            return self._finish(EXIT_OK, getattr(event, "reason", "the lease is handed back"))
        return self._ask(after_s=self._pauses.failure_s * self._failures)

    def _on_call_refused(self, event: m.CallRefused) -> list[m.SessionCommand]:
        match self.state:
            case State.FETCHING:
                return self._give_up(event)
            case State.COMMITTING:
                return self._refused(event)
            case State.RETURNING | State.LEAVING:
                return self._on_returned(event)
        return [*self._stop_training(), *self._finish(EXIT_REFUSED, event.reason, event.cause)]

    # ---- pauses -------------------------------------------------------------------------------------------------

    def _on_paused(self, event: m.Paused) -> list[m.SessionCommand]:
        """What is in training is finished and sent, unless the policy says otherwise; what is not begun goes back."""
        told = [] if self._is_paused else [m.Tell(news=News.PAUSED, reason=event.reason)]
        self._is_paused = True
        match self.state:
            case State.IDLE:
                return [*told, *self._rest()]
            case State.FETCHING:
                return [*told, *self._give_back(event.reason)]
            case State.TRAINING | State.RESUMING if event.stops_training:
                return [*told, *self._stop_training(), *self._give_back(event.reason)]
            case State.OPENING if event.stops_training and self.is_training:
                self.lease = None  # nobody can be told now; the coordinator gives it up at its deadline
                return [*told, *self._stop_training()]
        return list(told)

    def _on_resumed(self, _: m.Resumed) -> list[m.SessionCommand]:
        if not self._is_paused:
            return []
        self._is_paused = False
        return [m.Tell(news=News.RESUMED, reason=""), *(self._ask() if self.state is State.PAUSED else ())]

    # ---- the way out --------------------------------------------------------------------------------------------

    def _on_leave_requested(self, event: m.LeaveRequested) -> list[m.SessionCommand]:
        if self.state in (State.LEAVING, State.OVER):
            return []
        stopped = self._stop_training()
        match self.state:
            case State.FETCHING | State.TRAINING | State.RESUMING if self.lease is not None:
                self._move(State.LEAVING)
                lease_id = self.lease.lease_id
                return [*stopped, m.ReturnLease(ticket=self._next_ticket(), lease_id=lease_id, reason=event.reason)]
            case State.RETURNING:
                self._move(State.LEAVING)
                return []
        return [*stopped, *self._finish(EXIT_OK, f"left: {event.reason}")]

    def _on_leave_timed_out(self, _: m.LeaveTimedOut) -> list[m.SessionCommand]:
        return [] if self.state is State.OVER else self._finish(EXIT_OK, "left without the coordinator's answer")

    # ---- moves --------------------------------------------------------------------------------------------------

    def _open(self, _: m.Enrolled | None = None) -> list[m.SessionCommand]:
        self.session += 1
        self._move(State.OPENING)
        return [*self.line.cut(), m.OpenSession(ticket=self._next_ticket(), session=self.session)]

    def _ask(self, after_s: float = 0.0) -> list[m.SessionCommand]:
        if self._failures >= MAX_FAILURES:
            return self._finish(EXIT_FAILED, f"{self._failures} leases in a row failed on this machine")
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

    def _finish(self, exit_code: int, reason: str, cause: Cause | None = None) -> list[m.SessionCommand]:
        self._move(State.OVER)
        self._next_ticket()  # whatever is still on its way is old news
        cut = self.line.cut()
        return [*cut, m.Finish(exit_code=exit_code, reason=reason, cause=cause, keeps=self.has_unsent)]

    def _next_ticket(self) -> int:
        self._live = self._line_ticket()
        return self._live

    def _line_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def _move(self, state: State) -> None:
        self.state = moved(self.state, state)


EVENTS: dict[type[m.SessionEvent], tuple[frozenset[State], Callable[[Session, Any], list[m.SessionCommand]]]] = {
    m.Started: (frozenset({S.DISCONNECTED}), Session._on_started),
    m.Enrolled: (frozenset({S.ENROLLING}), Session._open),
    m.Opened: (frozenset({S.OPENING}), Session._on_opened),
    m.LeaseGranted: (ASKING, Session._on_lease_granted),
    m.ToldToWait: (ASKING, Session._on_told_to_wait),
    m.RunEnded: (ASKING, Session._on_run_ended),
    m.Fetched: (frozenset({S.FETCHING}), Session._on_fetched),
    m.FetchFailed: (frozenset({S.FETCHING}), Session._give_up),
    m.Committed: (frozenset({S.COMMITTING}), Session._on_committed),
    m.Returned: (frozenset({S.RETURNING, S.LEAVING}), Session._on_returned),
    m.CallRefused: (frozenset(S) - {S.DISCONNECTED, S.TRAINING, S.PAUSED, S.OVER}, Session._on_call_refused),
    m.SessionLost: (IN_SESSION, Session._on_session_lost),
    m.Trained: (WHILE_TRAINING, Session._on_trained),
    m.TrainingFailed: (WHILE_TRAINING, Session._on_training_failed),
    m.LeaseCancelled: (HOLDING, Session._on_lease_cancelled),
    m.Paused: (frozenset(S) - {S.OVER}, Session._on_paused),
    m.Resumed: (frozenset(S) - {S.OVER}, Session._on_resumed),
    m.LeaveRequested: (frozenset(S), Session._on_leave_requested),
    m.LeaveTimedOut: (frozenset({S.LEAVING, S.OVER}), Session._on_leave_timed_out),
}
"""Each live event but the line's (worker/sending.py): the states that allow it, and what applies it."""
