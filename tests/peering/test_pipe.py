"""A pipe between two streams, over real sockets: what comes out, when it ends, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from peering.sidecar.pipe import PIECE_BYTES, Bounds, Ends, pipe

BOUNDS = Bounds(most_bytes=1 << 30, idle_s=20.0, whole_s=60.0)
Make = Callable[..., Any]


async def ends_of(one: socket.socket) -> Ends:
    return await asyncio.open_connection(sock=one)


@pytest.fixture
async def piped() -> AsyncIterator[Make]:
    """Both far ends of a pipe, and its end."""
    begun: list[asyncio.Task[int]] = []
    far: list[asyncio.StreamWriter] = []

    async def begin(**changes: Any) -> tuple[Ends, Ends, asyncio.Task[int]]:
        (left, one), (other, right) = socket.socketpair(), socket.socketpair()
        bounds = dataclasses.replace(BOUNDS, **changes)
        begun.append(asyncio.create_task(pipe(await ends_of(one), await ends_of(other), bounds)))
        outer = await ends_of(left), await ends_of(right)
        far.extend(writer for _, writer in outer)
        return *outer, begun[-1]

    yield begin
    for writer in far:
        writer.close()
    async with asyncio.timeout(5.0):
        await asyncio.gather(*begun, return_exceptions=True)


async def test_bytes_go_both_ways_and_one_side_may_end_before_the_other(piped: Make) -> None:
    (reader, writer), (far_reader, far_writer), ended = await piped()
    content, answer = os.urandom(3_000_000), os.urandom(1_000_000)
    writer.write(content)
    writer.write_eof()
    assert await far_reader.read(-1) == content
    far_writer.write(answer)
    assert await reader.readexactly(len(answer)) == answer
    assert not ended.done()
    far_writer.write_eof()
    assert await reader.read(-1) == b""
    assert await ended == len(content) + len(answer)


async def test_who_takes_nothing_stops_the_other(piped: Make) -> None:
    (_, writer), _, ended = await piped()
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 * 1024 * 1024:
            writer.write(bytes(PIECE_BYTES))
            sent += PIECE_BYTES
            await asyncio.wait_for(writer.drain(), 0.3)
    assert sent < 4 * 1024 * 1024
    assert not ended.done()


@pytest.mark.parametrize("of", ["who sends", "who takes"])
async def test_the_death_of_one_is_the_end_of_the_other(piped: Make, of: str) -> None:
    (reader, writer), (far_reader, far_writer), ended = await piped()
    writer.write(b"x")
    assert await far_reader.readexactly(1) == b"x"
    (writer if of == "who sends" else far_writer).transport.abort()
    if of == "who sends":  # its socket is closed as one that has ended is; the other hears of that, and ends
        assert await far_reader.read() == b""
        far_writer.close()
    else:
        assert await reader.read() == b""
        writer.close()
    assert await asyncio.wait_for(ended, 5.0) == 1


async def test_a_pipe_ends_after_its_bytes_and_after_silence(piped: Make) -> None:
    (_, writer), (far_reader, _), ended = await piped(most_bytes=100_000)
    writer.write(bytes(300_000))
    assert len(await far_reader.read(-1)) <= 100_000
    assert await ended <= 100_000
    (reader, _), _, ended = await piped(idle_s=0.05)
    assert await reader.read() == b""
    assert await ended == 0


async def test_no_byte_leaves_before_its_turn(piped: Make) -> None:
    turn, asked = asyncio.Event(), asyncio.Event()

    async def spend(_count: int) -> None:
        asked.set()
        await turn.wait()

    (_, writer), (far_reader, _), _ = await piped(spend=spend)
    writer.write(b"later")
    await asked.wait()
    coming = asyncio.ensure_future(far_reader.readexactly(5))
    await asyncio.sleep(0)
    assert not coming.done()
    turn.set()
    assert await coming == b"later"
