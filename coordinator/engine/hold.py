"""What operators ordered, as the state keeps it: whether the run is held, what is announced, and who did what.

Decides nothing; coordinator/engine/orders.py applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HoldKind(StrEnum):
    """How the run is held."""

    PAUSED = "paused"
    """Time stands: nothing is granted, no timer runs, what is sent is taken."""
    DRAINING = "draining"
    """Nothing is granted; the open round ends as rounds end, and none begins after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The run is held since `since_s`; run time, moved with every other open moment by a gap."""

    kind: HoldKind
    since_s: float
    actor: str
    why: str

    @property
    def told(self) -> str:
        """For the operator: how, why, and what ends it."""
        why = f" ({self.why})" if self.why else ""
        return f"the run is {self.kind}{why}; `barnraise coordinator resume` lets it go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A line from the operator for every volunteer."""

    text: str
    at_s: float
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecord:
    """Something that a person ordered."""

    number: int
    at_s: float
    actor: str
    """The account that it was ordered from; empty: from before accounts were kept."""
    kind: str
    """The event's name."""
    about: str
    """Whom, or which setting."""
    detail: str
    """The new value, or why, in the operator's words."""
