"""The relay: passes streams on to workers that cannot be reached, and that wait here on a connection of their own.

Decides who may wait and who is let through: nodes that show a pass of this run's authority for their own peer id, a
bounded number of both, and only streams of one protocol, to somebody who waits at this moment. So nobody is sent
anywhere that did not ask for it. Always: whoever shows no pass takes nobody's place; not a byte leaves for which
whoever started this node has not given credit, so that it keeps to a volunteer's rate and rules; each stream is bounded
in bytes, in time, and in time without a byte. What passes is TLS between the two others. p2pd's own relays are not
used: docs/decisions/0094, 0097. Touches streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from typing import Any

from peering.keeping import RecordKeeper
from peering.sidecar.pipe import Bounds, hang_up, pipe
from peering.sidecar.talk import PEER, RELAY, Streams, heard, say
from protocol.errors import RemoteError
from protocol.tickets import MOST_PASS_BYTES, check_pass

MOST_WAITING = 64
MOST_CIRCUITS = 16
MOST_CIRCUITS_EACH = 4
"""Of one taker, and to one giver: it gives two blocks at once, and lets some wait for a moment."""
CIRCUIT_BYTES = 256 * 1024 * 1024
"""Each way; somebody who takes a larger block goes on where it broke."""
CIRCUIT_S = 1800.0
IDLE_S = 60.0
PING_S = 20.0
SILENT_S = 3 * PING_S
"""Whoever waits and says nothing for so long waits no more."""
CREDIT_BYTES = 2 * 1024 * 1024
"""What may be passed on before whoever started this node says that more may be."""
NEWS_S = 5.0
NOT_ENROLLED = "this relay is for enrolled workers of its run alone, and this node has shown it no pass that holds"


class RelayCredit:
    """Bytes that may leave."""

    def __init__(self) -> None:
        self._left, self.passed = 0, 0
        self._granted, self._spent = asyncio.Event(), asyncio.Event()

    @property
    def is_out(self) -> bool:
        """Whether nothing may leave now."""
        return self._left <= 0

    async def spend(self, count: int) -> None:
        """Wait until bytes may leave."""
        while self.is_out:
            self._granted.clear()
            await self._granted.wait()
        self._left -= count
        self.passed += count
        self._spent.set()

    def grant(self, count: int) -> None:
        """So many more may."""
        self._left = min(CREDIT_BYTES, self._left + count)
        self._granted.set()

    async def wanted(self) -> int:
        """How many more are of use: at once where half is used up, else after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_S):
                while self._left > CREDIT_BYTES // 2:
                    self._spent.clear()
                    await self._spent.wait()
        return CREDIT_BYTES - self._left


class RelayDesk:
    """One node's. Without credit it takes nobody."""

    def __init__(self, streams: Streams, keeper: RecordKeeper) -> None:
        """`keeper`: has the run's record, and in that the authority whose passes hold here; before, none do."""
        self._streams, self._keeper = streams, keeper
        self.credit = RelayCredit()
        self._waiting: dict[str, asyncio.StreamWriter] = {}
        self._circuits: Counter[str] = Counter()
        """Of each node, as a taker or a giver."""
        self._open = 0

    @property
    def waiting(self) -> int:
        """Workers that are reached through this node now."""
        return len(self._waiting)

    def has(self, peer_id: str) -> bool:
        """Whether that worker is reached through this node now."""
        return peer_id in self._waiting

    @property
    def circuits(self) -> int:
        """Streams that are passed on now."""
        return self._open

    async def start(self) -> None:
        """Be asked from now on."""
        await self._streams.handle(RELAY, self.on_stream)

    async def on_stream(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody asks."""
        try:
            with contextlib.suppress(RemoteError, OSError):
                said = await heard(reader)
                if not self._admits(peer_id, said):
                    await say(writer, why=NOT_ENROLLED)
                    return
                match said.get("do"):
                    case "wait":
                        await self._wait(peer_id, reader, writer)
                    case "hello":
                        await say(writer, ok=not self.credit.is_out)
                    case "to":
                        await self._pass_on(peer_id, str(said.get("peer"))[:80], reader, writer)
        finally:
            await hang_up(writer)

    def _admits(self, peer_id: str, said: dict[str, Any]) -> bool:
        """Whether the node has shown a pass that holds: its own, and this run's."""
        shown, record = said.get("pass"), self._keeper.newest
        if not isinstance(shown, str) or len(shown) > 2 * MOST_PASS_BYTES or record is None:
            return False
        try:
            ca_pem = ssl.DER_cert_to_PEM_cert(record.ca_certificate).encode("ascii")
            check_pass(bytes.fromhex(shown), ca_pem, peer_id, self._keeper.wall_s())
        except (RemoteError, ValueError):
            return False
        return True

    async def _wait(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = self._waiting.pop(peer_id, None)
        if before is not None:
            before.close()
        if len(self._waiting) >= MOST_WAITING:
            await say(writer, why="full")
            return
        self._waiting[peer_id] = writer
        try:
            await say(writer, ok=True)
            while self._admits(peer_id, await heard(reader, SILENT_S)):
                await say(writer, ok=True)
            await say(writer, why=NOT_ENROLLED)
        finally:
            if self._waiting.get(peer_id) is writer:
                del self._waiting[peer_id]

    async def _pass_on(
        self, taker: str, giver: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if giver not in self._waiting or giver == taker:
            await say(writer, why="absent")
            return
        is_full = self._open >= MOST_CIRCUITS or max(self._circuits[taker], self._circuits[giver]) >= MOST_CIRCUITS_EACH
        if is_full or self.credit.is_out:
            await say(writer, why="busy")
            return
        self._open += 1
        self._circuits.update((taker, giver))
        try:
            try:
                far = await self._streams.open_to(giver, PEER)
            except RemoteError:
                await say(writer, why="absent")
                return
            await say(writer, ok=True)
            bounds = Bounds(most_bytes=CIRCUIT_BYTES, idle_s=IDLE_S, whole_s=CIRCUIT_S, spend=self.credit.spend)
            await pipe((reader, writer), far, bounds)
        finally:
            self._open -= 1
            self._circuits.subtract((taker, giver))
            self._circuits += Counter()  # forget those that have none
