"""How fast a worker gives: never above the rate that its volunteer said, and to few at once.

Decides who is given something now. Always: bytes go out no faster than the rate over any second and a frame; of one key
there is one transfer at a time, so that nobody takes both slots. Clock and sleep are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from peering.limits import MOST_QUEUED, QUEUED_S
from protocol.errors import RateLimited

Spend = Callable[[int], Awaitable[None]]
"""Waits for the turn of so many bytes."""


async def at_once(_count: int) -> None:
    """A `Spend` where no rule holds anything up."""


class UplinkPace:
    """One line's rate, shared by all that goes over it."""

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bytes_per_s, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._free_s = clock()

    async def spend(self, count: int) -> None:
        """Wait until `count` bytes more may leave."""
        now_s = self._clock()
        begins_s = max(now_s, self._free_s)
        self._free_s = begins_s + count / self._bytes_per_s
        if begins_s > now_s:
            await self._sleep(begins_s - now_s)


class Slots:
    """So many transfers at once, and so many that wait a moment for one to end, first come, first served.

    Without the waiting, whoever has just been given a block comes first again, and others never have a turn.
    """

    def __init__(self, most: int, queue: int = MOST_QUEUED, patience_s: float = QUEUED_S) -> None:
        self._free = asyncio.Semaphore(most)
        self._keys: set[bytes] = set()
        self._most, self._patience_s = most + queue, patience_s

    @contextlib.asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        """A slot for the holder of `key`; RateLimited, which is nobody's fault, where there is none soon."""
        if key in self._keys or len(self._keys) >= self._most:
            raise RateLimited("all upload slots are taken; come again")
        self._keys.add(key)
        try:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._free.acquire()
            except TimeoutError:
                raise RateLimited("no upload slot came free; come again") from None
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._keys.discard(key)
