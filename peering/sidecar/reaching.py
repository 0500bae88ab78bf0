"""Ways to workers that nobody can connect to: a Unix socket for each, behind which one of its relays passes streams on.

Decides which of the relays is asked (in the order in which they were named, until one lets through), and when a way is
closed: when nobody has used it for a while. Always: the sockets lie in the sidecar's private folder; their number, and
that of the streams, is bounded. Whoever connects there speaks TLS with the worker behind it, and believes nobody else.
Touches streams and that folder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from peering.sidecar.pipe import Bounds, Ends, hang_up, pipe
from peering.sidecar.relaying import CIRCUIT_BYTES, CIRCUIT_S, IDLE_S, RelayDesk
from peering.sidecar.talk import PEER, RELAY, Streams, ask_relay, heard
from protocol.errors import RateLimited, RemoteError, Unavailable
from protocol.joinlink import Bootstrap

MOST_WAYS = 32
MOST_STREAMS = 32
UNUSED_S = 600.0


@dataclass(slots=True)
class _Way:
    peer_id: str
    through: tuple[Bootstrap, ...]
    shown: str
    """This node's pass."""
    path: Path
    used_s: float
    server: asyncio.Server | None = None
    streams: set[asyncio.Task[None]] = field(default_factory=set)


class Reaching:
    """One node's."""

    def __init__(self, streams: Streams, folder: Path, desk: RelayDesk | None = None) -> None:
        """`desk`: this node's own, where it is a relay itself: nobody connects to themselves."""
        self._streams, self._folder, self._desk = streams, folder, desk
        self._ways: dict[str, _Way] = {}
        self._made = 0

    async def way_to(self, peer_id: str, through: Sequence[Bootstrap], shown: str) -> Path:
        """The socket behind which that node is, for whoever has the pass that is `shown`. RateLimited where there are
        too many in use."""
        now_s = asyncio.get_running_loop().time()
        self._close_unused(now_s)
        way = self._ways.get(peer_id)
        if way is None:
            way = await self._opened(peer_id, now_s)
        way.through, way.shown, way.used_s = tuple(through), shown, now_s
        return way.path

    def stop(self) -> None:
        """Close them all."""
        for way in tuple(self._ways.values()):
            self._close(way)

    async def _opened(self, peer_id: str, now_s: float) -> _Way:
        if len(self._ways) >= MOST_WAYS:
            oldest = min((way for way in self._ways.values() if not way.streams), key=_used_s, default=None)
            if oldest is None:
                raise RateLimited("too many workers are reached through relays at once")
            self._close(oldest)
        self._made += 1
        way = _Way(peer_id=peer_id, through=(), shown="", path=self._folder / f"w{self._made}", used_s=now_s)
        self._ways[peer_id] = way
        try:
            way.server = await asyncio.start_unix_server(partial(self._connected, way), way.path)
            way.path.chmod(0o600)
        except OSError as error:
            del self._ways[peer_id]
            raise Unavailable("there can be no socket in the sidecar's folder") from error
        return way

    def _close_unused(self, now_s: float) -> None:
        for way in tuple(self._ways.values()):
            if not way.streams and now_s - way.used_s > UNUSED_S:
                self._close(way)

    def _close(self, way: _Way) -> None:
        self._ways.pop(way.peer_id, None)
        if way.server is not None:
            way.server.close()
        for task in way.streams:
            task.cancel()
        with contextlib.suppress(OSError):
            way.path.unlink(missing_ok=True)

    async def _connected(self, way: _Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if sum(len(one.streams) for one in self._ways.values()) >= MOST_STREAMS:
            await hang_up(writer)
            return
        way.streams.add(task)
        try:
            far = await self._let_through(way)
            if far is not None:
                bounds = Bounds(most_bytes=CIRCUIT_BYTES, idle_s=2 * IDLE_S, whole_s=CIRCUIT_S)
                await pipe((reader, writer), far, bounds)
        finally:
            way.streams.discard(task)
            way.used_s = asyncio.get_running_loop().time()
            await hang_up(writer)

    async def _let_through(self, way: _Way) -> Ends | None:
        if self._desk is not None and self._desk.has(way.peer_id):
            with contextlib.suppress(RemoteError, OSError):
                return await self._streams.open_to(way.peer_id, PEER)
        for relay in way.through:
            with contextlib.suppress(RemoteError, OSError):
                reader, writer = await self._streams.open_at(relay, RELAY)
                try:
                    await ask_relay(writer, way.shown, do="to", peer=way.peer_id)
                    if (await heard(reader)).get("ok") is True:
                        return reader, writer
                except BaseException:
                    await hang_up(writer)
                    raise
                await hang_up(writer)
        return None


def _used_s(way: _Way) -> float:
    return way.used_s
