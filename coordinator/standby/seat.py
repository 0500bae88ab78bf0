"""What a coordinator's machine must never forget of its part: who it is, whether it leads, and under which conditions.

Decides nothing. A `Seat` is kept on disk before anything that follows from it is done; whoever reads it back after a
kill goes on from there. `Held` is the same of the run as a whole, and lies with the witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FIRST_EPOCH = 1


class SeatRole(StrEnum):
    """What a machine is to a run."""

    LEADS = "leads"
    FOLLOWS = "follows"
    FENCED = "fenced"
    """It led, and another one does now: it answers nobody any more."""


class Mode(StrEnum):
    """What a leader's answers wait for. In all but `async` they wait for the follower, too."""

    ASYNC = "async"
    ENTERING = "entering"
    """The follower, or the witness, has still to say that it is in step."""
    SYNC = "sync"
    LEAVING = "leaving"
    """The witness has still to say that the follower has not been promoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One machine's part."""

    me: str
    role: SeatRole = SeatRole.LEADS
    epoch: int = FIRST_EPOCH
    """Of a follower: that of the leader whose records it holds."""
    mode: Mode = Mode.ASYNC
    follower: str = ""
    """For whom a leader waits."""
    whole: bool = True
    """Whether what a follower has is a whole run: not while it fetches one."""

    @property
    def waits(self) -> bool:
        """Whether a leader answers only what its follower has."""
        return self.mode is not Mode.ASYNC


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the witness keeps of one run."""

    number: int
    """Of changes; each is made by whoever names the one before, so that a request that comes late changes nothing."""
    epoch: int
    leader: str
    sync: bool
    follower: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a machine asks of the witness; without `want` it only looks."""

    by: str
    expects: int = 0
    want: Held | None = None
    confirmed: bool = False
    """Whether a person said that the other machine is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessAnswer:
    """What the witness says to it."""

    held: Held | None
    """As it is after the request; None: it knows nothing of this run."""
    granted: bool = False
    why: str = ""
