"""What a coordinator forgets by itself: where people came from, once it has been kept for two weeks.

Decides how often it looks. Touches the registry. Always: a disk that takes nothing is tried again the next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from coordinator.store.people import ADDRESSES_KEPT_S, People
from protocol.errors import StorageTrouble

LOOK_EVERY_S = 3600.0

_log = structlog.get_logger("coordinator")


async def forget_addresses(
    people: People, wall_time: Callable[[], float], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """At once and every hour, until it is cancelled."""
    while True:
        try:
            count = await asyncio.to_thread(people.forget_addresses, wall_time() - ADDRESSES_KEPT_S)
            if count:
                _log.info("addresses_forgotten", count=count)
        except StorageTrouble as error:
            _log.warning("addresses_not_forgotten", reason=str(error))
        await sleep(LOOK_EVERY_S)
