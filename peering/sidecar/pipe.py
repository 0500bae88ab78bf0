"""Bytes from one stream to another and back, unread: what goes through a relay, or out of the sidecar, is TLS.

Decides when a pipe ends: when both sides have ended, when either breaks, when nothing has moved for `idle_s`, after
`whole_s` in any case, and when one way has had its `most_bytes`. Always: no more is held than one piece each way and
what the streams' own buffers take; a side that takes nothing stops the other; at the end both are closed. Touches the
two streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from peering.pace import Spend, at_once

PIECE_BYTES = 64 * 1024
LINE_BYTES = 512
"""Of what two sidecars say to one another before a pipe begins."""

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one pipe may take."""

    most_bytes: int
    """Each way."""
    idle_s: float
    whole_s: float
    spend: Spend = at_once


async def pipe(one: Ends, other: Ends, bounds: Bounds) -> int:
    """Until it ends; how many bytes went, both ways together."""
    loop = asyncio.get_running_loop()
    ends_s, moved = loop.time() + bounds.whole_s, 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: asyncio.Timeout) -> None:
        nonlocal moved
        left = bounds.most_bytes
        while piece := await reader.read(PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raise ConnectionAbortedError
            await bounds.spend(len(piece))
            writer.write(piece)
            await writer.drain()
            moved += len(piece)
            limit.reschedule(min(ends_s, loop.time() + bounds.idle_s))
        if writer.can_write_eof():
            writer.write_eof()

    try:
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(min(bounds.idle_s, bounds.whole_s)) as limit:
                ways = [asyncio.ensure_future(carry(*way, limit)) for way in ((one[0], other[1]), (other[0], one[1]))]
                try:
                    await asyncio.gather(*ways)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
    finally:
        await hang_up(one[1], other[1])
    return moved


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    """Close them, and wait for nobody."""
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
