"""How this machine is reached where nobody can connect to it: it connects to relays, and waits there to be asked for.

Decides at which relays it waits, and what comes from there: streams of a relay at which it waits, each a connection to
this machine's own listener, on loopback. So tickets, proofs and certificates are what they are without a relay. Always:
a relay that goes is gone back to, after ever longer pauses; the number of streams is bounded. Touches streams and
loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from peering.sidecar.pipe import Bounds, hang_up, pipe
from peering.sidecar.relaying import CIRCUIT_BYTES, CIRCUIT_S, IDLE_S, PING_S, SILENT_S
from peering.sidecar.talk import PEER, RELAY, Streams, ask_relay, heard
from protocol.errors import RemoteError, Unavailable
from protocol.joinlink import Bootstrap

MOST_RELAYS = 3
"""At which it waits: one that goes takes nothing with it that the next does not have."""
MOST_STREAMS = 16
FIRST_S = 6.0
"""For the first of them to answer."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class Reached:
    """One node's."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._port, self._shown = 0, ""
        self._tasks: dict[Bootstrap, asyncio.Task[None]] = {}
        self._at: dict[Bootstrap, None] = {}
        self._change = asyncio.Event()
        self._open = 0
        self._is_handling = False

    @property
    def at(self) -> tuple[Bootstrap, ...]:
        """Relays at which it waits now."""
        return tuple(self._at)

    async def wait_at(self, relays: Iterable[Bootstrap], port: int, shown: str) -> tuple[Bootstrap, ...]:
        """Wait at some of these, beside those at which it does; streams go to `port` of this machine. `shown`: this
        node's pass, for these and those."""
        self._port, self._shown = port, shown
        if not self._is_handling:
            await self._streams.handle(PEER, self.on_stream)
            self._is_handling = True
        wanted = tuple(dict.fromkeys((*self._at, *relays)))[:MOST_RELAYS]
        for gone in set(self._tasks).difference(wanted):
            self._tasks.pop(gone).cancel()
        for relay in wanted:
            if relay not in self._tasks:
                self._tasks[relay] = asyncio.ensure_future(self._keep(relay))
        if wanted and not self._at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    self._change.clear()
                    await self._change.wait()
        return self.at

    def stop(self) -> None:
        """Wait nowhere."""
        for task in self._tasks.values():
            task.cancel()

    async def _keep(self, relay: Bootstrap) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with contextlib.suppress(RemoteError, OSError):
                reader, writer = await self._streams.open_at(relay, RELAY)
                try:
                    await ask_relay(writer, self._shown, do="wait")
                    while (await heard(reader, SILENT_S)).get("ok") is True:
                        self._at[relay], pause_s = None, FIRST_PAUSE_S
                        self._change.set()
                        await self._ping(reader, writer)
                finally:
                    self._at.pop(relay, None)
                    await hang_up(writer)
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2.0 * pause_s)

    async def _ping(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """After a while in which the relay says nothing, and does not go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_S):
                await reader.read(1)
                raise Unavailable("a relay went")
        await ask_relay(writer, self._shown, do="wait")

    async def on_stream(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A relay passes somebody on."""
        if self._open >= MOST_STREAMS or peer_id not in {relay.peer_id for relay in self._at}:
            await hang_up(writer)
            return
        self._open += 1
        try:
            near = await asyncio.open_connection("127.0.0.1", self._port)
            bounds = Bounds(most_bytes=CIRCUIT_BYTES, idle_s=2 * IDLE_S, whole_s=CIRCUIT_S)
            await pipe((reader, writer), near, bounds)
        except OSError:  # nobody listens there any more
            await hang_up(writer)
        finally:
            self._open -= 1
