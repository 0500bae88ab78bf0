"""A worker's clock, its sleep and its randomness as one value, and how long it pauses before it tries again.

Decides nothing; nothing else in a worker's event loop asks the system for the time or for random numbers, so that a
simulation can give all three.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What passes time and what is left to chance."""

    clock: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: random.Random = field(default_factory=random.Random)
    """For jitter; no secret comes from it."""

    async def jittered(self, seconds: float) -> None:
        """Sleep about so long: workers that were told the same pause do not come back in step."""
        if seconds > 0:
            await self.sleep(seconds * self.draw.uniform(0.8, 1.2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds before the next try, by what went wrong."""

    failure_s: float = 5.0
    """After a lease that failed here, times the failures in a row."""
    refused_s: float = 2.0
    """Before a submission that was refused, but not for good, is offered again; then twice as long, and so on."""
    most_refused_s: float = 300.0
    upload_s: float = 1.0
    """Before a broken upload is resumed, growing, with full jitter."""
    most_upload_s: float = 60.0
    disk_s: float = 5.0
    """How often a disk that took no writes is tried again: a volunteer who makes room sees work go on at once."""
    kept_after_deadline_s: float = 7200.0
    """After its lease's deadline a submission still counts in the round that follows its own; a round lasts an hour at
    most unless the operator has said otherwise."""
