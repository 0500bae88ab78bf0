"""Where a worker may stand, and which moves lead from there: tables, no behaviour.

`worker/session.py` holds to them, and has the table of events; tests read both.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a worker stands."""

    DISCONNECTED = "disconnected"
    ENROLLING = "enrolling"
    OPENING = "opening"
    IDLE = "idle"
    PAUSED = "paused"
    """In session, without a lease and not asking for one: the volunteer's policy says so."""
    FETCHING = "fetching"
    TRAINING = "training"
    RESUMING = "resuming"
    """Training goes on while a new session asks whether the lease still stands."""
    COMMITTING = "committing"
    UPLOADING = "uploading"
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
    S.PAUSED: frozenset({S.IDLE, S.OPENING, S.OVER}),
    S.FETCHING: frozenset({S.TRAINING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.TRAINING: frozenset({S.COMMITTING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.RESUMING: frozenset({S.TRAINING, S.FETCHING, S.COMMITTING, S.RETURNING, *_FREE, *_LOST_OR_LEFT}),
    S.COMMITTING: frozenset({S.UPLOADING, S.OPENING, S.OVER, *_FREE}),
    S.UPLOADING: frozenset({S.COMMITTING, S.OPENING, S.OVER, *_FREE}),
    S.RETURNING: frozenset({*_FREE, *_LOST_OR_LEFT}),
    S.LEAVING: frozenset({S.OVER}),
    S.OVER: frozenset(),
}

IN_SESSION = frozenset(S) - {S.DISCONNECTED, S.ENROLLING, S.OPENING, S.OVER}
HOLDING = frozenset({S.FETCHING, S.TRAINING, S.RESUMING, S.OPENING, S.COMMITTING, S.UPLOADING, S.RETURNING})
WHILE_TRAINING = frozenset({S.TRAINING, S.RESUMING, S.OPENING})
ASKING = frozenset({S.IDLE, S.RESUMING})
