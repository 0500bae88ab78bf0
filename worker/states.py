"""Where a worker may stand, and which moves lead from there: tables, and no behaviour but holding to them.

`worker/session.py` holds to them, and has the table of events; tests read both.
"""

from __future__ import annotations

from enum import Enum

from protocol.errors import IllegalEvent


class State(Enum):
    """Where a worker stands."""

    DISCONNECTED = "disconnected"
    ENROLLING = "enrolling"
    OPENING = "opening"
    IDLE = "idle"
    PAUSED = "paused"
    """In session and not asking for a lease: the volunteer's policy says so. One whose training the pause stopped is
    held until it cannot be done in time any more."""
    FETCHING = "fetching"
    TRAINING = "training"
    RESUMING = "resuming"
    """Training goes on while a new session asks whether the lease still stands."""
    COMMITTING = "committing"
    HELD_UP = "held up"
    """The next lease waits: one submission is still being sent, and another is trained and committed to."""
    RETURNING = "returning"
    """Handing back a lease that cannot be done, to go on with another."""
    LEAVING = "leaving"
    OVER = "over"


S = State
_LOST_OR_LEFT = {S.OPENING, S.LEAVING, S.OVER}
_FREE = {S.IDLE, S.PAUSED}
LEGAL_MOVES: dict[State, frozenset[State]] = {
    S.DISCONNECTED: frozenset({S.ENROLLING, S.OPENING, S.OVER}),
    S.ENROLLING: frozenset({S.OPENING, S.OVER}),
    S.OPENING: frozenset({S.RESUMING, S.COMMITTING, S.OVER, *_FREE}),
    S.IDLE: frozenset({S.FETCHING, S.RETURNING, S.PAUSED, S.OPENING, S.OVER}),
    S.PAUSED: frozenset({S.IDLE, S.FETCHING, S.RETURNING, *_LOST_OR_LEFT}),
    S.FETCHING: frozenset({S.TRAINING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.TRAINING: frozenset({S.COMMITTING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.RESUMING: frozenset({S.TRAINING, S.FETCHING, S.COMMITTING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.COMMITTING: frozenset({S.HELD_UP, S.OPENING, S.OVER, *_FREE}),
    S.HELD_UP: frozenset({S.COMMITTING, S.OPENING, S.OVER, *_FREE}),
    S.RETURNING: frozenset({*_FREE, *_LOST_OR_LEFT}),
    S.LEAVING: frozenset({S.OVER}),
    S.OVER: frozenset(),
}


def moved(old: State, new: State) -> State:
    """`new`, if it is `old` or the table allows it; IllegalEvent where it does not."""
    if new is not old and new not in LEGAL_MOVES[old]:
        raise IllegalEvent(f"a worker cannot go from {old.value} to {new.value}")
    return new


IN_SESSION = frozenset(S) - {S.DISCONNECTED, S.ENROLLING, S.OPENING, S.OVER}
HOLDING = frozenset({S.PAUSED, S.FETCHING, S.TRAINING, S.RESUMING, S.OPENING, S.COMMITTING, S.HELD_UP, S.RETURNING})
WHILE_TRAINING = frozenset({S.TRAINING, S.RESUMING, S.OPENING})
ASKING = frozenset({S.IDLE, S.RESUMING})
