"""What goes over the line, to the coordinator and to other workers: how much in a day and a month, and how fast.

Decides how a rate is kept: each piece waits until those before it have had their time, whichever run of the process
they were of, and no time is saved up while nothing goes; and that under a rate no more transfers go on at once than it
keeps alive. Work that is sent goes before what is given to other workers. The ledger counts in calendar days of the
local clock and is shared by all workers of one home: each adds what it saw since it last wrote, so that a quota holds
over restarts. Touches its one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from peering.limits import MIN_PEER_BYTES_PER_S
from protocol.errors import BarnraiseError, RateLimited
from protocol.ids import Digest
from protocol.limits import FRAME_HEADER_BYTES
from protocol.private_files import write_private
from protocol.signing import Metadata
from worker.rules.model import NetworkRules, bytes_of
from worker.wire import Wire

if TYPE_CHECKING:
    from peering.pace import Spend
    from protocol.tickets import Ticket
    from worker.swarm import HolderLine

LEDGER_FILE: Final = "traffic.json"
KEPT_DAYS: Final = 62
"""A month and what came before it, for people to look at."""
WRITE_EVERY_S: Final = 30.0
A_TRANSFER: Final = 2 * MIN_PEER_BYTES_PER_S
"""Of a ruled rate, what each transfer needs to be broken off by nobody."""


class RuledPace:
    """Lets pieces through one after another at a rate that may change at any time."""

    def __init__(
        self, rate: Callable[[], int | None], clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """`rate`: bytes a second; None: as fast as it goes."""
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._free_s = float("-inf")
        """When all that was let through has had its time."""
        self.transfers = 0
        """That go on."""
        self._ended = asyncio.Event()

    @property
    def is_ruled(self) -> bool:
        """Whether there is a rate to keep."""
        return self._rate() is not None

    @property
    def is_full(self) -> bool:
        """Whether one transfer more would be too slow for whoever is at the other end, and the others with it."""
        rate = self._rate()
        return rate is not None and self.transfers >= max(1, rate // A_TRANSFER)

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """One begins now, whatever else goes on."""
        self.transfers += 1
        try:
            yield
        finally:
            self.transfers -= 1
            self._ended.set()

    async def turn(self) -> None:
        """Wait until one transfer more may begin."""
        while self.is_full:
            self._ended.clear()
            await self._ended.wait()

    async def let_through(self, count: int) -> None:
        """Wait as long as `count` bytes take, after those before them."""
        rate = self._rate()
        if rate is None:
            return
        now_s = self._clock()
        self._free_s = max(self._free_s, now_s) + count / rate
        await self._sleep(self._free_s - now_s)


class Ledger:
    """Bytes by day, over restarts."""

    def __init__(self, home: Path, clock: Callable[[], float]) -> None:
        self._path, self._clock = home / LEDGER_FILE, clock
        self._days = _read(self._path)
        self._unwritten: dict[str, int] = {}
        self._written_s = clock()

    def add(self, count: int, today: date) -> None:
        """So many bytes went either way."""
        day = today.isoformat()
        self._unwritten[day] = self._unwritten.get(day, 0) + count

    def used(self, today: date) -> tuple[int, int]:
        """Bytes of the day, and of its month."""
        month = today.isoformat()[:7]
        both = (dict(self._days), dict(self._unwritten))  # it is asked beside the loop that counts
        of_day = sum(days.get(today.isoformat(), 0) for days in both)
        return of_day, sum(count for days in both for day, count in days.items() if day.startswith(month))

    def write(self, *, now: bool = False) -> None:
        """Add what is new to the file, from time to time or `now`. A disk that takes no writes costs the count only."""
        if not self._unwritten or (not now and self._clock() - self._written_s < WRITE_EVERY_S):
            return
        self._written_s = self._clock()
        days = _read(self._path)
        for day, count in self._unwritten.items():
            days[day] = days.get(day, 0) + count
        kept = dict(sorted(days.items())[-KEPT_DAYS:])
        try:
            write_private(self._path, json.dumps(kept).encode())
        except (BarnraiseError, OSError):
            return
        self._days, self._unwritten = kept, {}


class CountedWire:
    """A `Wire` whose bytes are counted and let through at the volunteer's rate. Small calls are counted alone."""

    def __init__(
        self, wire: Wire, up: RuledPace, down: RuledPace, ledger: Ledger, today: Callable[[], date] | None = None
    ) -> None:
        self._wire, self._up, self._down = wire, up, down
        self._ledger, self._today = ledger, today or (lambda: datetime.now().date())

    def bootstrap(self, timeout_s: float) -> bytes:
        """A certificate is nothing to count."""
        return self._wire.bootstrap(timeout_s)

    def connect(self, ca_pem: bytes) -> None:
        """As the wire does."""
        self._wire.connect(ca_pem)

    async def close(self) -> None:
        """As the wire does; what was counted is written."""
        await self._wire.close()
        self._ledger.write(now=True)

    async def unary(self, name: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One message there and one back."""
        answer = await self._wire.unary(name, body, metadata, timeout_s)
        self._count(len(body) + len(answer))
        return answer

    async def upload(self, name: str, messages: AsyncIterator[bytes], metadata: Metadata, timeout_s: float) -> bytes:
        """Each message waits its turn before it is sent."""

        async def slowly() -> AsyncIterator[bytes]:
            async for message in messages:
                await self._up.let_through(len(message))
                self._count(len(message))
                yield message

        with self._up.transfer():
            return await self._wire.upload(name, slowly(), metadata, timeout_s)

    async def download(
        self, name: str, body: bytes, metadata: Metadata, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        """The next message is asked for after the time that this one takes: flow control holds the sender back."""
        with self._down.transfer():  # at once: whoever called counts the seconds until the first frame
            frames = self._wire.download(name, body, metadata, timeout_s)
            try:
                async for frame in frames:
                    await self._down.let_through(len(frame))
                    self._count(len(frame))
                    yield frame
            finally:
                await frames.aclose()

    def _count(self, count: int) -> None:
        self._ledger.add(count, self._today())
        self._ledger.write()


class RuledLine:
    """The line to another worker, whose bytes are counted and let through at the volunteer's rate."""

    def __init__(self, line: HolderLine, down: RuledPace, count: Callable[[int], None]) -> None:
        self._line, self._down, self._count = line, down, count

    @property
    def name(self) -> Digest:
        """The other worker's."""
        return self._line.name

    @property
    def ticket(self) -> Ticket | None:
        """What it is shown."""
        return self._line.ticket

    @ticket.setter
    def ticket(self, ticket: Ticket | None) -> None:
        self._line.ticket = ticket

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As the line gives it: nobody is asked before it is this transfer's turn, since a call has its deadline."""
        await self._down.turn()
        with self._down.transfer():
            async with contextlib.aclosing(self._line.block(digest, payload_bytes, offset)) as pieces:
                async for piece in pieces:
                    await self._down.let_through(len(piece))
                    self._count(len(piece) + FRAME_HEADER_BYTES)
                    yield piece

    async def close(self) -> None:
        """Hang up."""
        await self._line.close()


class HouseLine:
    """The line of one home, as all runs of a process use it: one ledger, and one pace each way."""

    def __init__(
        self,
        home: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.ledger = Ledger(home, clock)
        self.rules = NetworkRules()
        """In force: as whoever read them last has found them."""
        self._up = RuledPace(lambda: bytes_of(self.rules.upload_rate), clock, sleep)
        self._down = RuledPace(lambda: bytes_of(self.rules.download_rate), clock, sleep)
        self._given = 0
        """Blocks that other workers are being given."""

    def counted(self, wire: Wire) -> CountedWire:
        """`wire`, at the volunteer's rates."""
        return CountedWire(wire, self._up, self._down, self.ledger)

    def taking(self, line: HolderLine) -> RuledLine:
        """The line to another worker, at the volunteer's rates."""
        return RuledLine(line, self._down, self._count)

    @contextlib.asynccontextmanager
    async def giving(self, is_closed: Callable[[], bool]) -> AsyncIterator[Spend]:
        """While another worker is given a block; RateLimited where, and as soon as, there is no room for that."""

        def check() -> None:
            is_sending = self._up.is_ruled and self._up.transfers > self._given
            if is_closed() or is_sending:
                raise RateLimited("this worker's line is in use, or not for others now; come again")

        async def spend(count: int) -> None:
            check()
            await self._up.let_through(count)
            self._count(count)

        check()
        if self._up.is_full:
            raise RateLimited("this worker's line is in use; come again")
        with self._up.transfer():
            self._given += 1
            try:
                yield spend
            finally:
                self._given -= 1

    async def passing(self, count: int, is_closed: Callable[[], bool]) -> None:
        """Wait until so many bytes of others may come in and go out again; both are counted."""
        async with self.giving(is_closed) as spend:
            await spend(count)
        await self._down.let_through(count)
        self._count(count)

    def _count(self, count: int) -> None:
        self.ledger.add(count, datetime.now().date())
        self.ledger.write()


def _read(path: Path) -> dict[str, int]:
    try:
        days = json.loads(path.read_bytes())
        return {str(date.fromisoformat(day)): max(0, int(count)) for day, count in days.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
