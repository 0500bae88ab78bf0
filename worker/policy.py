"""The volunteer's own rules: whether this machine may work now, and why not.

Decides that from what it is told of the machine (`Circumstances`), never by looking itself. Today's rule is that it
always may; schedules, idleness and batteries come in as other implementations of `Policy`. The session
(worker/session.py) decides what a pause means for the work in hand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What is known of the machine at this moment; None: not known here."""

    wall_s: float
    """Seconds since 1970, for schedules."""
    idle_s: float | None = None
    """Since somebody last used the machine."""
    on_battery: bool | None = None

    @classmethod
    def now(cls) -> Circumstances:
        """By the system's calendar; nothing else is looked at yet."""
        return cls(wall_s=time.time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A policy's answer."""

    allowed: bool
    reason: str = ""
    """Why not, as a part of a sentence that the volunteer reads."""
    stops_training: bool = False
    """Where it is not allowed: whether a lease in training goes back at once instead of being finished."""


class Policy(Protocol):
    """One volunteer's rules."""

    @property
    def look_again_s(self) -> float | None:
        """How often `may_work` is asked; None: its answer never changes."""

    def may_work(self, now: Circumstances) -> Permission:
        """Whether the machine may work now."""


class Always:
    """Whenever the worker runs."""

    look_again_s: float | None = None

    def may_work(self, now: Circumstances) -> Permission:
        """Yes."""
        del now
        return Permission(allowed=True)
