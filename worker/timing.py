"""A worker's clock, its sleep and its randomness as one value.

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
