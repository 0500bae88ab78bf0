"""Credit for a relay: as many bytes as its owner lets go, at their rate and under their rules, and no more.

Decides nothing but the order: what the relay has used up is waited for first, and only then may it use as much again.
So all that a node passes on keeps to one rate. Touches the sidecar through its keeper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from peering.pace import Spend
from protocol.errors import BarnraiseError

PIECE_BYTES = 256 * 1024
"""Asked of the rules at once: a pause is heeded after so many."""
AGAIN_S = 5.0


class Relay(Protocol):
    """What a `Companion` is here."""

    async def relay(self, grant: int) -> int:
        """So many bytes more may be passed on; how many more are of use."""


async def feed(
    relay: Relay,
    spend: Spend,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Until cancelled. `spend` waits for the turn of so many bytes, and raises RateLimited where none may go now."""
    wants = 0
    while True:
        try:
            grant = min(wants, PIECE_BYTES)
            if grant:
                await spend(grant)
            wants = await relay.relay(grant)
        except (BarnraiseError, OSError):  # not there yet, or not now
            wants = wants or PIECE_BYTES
            await pause(AGAIN_S)
