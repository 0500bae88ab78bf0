"""The line's meter: a rate that is kept under a made-up clock, and a count that outlives the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import RateLimited
from protocol.ids import Digest
from protocol.tickets import Ticket
from worker.rules.model import NetworkRules
from worker.rules.traffic import LEDGER_FILE, WRITE_EVERY_S, CountedWire, HouseLine, Ledger, RuledPace

TODAY = date(2026, 11, 30)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += max(0.0, seconds)


class Line:
    """A wire that answers everything at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def bootstrap(self, timeout_s: float) -> bytes:
        return b"pem"

    def connect(self, ca_pem: bytes) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def unary(self, name: str, body: bytes, metadata: Any, timeout_s: float) -> bytes:
        return b"answer"

    async def upload(self, name: str, messages: AsyncIterator[bytes], metadata: Any, timeout_s: float) -> bytes:
        self.sent += [message async for message in messages]
        return b"done"

    async def download(self, name: str, body: bytes, metadata: Any, timeout_s: float) -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield bytes(1000)


async def test_a_rate_is_kept_and_may_change_at_any_time() -> None:
    clock = Clock()
    rates: list[int | None] = [1000]
    throttle = RuledPace(lambda: rates[-1], clock, clock.sleep)
    for _ in range(5):
        await throttle.let_through(1000)
    assert clock.now_s == 105.0
    clock.now_s = 200.0  # nothing went for a while: no time was saved up
    await throttle.let_through(2000)
    assert clock.now_s == 202.0
    rates.append(2000)
    await throttle.let_through(1000)
    assert clock.now_s == 202.5
    rates.append(None)
    await throttle.let_through(10**9)
    assert clock.now_s == 202.5


async def test_what_goes_over_the_line_is_slowed_and_counted(tmp_path: Path) -> None:
    clock, line = Clock(), Line()
    ledger = Ledger(tmp_path, clock)
    up, down = (RuledPace(lambda rate=rate: rate, clock, clock.sleep) for rate in (1000, 500))  # type: ignore[misc]
    wire = CountedWire(line, up, down, ledger, lambda: TODAY)

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1000)

    assert await wire.upload("Upload", messages(), (), 1.0) == b"done"
    assert (len(line.sent), clock.now_s) == (4, 104.0)
    frames = [frame async for frame in wire.download("Download", b"", (), 1.0)]
    assert [len(frame) for frame in frames] == [1000] * 3
    assert clock.now_s == 110.0
    assert await wire.unary("Heartbeat", b"beat", (), 1.0) == b"answer"
    assert ledger.used(TODAY) == (7010, 7010)
    await wire.close()
    assert line.closed
    assert Ledger(tmp_path, clock).used(TODAY) == (7010, 7010)


def test_two_workers_of_one_home_add_up_and_days_are_kept_apart(tmp_path: Path) -> None:
    clock = Clock()
    one, other = Ledger(tmp_path, clock), Ledger(tmp_path, clock)
    one.add(5, TODAY)
    one.add(7, date(2026, 11, 1))
    other.add(100, TODAY)
    one.write()
    assert not (tmp_path / LEDGER_FILE).exists(), "not with every byte"
    clock.now_s += WRITE_EVERY_S
    one.write()
    other.write(now=True)
    assert other.used(TODAY) == (105, 112)
    assert other.used(date(2026, 12, 1)) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"today": 3}', b'{"2026-11-30": "much"}', b"\xff"])
def test_a_torn_count_begins_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(content)
    assert Ledger(tmp_path, Clock()).used(TODAY) == (0, 0)


class Neighbour:
    """Another worker that gives what it is asked for."""

    def __init__(self) -> None:
        self.name, self.asked = Digest("ab" * 32), 0
        self.ticket: Ticket | None = None

    async def close(self) -> None: ...

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes, None]:
        self.asked += 1
        for _ in range(2):
            yield bytes(payload_bytes // 2)


def house_line(tmp_path: Path, **rules: Any) -> tuple[HouseLine, Clock]:
    clock = Clock()
    line = HouseLine(tmp_path, clock, clock.sleep)
    line.rules = NetworkRules(**rules)
    return line, clock


def used(line: HouseLine) -> int:
    return line.ledger.used(datetime.now().date())[0]


async def test_what_comes_from_other_workers_is_slowed_and_counted(tmp_path: Path) -> None:
    line, clock = house_line(tmp_path, download_rate="64KB")
    pieces = [piece async for piece in line.taking(Neighbour()).block(Digest(""), 1 << 17, 0)]
    assert (len(pieces), clock.now_s) == (2, 102.0)
    assert 1 << 17 < used(line) < (1 << 17) + 1000


async def test_no_more_come_at_once_than_the_rate_keeps_alive(tmp_path: Path) -> None:
    line, _ = house_line(tmp_path, download_rate="100KB")
    neighbour = Neighbour()
    first = line.taking(neighbour).block(Digest(""), 1 << 17, 0)
    await anext(first)
    second = asyncio.ensure_future(anext(line.taking(neighbour).block(Digest(""), 1 << 17, 0)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert neighbour.asked == 1, "its call, which has a deadline, has not begun"
    await first.aclose()
    await second
    assert neighbour.asked == 2


async def test_what_is_given_is_slowed_and_counted_and_work_goes_before_it(tmp_path: Path) -> None:
    line, clock = house_line(tmp_path, upload_rate="64KB")
    closed = False
    async with line.giving(lambda: closed) as spend:
        await spend(1 << 16)
        assert (clock.now_s, used(line)) == (101.0, 1 << 16)
        with pytest.raises(RateLimited):  # a second one would make both too slow
            async with line.giving(lambda: closed):
                pass
        wire = line.counted(Line())

        async def messages() -> AsyncIterator[bytes]:
            with pytest.raises(RateLimited):
                await spend(1)
            yield bytes(10)

        await wire.upload("Upload", messages(), (), 1.0)
        await spend(1)
        closed = True
        with pytest.raises(RateLimited):
            await spend(1)
    line.rules = NetworkRules()
    closed = False
    async with line.giving(lambda: closed), line.giving(lambda: closed) as spend:
        await spend(1)


async def test_what_is_passed_on_for_others_comes_in_and_goes_out_and_counts_as_both(tmp_path: Path) -> None:
    line, clock = house_line(tmp_path, upload_rate="64KB", download_rate="64KB")
    await line.passing(1 << 16, lambda: False)
    assert (clock.now_s, used(line)) == (102.0, 2 << 16)
    with pytest.raises(RateLimited):
        await line.passing(1, lambda: True)
    assert used(line) == 2 << 16
