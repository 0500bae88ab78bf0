"""What two sidecars say to one another before bytes go: one line of JSON each way, and the names of their streams.

Decides what a line may be: short, an object, here in time. Always: what the other side says is hostile until it is
parsed, and what a person reads of it is ours. Touches a stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from peering.sidecar.pipe import LINE_BYTES, Ends
from protocol.errors import MalformedMessage, Unavailable
from protocol.joinlink import Bootstrap

RELAY = "/barnraise/relay/1"
"""To a node that passes streams on."""
PEER = "/barnraise/peer/1"
"""From it, to whoever waits there: the bytes of a connection to that worker's listener."""
TALK_S = 10.0

OnStream = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Whose it is, as libp2p has made sure, and the stream."""


class Streams(Protocol):
    """What p2pd is here. Everything that goes wrong is an Unavailable."""

    async def open_at(self, peer: Bootstrap, protocol: str) -> Ends:
        """A stream to a node, connecting to it if need be."""

    async def open_to(self, peer_id: str, protocol: str) -> Ends:
        """A stream to a node that this one is connected to."""

    async def handle(self, protocol: str, on_stream: OnStream) -> None:
        """Have these streams from now on."""


async def say(writer: asyncio.StreamWriter, **said: Any) -> None:
    """One line."""
    writer.write(json.dumps(said).encode() + b"\n")
    await writer.drain()


async def ask_relay(writer: asyncio.StreamWriter, shown: str, **said: Any) -> None:
    """One line to a relay, with this node's pass."""
    await say(writer, **said, **{"pass": shown})


async def heard(reader: asyncio.StreamReader, limit_s: float = TALK_S) -> dict[str, Any]:
    """One line. Unavailable where none comes, MalformedMessage where it is something else."""
    try:
        async with asyncio.timeout(limit_s):
            line = await reader.readuntil(b"\n")
    except TimeoutError:
        raise Unavailable("another node said nothing in time") from None
    except (OSError, asyncio.IncompleteReadError):
        raise Unavailable("another node hung up") from None
    except asyncio.LimitOverrunError:
        raise MalformedMessage("another node's line is too long") from None
    if len(line) > LINE_BYTES:
        raise MalformedMessage("another node's line is too long")
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedMessage("another node's line is no JSON") from None
    if not isinstance(said, dict):
        raise MalformedMessage("another node's line is no JSON object")
    return said
