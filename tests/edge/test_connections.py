"""Below the calls: connections that idle, age, ping, open streams without number, or never finish a handshake.

Spoken by hand (HTTP/2, RFC 9113) where no client of ours would say such things.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import EdgeLimits, Throttle
from coordinator.run.folder import RunFolder
from protocol import limits as wire
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb

SERVICE = "/barnraise.protocol.v1.Coordinator/"
Code = grpc.StatusCode
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4
ENHANCE_YOUR_CALM, CANCEL = 11, 8
TIMEOUT = (("grpc-timeout", "60S"),)
Frame = tuple[int, int, int, bytes]


class Http2:
    """One TLS connection, frames out and in, and nothing done by itself but acknowledging settings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._streams = itertools.count(1, 2)

    @classmethod
    async def dial(cls, port: int) -> Http2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        connection = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
        connection._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        connection.send(SETTINGS)
        return connection

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self._writer.write(
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
        )

    async def flush(self) -> None:
        await self._writer.drain()

    def call(self, method: str, headers: Any = (), body: bytes | None = None) -> int:
        """Open a stream; with a body, the whole of a unary request."""
        stream = next(self._streams)
        base = ((":method", "POST"), (":scheme", "https"), (":path", method), (":authority", "x"),
                ("te", "trailers"), ("content-type", "application/grpc"))  # fmt: skip
        block = b"".join(literal(name, value) for name, value in (*base, *headers))
        self.send(HEADERS, END_HEADERS, stream, block)
        if body is not None:
            self.send(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(body)) + body)
        return stream

    async def frame(self) -> Frame | None:
        """The next frame; None when the server has hung up."""
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        if head[3] == SETTINGS and not head[4]:
            self.send(SETTINGS, 1)
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def until(self, wanted: Callable[[Frame], bool], within_s: float = 10.0) -> Frame | None:
        async with asyncio.timeout(within_s):
            while (frame := await self.frame()) is not None and not wanted(frame):
                pass
            return frame

    async def close(self) -> None:
        self._writer.close()


def literal(name: str, value: str) -> bytes:
    """A header field, literally (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(sized(text.encode()) for text in (name, value))


def sized(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, out = len(text) - 127, b"\x7f"
    while rest >= 128:
        out, rest = out + bytes([rest % 128 + 128]), rest // 128
    return out + bytes([rest]) + text


def as_headers(metadata: Any) -> list[tuple[str, str]]:
    return [(name, base64.b64encode(value).decode().rstrip("=")) for name, value in metadata]


Serve = Callable[..., Awaitable[CoordinatorServer]]


@pytest.fixture
async def serve(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Serves the run with some of the wire's limits changed."""
    started: list[CoordinatorServer] = []

    async def start(limits: EdgeLimits | None = None, **changes: int) -> CoordinatorServer:
        for name, value in changes.items():
            assert hasattr(wire, name)
            monkeypatch.setattr(wire, name, value)
        server = CoordinatorServer(run, throttle=Throttle(limits=limits or EdgeLimits()))
        started.append(server)
        await server.start()
        return server

    yield start
    for server in started:
        await server.stop(0.0)


@pytest.fixture
async def worker(run: RunFolder, client_type: Any) -> AsyncIterator[Callable[[CoordinatorServer], Awaitable[Any]]]:
    """Enrols an honest worker."""
    clients: list[Any] = []

    async def enrolled(server: CoordinatorServer) -> Any:
        (link,) = await server.create_invites()
        client = client_type(JoinLink.parse(link), run)
        clients.append(client)
        await client.enrol()
        await client.open()
        return client

    yield enrolled
    for client in clients:
        await client.channel.close()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(serve: Serve, worker: Any) -> None:
    server = await serve(MAX_IDLE_CONNECTION_MS=500)
    honest = await worker(server)
    idle = await Http2.dial(server.port)
    closed = asyncio.ensure_future(idle.until(lambda frame: frame[0] == GOAWAY))
    while not closed.done():
        await honest.beat()
        await asyncio.sleep(0.02)
    assert closed.result() is not None
    assert await idle.until(lambda _: False) is None  # hung up
    await honest.beat()


async def test_a_connection_is_replaced_at_its_age_and_nobody_notices(serve: Serve, worker: Any) -> None:
    server = await serve(MAX_CONNECTION_AGE_MS=300, MAX_CONNECTION_AGE_GRACE_MS=300)
    honest = await worker(server)
    old = await Http2.dial(server.port)
    held = old.call(SERVICE + "Upload", TIMEOUT)  # a call that is under way keeps it no longer than the grace
    closed = asyncio.ensure_future(old.until(lambda _: False))
    while not closed.done():
        await honest.beat()
        await asyncio.sleep(0.02)
    assert held == 1
    assert closed.result() is None
    await honest.beat()


