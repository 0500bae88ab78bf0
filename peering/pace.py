"""How fast a worker gives: never above the rate that its volunteer said, and to few at once.

Decides who is given something now. Always: bytes go out no faster than the rate over any second and a frame; of one key
there is one transfer at a time, so that nobody takes both slots. Clock and sleep are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator

from protocol.errors import RateLimited


class Pace:
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
    """So many transfers at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: set[bytes] = set()

    @contextlib.contextmanager
    def of(self, key: bytes) -> Iterator[None]:
        """A slot for the holder of `key`; RateLimited, which is nobody's fault, where there is none."""
        if key in self._taken or len(self._taken) >= self._most:
            raise RateLimited("all upload slots are taken; come again")
        self._taken.add(key)
        try:
            yield
        finally:
            self._taken.discard(key)
