"""The volunteer's own rules: whether this machine may work now, and why not.

Decides that from what it is told of the machine (`Circumstances`), never by looking itself. Without rules it always
may; what a volunteer rules is another `Policy` (worker/rules/policy.py). The session (worker/session.py) decides what a
pause means for the work in hand.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What is known of the machine at this moment; None: nobody looked, or it cannot be known here (`lacking`)."""

    wall_s: float
    """Seconds since 1970, for schedules."""
    idle_s: float | None = None
    """Since somebody last used keyboard or mouse."""
    idle_source: str = ""
    """Who says so."""
    on_battery: bool | None = None
    battery_percent: float | None = None
    programs: frozenset[str] | None = None
    """Of those that the rules name, which run."""
    gpu: int | None = None
    """Number of the GPU that this worker uses."""
    gpu_others_percent: float | None = None
    """Share of the time in which other programs keep it busy."""
    gpu_celsius: float | None = None
    gpu_watts: float | None = None
    cpu_celsius: float | None = None
    is_metered: bool | None = None
    today_bytes: int | None = None
    """That went over the line, of the worker's, since midnight."""
    month_bytes: int | None = None
    data_licence: str | None = None
    """Of what the run trains on; None: not known yet. Empty: the run does not say."""
    is_training: bool = True
    """Whether this worker trains now: only then the readings say anything of what training takes."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Field to the reason why it cannot be known on this machine."""

    @classmethod
    def now(cls) -> Circumstances:
        """By the system's calendar; nothing else is looked at."""
        return cls(wall_s=time.time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A policy's answer."""

    allowed: bool
    reason: str = ""
    """Why not, as a part of a sentence that the volunteer reads; it says until when, where that is known."""
    stops_training: bool = False
    """Where it is not allowed: whether what is in training stops at once instead of being finished."""
    until_s: float | None = None
    """Where it is not allowed: seconds since 1970 until when at the least, where that is known."""
    share: float = 1.0
    """Where it is allowed: of the time, in which training works."""
    slowed: str = ""
    """Why that is less than all of it, as a part of a sentence."""


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
