"""The limits hold where they are meant to: in a real grpc.aio server and channel with our options."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import (
    CALL_TIMEOUT_S,
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    MAX_CALL_S,
    MAX_CONCURRENT_STREAMS,
    MAX_CONNECTION_AGE_GRACE_MS,
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_TRANSFER_S,
    MAX_WAIT_S,
    MIN_PING_INTERVAL_MS,
    MIN_TRANSFER_BYTES_PER_S,
    STALL_TIMEOUT_S,
    channel_options,
    most_time_left_s,
    server_options,
    transfer_deadline_s,
)

_METHOD = "/barnraise.test/Echo"
_Handler = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def _serve(handler: _Handler) -> AsyncIterator[int]:
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "barnraise.test", {"Echo": grpc.unary_unary_rpc_method_handler(handler)}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def _size(request: bytes, _: Any) -> bytes:
    return str(len(request)).encode()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with _serve(_size) as port:
        yield port


async def _echo(channel: Any, request: bytes, *, timeout: float = 5, **arguments: Any) -> bytes:
    reply: bytes = await channel.unary_unary(_METHOD)(request, timeout=timeout, **arguments)
    return reply


async def _refusal(channel: Any, request: bytes, **arguments: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _echo(channel, request, **arguments)
    return caught.value.code()


async def test_a_full_frame_passes_and_a_longer_message_does_not(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel:
        frame = bytes(FRAME_BYTES + FRAME_HEADER_BYTES)
        assert await _echo(channel, frame) == str(len(frame)).encode()
    loose = (("grpc.max_send_message_length", -1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=loose) as channel:
        assert await _refusal(channel, bytes(MAX_MESSAGE_BYTES + 1)) == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_compressed_messages_are_refused(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as channel:
        assert await _refusal(channel, bytes(10_000)) == grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_over_the_limit_is_refused(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel:
        metadata = (("padding", "x" * (MAX_METADATA_BYTES // 2)),)
        assert await _echo(channel, b"", metadata=metadata) == b"0"
        code = await _refusal(channel, b"", metadata=(("padding", "x" * MAX_METADATA_BYTES),))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_one_connection_has_so_many_calls_at_once() -> None:
    running = 0
    full = asyncio.Event()
    go = asyncio.Event()

    async def wait(_: bytes, __: Any) -> bytes:
        nonlocal running
        running += 1
        if running == MAX_CONCURRENT_STREAMS:
            full.set()
        await go.wait()
        return b""

    async with (
        _serve(wait) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel,
    ):
        calls = [asyncio.ensure_future(_echo(channel, b"")) for _ in range(MAX_CONCURRENT_STREAMS)]
        await asyncio.wait_for(full.wait(), 5)
        code = await _refusal(channel, b"", timeout=0.3)
        assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert running == MAX_CONCURRENT_STREAMS
        go.set()
        await asyncio.gather(*calls)


async def test_grpc_does_not_retry_on_its_own() -> None:
    attempts = 0

    async def fail(_: bytes, context: Any) -> bytes:
        nonlocal attempts
        attempts += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        return b""

    policy = {
        "name": [{"service": "barnraise.test"}],
        "retryPolicy": {
            "maxAttempts": 4,
            "initialBackoff": "0.01s",
            "maxBackoff": "0.01s",
            "backoffMultiplier": 1,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }
    options = (*channel_options(), ("grpc.service_config", json.dumps({"methodConfig": [policy]})))
    async with (
        _serve(fail) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
    ):
        assert await _refusal(channel, b"") == grpc.StatusCode.UNAVAILABLE
    assert attempts == 1


async def test_a_second_server_on_the_same_port_fails(port: int) -> None:
    second = grpc.aio.server(options=server_options())
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")


# ---- limits that one side asks for and the other keeps --------------------------------------------------------------


async def _time_left(_: bytes, context: Any) -> bytes:
    return repr(context.time_remaining()).encode()


def _deadlines_s() -> list[float]:
    """What our callers ask for: both ends of each unit in which the header is written, and payloads of every size."""
    edges = [1.0, 10.0, 60.0, 99.95, 100.0, 999.5, 1000.0, 1001.0, 1009.0, 3541.0, 3599.0, MAX_TRANSFER_S]
    calls = [CALL_TIMEOUT_S, CALL_TIMEOUT_S + MAX_WAIT_S, MAX_CALL_S, *edges]
    near = [deadline_s + step_s for deadline_s in calls for step_s in (-0.02, -0.0005, 0.0, 0.0005)]
    sizes = [round(10 ** (exponent / 20)) for exponent in range(240)]
    return [*near, *map(transfer_deadline_s, sizes), *map(transfer_deadline_s, range(58_000_000, 59_400_000, 10_000))]


async def test_a_deadline_grows_on_its_way_by_no_more_than_is_allowed_for() -> None:
    grown = 0.0
    async with (
        _serve(_time_left) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel,
    ):
        for asked_s in _deadlines_s():
            left_s = float(await _echo(channel, b"", timeout=asked_s))
            assert left_s <= most_time_left_s(asked_s), asked_s
            grown = max(grown, left_s - asked_s)
    assert grown > 5.0, "the header rounds up: whoever is asked must leave room for it"


@given(payload_bytes=st.integers(min_value=0, max_value=1 << 62))
def test_no_transfer_asks_for_more_than_is_taken(payload_bytes: int) -> None:
    asked_s = transfer_deadline_s(payload_bytes)
    assert CALL_TIMEOUT_S <= asked_s <= MAX_TRANSFER_S
    assert asked_s == MAX_TRANSFER_S or payload_bytes / MIN_TRANSFER_BYTES_PER_S < asked_s


def test_no_limit_of_one_side_is_reached_by_what_the_other_may_do() -> None:
    assert CALL_TIMEOUT_S + MAX_WAIT_S <= MAX_CALL_S  # a long poll
    assert 1000 * most_time_left_s(MAX_TRANSFER_S) <= MAX_CONNECTION_AGE_GRACE_MS  # a stream on an old connection
    assert MAX_CONTROL_BYTES <= MAX_MESSAGE_BYTES
    assert FRAME_BYTES + FRAME_HEADER_BYTES <= MAX_MESSAGE_BYTES
    assert FRAME_BYTES / MIN_TRANSFER_BYTES_PER_S < STALL_TIMEOUT_S  # the slowest stream that is taken is no stall
    assert MIN_PING_INTERVAL_MS < KEEPALIVE_TIME_MS
    assert KEEPALIVE_TIME_MS + KEEPALIVE_TIMEOUT_MS < 1000 * STALL_TIMEOUT_S  # a dead peer is told from a slow one
