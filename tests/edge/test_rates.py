"""How much and how slowly: rates, calls at once, minimum speeds and deadlines, on an injected clock.

The attacker comes from an address of its own, so that the honest worker beside it has what is left to an honest one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import structlog

from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import Buckets, EdgeLimits, Rate, address_of
from coordinator.run.folder import RunFolder
from protocol.framing import frames_of
from protocol.ids import TRUNK
from protocol.manifest import Manifest
from protocol.v1 import barnraise_pb2 as pb

SERVICE = "/barnraise.protocol.v1.Coordinator/"
Code = grpc.StatusCode
Join = Callable[..., Any]
Refused = Callable[[grpc.StatusCode, str], Any]
Afar = Callable[[Any], Any]
FAR = "127.0.0.66"

needs_loopback_network = pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8")


@pytest.fixture
def limits(request: pytest.FixtureRequest, replace: Callable[..., EdgeLimits]) -> EdgeLimits:
    """Those of the test's `limits` mark."""
    mark = request.node.get_closest_marker("parametrize")
    assert mark is None
    return replace(**getattr(request.function, "limits", {}))


def limited(**changes: Any) -> Callable[[Any], Any]:
    """The served run's limits in this test."""

    def mark(test: Any) -> Any:
        test.limits = changes
        return test

    return mark


