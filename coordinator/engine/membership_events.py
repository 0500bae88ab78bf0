"""Who comes, what they offer, and who goes. Named from events.py, like all events."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.engine.event import Event
from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnrolled(Event):
    """A key redeemed an invite, or came as another's sibling."""

    worker: WorkerId
    trusted: bool
    max_columns: int
    tokens_per_s: float
    """Probed speed; 0 where unknown."""
    measures: bool = False
    """Whether it offers to measure others' submissions."""
    name: str = ""
    """In simulations and older journals alone: a journal is kept for good, and a name may have to be forgotten."""
    owner: str = ""
    """Whose machine it is, as the operator said with the invite; empty: nobody's but its own."""
    invite: str = ""
    """Short digest of the invite; the invite itself is in no journal."""
    sibling_of: WorkerId | None = None
    """The first worker of the same machine, which signed for this one; None: it came with an invite of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityChanged(Event):
    """An enrolled worker opened a session and offers something else than before."""

    worker: WorkerId
    max_columns: int
    tokens_per_s: float
    measures: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft(Event):
    """Its volunteer is done here: what it holds goes back at once. It may join again."""

    worker: WorkerId