async def test_a_handshake_that_is_never_finished_is_hung_up_on(serve: Serve, worker: Any) -> None:
    server = await serve(HANDSHAKE_TIMEOUT_MS=300)
    honest = await worker(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await honest.beat()


async def test_a_ping_flood_is_hung_up_on(serve: Serve, worker: Any) -> None:
    server = await serve()
    honest = await worker(server)
    flooder = await Http2.dial(server.port)
    for number in range(wire.MAX_PING_STRIKES + 10):
        flooder.send(PING, payload=struct.pack(">Q", number))
    goaway = await flooder.until(lambda frame: frame[0] == GOAWAY and frame[3][7] == ENHANCE_YOUR_CALM)
    # What was not read when it hung up can take its last words along.
    assert goaway is None or b"too_many_pings" in goaway[3]
    assert await flooder.until(lambda _: False) is None
    await honest.beat()


async def test_a_connection_has_only_so_many_streams(serve: Serve, worker: Any) -> None:
    server = await serve()
    honest = await worker(server)
    greedy = await Http2.dial(server.port)
    await greedy.until(lambda frame: frame[0] == SETTINGS and frame[1] == 1)
    for _ in range(wire.MAX_CONCURRENT_STREAMS + 8):
        greedy.call(SERVICE + "Upload", TIMEOUT)
    await greedy.flush()
    async with asyncio.timeout(5):
        while server._throttle._at_once.total() < wire.MAX_CONCURRENT_STREAMS:
            await asyncio.sleep(0.01)
    for _ in range(20):  # what is over the limit would be there by now
        await honest.beat()
    # The honest worker's last call may not be counted off yet.
    assert server._throttle._at_once.total() <= wire.MAX_CONCURRENT_STREAMS + 2
    await honest.beat()
    await greedy.close()


async def test_streams_opened_and_reset_at_once_harm_nobody(serve: Serve, worker: Any) -> None:
    """The flood of CVE-2023-44487: none of it is ever more than its limit, and none of it is left."""
    server = await serve()
    honest = await worker(server)
    flooder = await Http2.dial(server.port)
    for burst in range(20):
        for _ in range(50):
            flooder.send(RST_STREAM, 0, flooder.call(SERVICE + "Upload", TIMEOUT), struct.pack(">I", CANCEL))
        await flooder.flush()
        if burst % 5 == 0:
            await honest.beat()
    await flooder.close()
    async with asyncio.timeout(10):
        while server._throttle._at_once:
            await asyncio.sleep(0.01)
    await honest.beat()


async def test_only_so_many_connections_are_taken(serve: Serve, worker: Any) -> None:
    server = await serve(MAX_CONNECTIONS=4)
    honest = await worker(server)
    greedy = [await Http2.dial(server.port) for _ in range(3)]
    for connection in greedy:
        await connection.until(lambda frame: frame[0] == SETTINGS)
    assert await is_turned_away(server.port)
    await honest.beat()
    for connection in greedy:
        await connection.close()


async def is_turned_away(port: int) -> bool:
    try:
        return await (await Http2.dial(port)).until(lambda _: False) is None
    except OSError:
        return True


async def test_a_call_whose_answer_is_never_taken_is_freed_at_its_deadline(
    serve: Serve, worker: Any, replace: Any
) -> None:
    server = await serve(replace(stall_s=0.1))
    honest = await worker(server)
    mute = await worker(server)
    reply = await mute.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply)
    assert len(reply.manifest_json) > 0
    block = max(server._parts.store.blocks.digests(), key=server._parts.store.blocks.stat)  # type: ignore[union-attr, arg-type]
    request = pb.DownloadRequest(block_digest=bytes.fromhex(block)).SerializeToString()
    connection = await Http2.dial(server.port)
    for _ in range(4):
        signed = as_headers(mute.signer.metadata(SERVICE + "Download", request))
        connection.call(SERVICE + "Download", (*signed, ("grpc-timeout", "1500m")), request)
    async with asyncio.timeout(10):
        while not server._throttle._streams:
            await asyncio.sleep(0.01)
        await honest.beat()
        while server._throttle._streams or server._throttle._at_once:
            await asyncio.sleep(0.02)
    await honest.beat()
    await connection.close()


async def test_nothing_is_reflected_and_nothing_watched(serve: Serve, worker: Any, refused: Any) -> None:
    server = await serve()
    honest = await worker(server)
    names = (
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.channelz.v1.Channelz",
    )
    for name in names:
        for method in ("ServerReflectionInfo", "GetServers"):
            await refused(Code.UNIMPLEMENTED, "").of(honest.raw(f"/{name}/{method}", b"", metadata=()))
    await refused(Code.UNIMPLEMENTED, "").of(honest.raw("/grpc.health.v1.Health/Watch", b"", metadata=()))
    assert await honest.raw("/grpc.health.v1.Health/Check", b"", metadata=()) == b"\x08\x01"
    await honest.beat()


async def test_without_tls_nobody_is_spoken_to(serve: Serve, worker: Any) -> None:
    server = await serve()
    honest = await worker(server)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5.0)
    assert caught.value.code() is Code.UNAVAILABLE
    await honest.beat()
