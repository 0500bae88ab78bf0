"""A worker's life as a state machine without I/O: events in, commands out.

Decides what a worker does next: enrol, open a session, ask for a lease, fetch, train, commit, pause, leave. What was
committed to goes to the line (worker/sending.py); the next lease is asked for and trained while it is sent, and the one
after that once the line is free. Nothing is asked for before all that is trained is committed to: a coordinator that
has not heard of it would grant the same again.
Knows no clock, network, file or tensor (worker/agent.py has those). What holds always: moves follow `LEGAL_MOVES`
(worker/states.py); an event the present state does not allow raises `IllegalEvent` and changes nothing; an answer to a
call that was replaced, or about a lease that is gone, is old news and ignored; a trained submission is never forgotten
before it is settled, or refused for good; while it is paused, nothing new is asked for or begun, and a lease whose
training a pause stopped waits for its end, as long as it can still be done in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.errors import IllegalEvent
from worker import messages as m
from worker.messages import EXIT_DEVICE_LOST, EXIT_OK, EXIT_REFUSED, News
from worker.moves import SessionMoves
from worker.states import ASKING, HOLDING, IN_SESSION, WHILE_TRAINING, S, State
from worker.words import Words, foreign, say

PAUSE_TOLD = "the volunteer's machine is to pause"
"""What the coordinator hears: what runs on a machine, and who sits there, is nobody else's business."""


class Session(SessionMoves):
    """One worker's state. `handle` is its only way to change."""

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
        return [*sent, *(self._rest() if self._is_paused else self._ask())]  # what waits for a pause's end goes on to

    def _on_session_lost(self, event: m.SessionLost) -> list[m.SessionCommand]:
        if self.state is State.LEAVING:
            return self._finish(EXIT_OK, say("left.session_over"))
        if not self.is_training and self._trained is None and self.state is not State.PAUSED:
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
            return [*stopped, *self._give_back(PAUSE_TOLD)]
        if event.unwanted:
            self._refrain_s = self._pauses.unwanted_s
            told = m.Tell(news=News.LEASE_UNWANTED, reason=event.unwanted, pause_s=self._refrain_s)
            return [*stopped, told, *self._give_back(event.unwanted)]
        self._move(State.FETCHING)
        return [*stopped, m.FetchShard(ticket=self._next_ticket(), lease=event.lease)]

    def _on_told_to_wait(self, event: m.ToldToWait) -> list[m.SessionCommand]:
        stopped = self._stop_training()
        self.lease = None
        return [*stopped, *self._ask(after_s=event.retry_after_s)]

    def _on_run_ended(self, event: m.RunEnded) -> list[m.SessionCommand]:
        stopped = [*self._stop_training(), *self.line.give_up()]  # what is still being sent counts nowhere any more
        return [*stopped, *self._finish(EXIT_OK, say("run_over", why=foreign(event.reason)), run_over=True)]

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
            taken = isinstance(event, m.Returned)
            return self._finish(EXIT_OK, say("left.handed_back" if taken else "left.not_taken"))
        refrain_s, self._refrain_s = self._refrain_s, 0.0
        return self._ask(after_s=max(refrain_s, self._pauses.failure_s * self._failures))

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
        stops = event.stops_training and self.is_training
        told = m.Tell(news=News.PAUSED, reason=event.reason, trains_on=self.is_training and not stops, suspends=stops)
        commands: list[m.SessionCommand] = [] if self._is_paused and not stops else [told]
        self._is_paused = True
        match self.state:
            case State.IDLE:
                return [*commands, *self._rest()]
            case State.FETCHING:
                return [*commands, *self._give_back(PAUSE_TOLD)]
            case State.TRAINING | State.RESUMING if stops:
                return [*commands, *self._stop_training(), *self._rest()]
            case State.OPENING if stops:
                return [*commands, *self._stop_training()]
        return commands

    def _on_resumed(self, _: m.Resumed) -> list[m.SessionCommand]:
        if not self._is_paused:
            return []
        self._is_paused = False
        told = m.Tell(news=News.RESUMED, reason="")
        if self.state is not State.PAUSED:
            return [told]
        if self.lease is None:
            return [told, *self._ask()]
        self._move(State.FETCHING)
        return [told, m.FetchShard(ticket=self._next_ticket(), lease=self.lease)]

    def _on_out_of_time(self, event: m.OutOfTime) -> list[m.SessionCommand]:
        if self.state is not State.PAUSED or self.lease is None:
            return []
        return [m.Tell(news=News.OUT_OF_TIME, reason=event.reason), *self._give_back(event.reason)]

    # ---- the way out --------------------------------------------------------------------------------------------

    def _on_leave_requested(self, event: m.LeaveRequested) -> list[m.SessionCommand]:
        if self.state in (State.LEAVING, State.OVER):
            return []
        stopped = self._stop_training()
        match self.state:
            case State.FETCHING | State.TRAINING | State.RESUMING | State.PAUSED if self.lease is not None:
                self._move(State.LEAVING)
                lease_id = self.lease.lease_id
                return [*stopped, m.ReturnLease(ticket=self._next_ticket(), lease_id=lease_id, reason=event.reason)]
            case State.RETURNING:
                self._move(State.LEAVING)
                return []
        return [*stopped, *self._finish(EXIT_OK, say("left", why=Words(event.reason)))]

    def _on_leave_timed_out(self, _: m.LeaveTimedOut) -> list[m.SessionCommand]:
        return [] if self.state is State.OVER else self._finish(EXIT_OK, say("left.unanswered"))


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
    m.OutOfTime: (frozenset(S), Session._on_out_of_time),
    m.LeaveRequested: (frozenset(S), Session._on_leave_requested),
    m.LeaveTimedOut: (frozenset({S.LEAVING, S.OVER}), Session._on_leave_timed_out),
}
"""Each live event but the line's (worker/sending.py): the states that allow it, and what applies it."""
