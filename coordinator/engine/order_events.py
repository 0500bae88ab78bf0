"""What operators order about the run as a whole: end it, hold it, let it go on, change a setting, tell everybody.
Named from events.py, like all events."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.engine.event import Event
from coordinator.engine.hold import HoldKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(Event):
    """Base of all that a person orders."""

    actor: str = ""
    """The account that it came from, for whoever looks later who did what; volunteers are not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChanged(Ordered):
    """A setting of the rounds; it counts from the next round on."""

    key: str
    """As `quorum` or `inner.learning_rate`."""
    value: str
    """JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeld(Ordered):
    """Nothing is granted from now on, until `HoldLifted`. Held otherwise before, the run is held like this now."""

    kind: HoldKind
    why: str
    """In the operator's words; volunteers are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldLifted(Ordered):
    """The run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced(Ordered):
    """A line for every volunteer, in place of the one before."""

    text: str
    """Empty: nothing is announced any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRevoked(Ordered):
    """Nobody else comes in by this invite; whoever did stays."""

    invite: str
    """Its short digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitesMade(Ordered):
    """Join links were made. Whom they are for stands in the registry, which forgets."""

    count: int
    uses: int
    """Machines that each is for."""
    trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKeyAdded(Ordered):
    """Somebody may order from elsewhere, or only look."""

    operator: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKeyRevoked(Ordered):
    """And may no more."""

    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped(Ordered):
    """The run is to end."""

    reason: str