@pytest.fixture
async def afar(server: CoordinatorServer) -> AsyncIterator[Afar]:
    """Makes a client dial from another address."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(FAR, 0))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    relaying = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = relaying.sockets[0].getsockname()[1]

    async def move(client: Any) -> Any:
        await client.channel.close()
        object.__setattr__(client.link, "port", port)
        client.channel = client.dial()
        return client

    yield move
    relaying.close()


# ---- rates ------------------------------------------------------------------------------------------------------


@needs_loopback_network
@limited(registrations=Rate(burst=6, per_s=1.0))
async def test_registrations_from_one_address_are_limited(
    honest: Any, join: Join, refused: Refused, afar: Afar, clock: Any
) -> None:
    client = await afar(await join(enrolled=False))
    for _ in range(6):
        await refused(Code.UNAUTHENTICATED, "not one of this run's").of(client.enrol(invite="A" * 22))
    for attempt in (client.enrol, client.open):
        await refused(Code.RESOURCE_EXHAUSTED, "try again in 1 s").of(attempt())
    await honest.open()  # from another address
    clock.now_s += 1.0
    await client.enrol()
    await refused(Code.RESOURCE_EXHAUSTED, f"registrations from {FAR}").of(client.open())


@needs_loopback_network
@limited(calls=Rate(burst=20, per_s=10.0))
async def test_calls_from_one_address_are_limited(
    honest: Any, join: Join, refused: Refused, afar: Afar, clock: Any
) -> None:
    client = await afar(await join(enrolled=False))
    for _ in range(20):
        await refused(Code.UNAUTHENTICATED, "not signed").of(client.raw("Heartbeat", b"", metadata=()))
    for name in ("Heartbeat", "Upload", "/barnraise.protocol.v1.Operator/GetStatus", "/grpc.health.v1.Health/Check"):
        await refused(Code.RESOURCE_EXHAUSTED, f"calls from {FAR}").of(client.raw(name, b"", metadata=()))
    await honest.beat()
    clock.now_s += 0.1
    await client.enrol()


@limited(worker_calls=Rate(burst=10, per_s=5.0))
async def test_calls_of_one_worker_are_limited_wherever_it_calls_from(
    honest: Any, join: Join, refused: Refused, clock: Any
) -> None:
    client = await join()
    for _ in range(10):
        await client.beat()
    await refused(Code.RESOURCE_EXHAUSTED, "try again in 1 s").of(client.beat())
    await refused(Code.RESOURCE_EXHAUSTED, "calls of worker").of(client.acquire())
    await honest.beat()
    clock.now_s += 0.2
    await client.beat()


@needs_loopback_network
@limited(calls_at_once=3)
async def test_calls_at_once_from_one_address_are_limited(
    honest: Any, join: Join, refused: Refused, afar: Afar, server: CoordinatorServer
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    await client.commit(lease, client.submission(lease))
    client = await afar(client)
    held = [client.channel.stream_unary(SERVICE + "Upload")(hanging(), timeout=30.0) for _ in range(3)]
    async with asyncio.timeout(5):
        while server._throttle._at_once[FAR] < 3:
            await asyncio.sleep(0.01)
    await refused(Code.RESOURCE_EXHAUSTED, "wait for one to end").of(client.beat())
    await honest.beat()
    for call in held:
        call.cancel()
    async with asyncio.timeout(5):
        while server._throttle._at_once[FAR]:
            await asyncio.sleep(0.01)
    await client.beat()


@limited(streams_at_once=1)
async def test_transfers_at_once_of_one_worker_are_limited(
    honest: Any, join: Join, refused: Refused, cancelling: Any, server: CoordinatorServer
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    async with cancelling(client.uploading(lease, payload, frames=hanging())):
        async with asyncio.timeout(5):
            while not server._throttle._streams:
                await asyncio.sleep(0.01)
        await refused(Code.RESOURCE_EXHAUSTED, "wait for one to end").of(client.download(lease_data=lease.lease_id))


async def hanging(*frames: bytes) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame
    await asyncio.Event().wait()


@limited(log_lines=Rate(burst=3, per_s=1.0))
async def test_refusals_cannot_flood_the_log(honest: Any, join: Join, refused: Refused, clock: Any) -> None:
    client = await join()
    unsigned = refused(Code.UNAUTHENTICATED, "not signed")
    with structlog.testing.capture_logs() as lines:
        for _ in range(20):
            await unsigned.of(client.raw("Heartbeat", b"", metadata=()))
        clock.now_s += 1.0
        await unsigned.of(client.raw("Heartbeat", b"", metadata=()))
    told = [line for line in lines if line["event"] == "call_refused"]
    assert len(told) == 4
    assert told[-1]["not_logged_before"] == "17"


# ---- slowness ---------------------------------------------------------------------------------------------------


async def test_an_upload_below_the_minimum_rate_is_broken_off(
    honest: Any, join: Join, refused: Refused, clock: Any
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    clock.step_s = 50.0  # by the clock, each message takes 50 s to come
    await refused(Code.DEADLINE_EXCEEDED, "fewer than 16384 a second").of(client.upload(lease, payload))
    await honest.beat()
    clock.step_s = 0.0
    offset = (await client.commit(lease, payload)).upload_offset
    rest = frames_of(lambda start, length: payload[start : start + length], len(payload), offset)
    assert (await client.upload(lease, payload, frames=rest, offset=offset)).complete


@limited(transfer_s=90.0, min_bytes_per_s=1.0)
async def test_an_upload_has_a_deadline_for_the_whole(honest: Any, join: Join, refused: Refused, clock: Any) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    clock.step_s = 50.0
    await refused(Code.DEADLINE_EXCEEDED, "lasts at most 90 s").of(client.upload(lease, payload))
    clock.step_s = 0.0


@limited(stall_s=0.2)
async def test_an_upload_that_stalls_is_broken_off_and_goes_on_later(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    first = next(frames_of(lambda start, length: payload[start : start + length], len(payload)))
    stalled = client.upload(lease, payload, frames=hanging(first))
    await refused(Code.DEADLINE_EXCEEDED, "nothing moved").of(stalled)
    assert (await client.commit(lease, payload)).upload_offset == len(first) - 16


@limited(opening_s=0.2)
async def test_a_call_that_never_says_what_it_wants_is_broken_off(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    for name in ("Upload", "Heartbeat", "Enrol", "Download"):
        silent = client.channel.stream_unary(SERVICE + name)(hanging(), timeout=10.0)
        await refused(Code.DEADLINE_EXCEEDED, "send it again").of(silent)


@limited(stall_s=0.3)
async def test_a_download_that_nobody_takes_is_broken_off(
    honest: Any, join: Join, run: RunFolder, server: CoordinatorServer
) -> None:
    client = await join()
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
    await client.channel.close()
    client.channel = client.dial(narrow)
    block = trunk_of(await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply))
    call = client.downloading(block_digest=bytes.fromhex(block.digest))
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(5):
            while not any(line.get("status") == "DEADLINE_EXCEEDED" for line in lines):
                await honest.beat()
                await asyncio.sleep(0.02)
    assert "nothing moved" in next(line["error"] for line in lines if line.get("status") == "DEADLINE_EXCEEDED")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert "go on where it broke" in (caught.value.details() or "")
    async with asyncio.timeout(5):
        while server._throttle._streams or server._throttle._at_once:
            await asyncio.sleep(0.01)


def trunk_of(reply: pb.GetManifestReply) -> Any:
    return Manifest.from_json(reply.manifest_json).blocks[TRUNK]


async def test_a_download_below_the_minimum_rate_is_broken_off(
    honest: Any, join: Join, refused: Refused, clock: Any
) -> None:
    client = await join()
    block = trunk_of(await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply))
    clock.step_s = 70.0
    slow = client.download(block_digest=bytes.fromhex(block.digest))
    await refused(Code.DEADLINE_EXCEEDED, "fewer than 16384 a second").of(slow)
    clock.step_s = 0.0
    await client.download(block_digest=bytes.fromhex(block.digest))


async def test_a_call_without_a_deadline_or_with_a_distant_one_is_refused(
    honest: Any, join: Join, refused: Refused
) -> None:
    client = await join(columns=1)
    for timeout in (None, 10_000.0):
        await refused(Code.INVALID_ARGUMENT, "set the call's timeout").of(client.raw("Heartbeat", b"", timeout=timeout))
    await refused(Code.INVALID_ARGUMENT, "3600 s").of(client.raw("Download", b"", timeout=None))
    await client.beat()


# ---- the counting itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:50000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50000", "192.0.2.7"),
        ("ipv6:[fe80::1%25eth0]:50000", "fe80::/64"),
        ("unix:/tmp/x", "unknown"),
        ("", "unknown"),
    ],
)
def test_what_counts_as_one_address(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_bucket_lets_its_burst_through_and_then_its_rate(clock: Any) -> None:
    buckets = Buckets(Rate(burst=3, per_s=2.0), clock)
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    clock.now_s += 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    clock.now_s += 1e6
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    clock.now_s -= 1e6  # a clock that goes back gives nothing and takes nothing
    assert buckets.take("a") == 0.5


def test_callers_without_number_cost_bounded_memory(clock: Any) -> None:
    buckets = Buckets(Rate(burst=1, per_s=0.001), clock, most=100)
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets) == 100
    assert buckets.take("999") > 0.0
