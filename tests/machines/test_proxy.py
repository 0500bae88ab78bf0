"""The faulty link: what passes is what was sent, and each fault does to a connection what it says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from protocol.errors import ConfigError
from simulator import faults as f
from simulator.faults import COORDINATOR, Fault, FaultPlan
from tests.machines.process_faults import check_for_processes, is_timed
from tests.machines.proxy import FaultyLink

TEXT = bytes(range(256)) * 1000


@dataclass
class Echo:
    """Answers with what it got, and remembers what that was."""

    got: list[bytearray] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = bytearray()
        self.got.append(mine)
        with contextlib.suppress(OSError):
            while piece := await reader.read(4096):
                mine += piece
                writer.write(piece)
        writer.close()


Setting = Callable[..., Awaitable[tuple[FaultyLink, Echo]]]


@pytest.fixture
async def link_under() -> AsyncIterator[Setting]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(*faults: Fault) -> tuple[FaultyLink, Echo]:
            echo, started_s = Echo(), time.monotonic()
            server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
            link = FaultyLink(0, lambda: port, FaultPlan(faults), lambda: time.monotonic() - started_s)
            await link.start()
            stack.push_async_callback(link.stop)
            return link, echo

        yield make


async def through(link: FaultyLink, text: bytes = TEXT) -> bytes:
    """What comes back of `text`; ConnectionError where the connection broke."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        sending = asyncio.create_task(send(writer, text))
        async with asyncio.timeout(10):
            got = await reader.readexactly(len(text))
        await sending
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError(f"ended after {len(error.partial)} bytes") from error
    finally:
        writer.close()
    return got


async def send(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    with contextlib.suppress(OSError):
        await writer.drain()


async def test_without_faults_every_byte_passes(link_under: Setting) -> None:
    link, _ = await link_under()
    assert await asyncio.gather(through(link), through(link, b"other")) == [TEXT, b"other"]


async def test_drop_resets_the_connection_that_it_is_addressed_to(link_under: Setting) -> None:
    link, echo = await link_under(f.drop(worker=0, nth=2), f.drop(worker=1))
    assert await through(link) == TEXT
    with pytest.raises(ConnectionError):
        await through(link)
    assert await through(link) == TEXT
    assert [len(got) for got in echo.got] == [len(TEXT)] * 2  # of the second, nothing came


async def test_truncate_lets_exactly_so_many_bytes_through(link_under: Setting) -> None:
    link, echo = await link_under(f.truncate(after_bytes=100_001))
    with pytest.raises(ConnectionError):
        await through(link)
    async with asyncio.timeout(10):
        while len(echo.got[0]) < 100_001:
            await asyncio.sleep(0.01)
    assert bytes(echo.got[0]) == TEXT[:100_001]
    assert await through(link) == TEXT


async def test_delay_holds_what_it_lets_through(link_under: Setting) -> None:
    link, _ = await link_under(f.delay(0.3, nth=1))
    started_s = time.monotonic()
    assert await through(link) == TEXT
    held_s = time.monotonic() - started_s
    assert held_s >= 0.3


async def test_a_partition_breaks_what_is_open_and_refuses_what_is_new_until_it_is_over(link_under: Setting) -> None:
    link, echo = await link_under(f.partition(0.5, after_bytes=10))
    with pytest.raises(ConnectionError):
        await through(link)
    with pytest.raises(ConnectionError):
        await through(link)
    assert not any(echo.got)
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ConnectionError):
                assert await through(link) == TEXT
                break


async def test_a_fault_at_a_time_meets_the_connections_that_are_open(link_under: Setting) -> None:
    link, _ = await link_under()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    link.strike(f.drop(after_s=1.0))
    with pytest.raises(ConnectionError):
        await reader.readexactly(1)
    writer.close()


async def test_a_coordinator_that_is_not_there_looks_like_a_broken_connection() -> None:
    link = FaultyLink(0, lambda: 1, FaultPlan([]), time.monotonic)  # nobody listens on port 1
    await link.start()
    with pytest.raises(ConnectionError):
        await through(link)
    await link.stop()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (f.reorder(worker=0, nth=1), "TCP keeps the order"),
        (f.duplicate(worker=0, call="Upload"), "TLS takes no byte twice"),
        (f.drop(worker=0, call="Heartbeat"), "inside TLS nobody sees which call"),
        (f.delay(1.0, round=2), "the network knows of no rounds"),
        (f.partition(1.0, worker=COORDINATOR), "a link is a worker's"),
        (f.truncate(0.3, worker=0), "after_bytes"),
        (f.kill(1.0, worker=COORDINATOR, journal_position=3, power_loss=True), "stays with the kernel"),
        (f.kill(1.0, after_s=3.0), "name the worker"),
        (f.kill(1.0, worker=0, journal_position=3), "only the coordinator has a journal"),
        (f.stall(1.0, worker=0, call="Heartbeat"), "state:NAME"),
        (f.stall(1.0, worker=COORDINATOR, call="state:idle"), "execute:NAME"),
        (f.fail_at(0, 1, after_bytes=9), "counted on links"),
    ],
)
def test_what_real_processes_cannot_do_is_refused_with_the_reason(fault: Fault, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        check_for_processes([fault])
    assert refused.value.args[0].startswith(f"{fault.kind.value} cannot be done to real processes")


def test_what_waits_for_a_time_alone_is_told_from_what_waits_for_a_place() -> None:
    assert is_timed(f.stall(1.0, worker=0, after_s=3.0))
    assert not is_timed(f.stall(1.0, worker=0, after_s=3.0, call="state:idle"))
    assert not is_timed(f.drop(worker=0))
