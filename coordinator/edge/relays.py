"""Relays of the run: nodes that pass streams on to workers to which nobody can connect, and the shares behind them.

Decides which nodes are named as relays, who is given a pass for them (whoever is in a session, for a few nodes of its
own), and which shares count that are reached through some: only what this machine's own node has itself tried, a relay
at the address from which its worker calls, a share behind relays that are named. So no worker sends others to an
address that is not its own. Always: in memory alone, and without a node in the run's network there are none. Touches
the network through that node.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from coordinator.edge.sessions import CallerSession
from peering.line import holder_name
from peering.tracker import Shared
from protocol.bootstrap import fetch_ca_behind
from protocol.errors import BarnraiseError, ConfigError, MalformedMessage
from protocol.hosts import address_text
from protocol.ids import WorkerId
from protocol.joinlink import Bootstrap
from protocol.tickets import PASS_S
from protocol.v1 import barnraise_pb2 as pb

MOST_NAMED = 4
"""To one worker; it waits at three."""
MOST_NODES = 4
"""Of one worker, within a pass's life: a sidecar that is started again has another name."""
MOST_OFFERED = 256
TRY_AGAIN_S = 20.0
"""A relay, or a share behind some, that was not reached is not tried again before that."""
REACHING_S = 10.0

_NO_NODE = "this run's coordinator takes no part in a peer-to-peer network, so nobody is sent to relays"


class RelayedNode(Protocol):
    """This machine's node, as far as relays go."""

    @property
    def peer_id(self) -> str:
        """What it is called; empty: it is not there yet."""

    @property
    def relay(self) -> Bootstrap | None:
        """Where it passes streams on itself."""

    async def relays_at(self, peer: Bootstrap, shown: bytes) -> bool:
        """Whether that node does, for whoever has this pass."""

    async def reach(self, peer_id: str, through: tuple[Bootstrap, ...], shown: bytes) -> Path:
        """A Unix socket behind which that node is."""


class Relays:
    """One run's."""

    def __init__(
        self,
        node: RelayedNode | None,
        now_s: Callable[[], float],
        is_here: Callable[[WorkerId], bool],
        sign: Callable[[str], bytes],
    ) -> None:
        """`sign`: a pass for the node of that name."""
        self._node, self._now_s, self._is_here, self._sign = node, now_s, is_here, sign
        self._passed: dict[WorkerId, dict[str, float]] = {}
        """Until when each node's pass holds."""
        self._offers: dict[WorkerId, Bootstrap] = {}
        self._refused: dict[tuple[WorkerId, type], tuple[float, object, str]] = {}
        """Until when what was tried last is not tried again, what that was, and why it came to nothing."""
        self._named = 0

    async def note(self, session: CallerSession, request: pb.SourcesRequest) -> str:
        """Take down what the worker offers; why nobody is sent there, empty where they are, or nothing is offered."""
        worker = session.worker
        if not request.HasField("relay"):
            self._offers.pop(worker, None)
            return ""
        if self._node is None:
            return _NO_NODE
        try:
            relay = Bootstrap(peer_id=request.relay.peer_id[:80], host=session.host, port=request.relay.port)
        except ConfigError as error:
            raise MalformedMessage("Sources: a relay has a peer's id and a port") from error
        if self._offers.get(worker) == relay:
            return ""
        self._offers.pop(worker, None)
        why = await self._tried(worker, relay, partial(self._why_no_relay, relay))
        if not why and len(self._offers) < MOST_OFFERED:
            self._offers[worker] = relay
        return why

    def pass_for(self, worker: WorkerId, peer_id: str) -> bytes:
        """A pass for the worker's node; empty: it has none, or had too many, or there are no relays."""
        now_s = self._now_s()
        nodes = {one: until_s for one, until_s in self._passed.get(worker, {}).items() if until_s > now_s}
        if self._node is None or not peer_id or len(nodes.keys() - {peer_id}) >= MOST_NODES:
            return b""
        self._passed[worker] = {**nodes, peer_id: now_s + PASS_S}
        return self._sign(peer_id)

    def some(self, worker: WorkerId) -> tuple[Bootstrap, ...]:
        """Up to `MOST_NAMED` of them, this machine's first, others each time."""
        own = () if self._node is None or self._node.relay is None else (self._node.relay,)
        here = [relay for one, relay in self._offers.items() if one != worker and self._is_here(one)]
        self._named += 1
        first = self._named % len(here) if here else 0
        return (*own, *here[first:], *here[:first])[:MOST_NAMED]

    def share_of(self, told: pb.Sharing) -> Shared | None:
        """The share that is reached through the relays that the worker named; None where these are none of ours."""
        own = () if self._node is None or self._node.relay is None else (self._node.relay,)
        known = {str(relay) for relay in (*own, *self._offers.values())}
        through = tuple(one for one in told.through[:MOST_NAMED] if one in known)
        if not told.peer_id or not through:
            return None
        name = holder_name(told.certificate)
        return Shared(host="", port=0, certificate=told.certificate, name=name, peer_id=told.peer_id, through=through)

    async def why_unreached(self, worker: WorkerId, shared: Shared) -> str:
        """Why nobody takes anything there, as far as it can be seen from here; empty: they can."""
        return await self._tried(worker, shared, partial(self._why_no_share, shared))

    async def _tried(self, worker: WorkerId, what: Bootstrap | Shared, attempt: Callable[[], Awaitable[str]]) -> str:
        """What the attempt came to, or the last one, where that was a moment ago."""
        until_s, tried, why = self._refused.get((worker, type(what)), (-math.inf, None, ""))
        if tried == what and self._now_s() < until_s:
            return why
        why = await attempt()
        if why:
            self._refused[worker, type(what)] = (self._now_s() + TRY_AGAIN_S, what, why)
        else:
            self._refused.pop((worker, type(what)), None)
        return why

    async def _why_no_relay(self, relay: Bootstrap) -> str:
        with contextlib.suppress(BarnraiseError, OSError):
            if self._node is not None and await self._node.relays_at(relay, self._sign(self._node.peer_id)):
                return ""
            return "this machine's relay lets nobody through: do its rules let nothing out now, or is its clock wrong?"
        place = address_text(relay.host, relay.port)
        return f"nobody reaches this machine's relay at {place}: forward that port to it, with --p2p-port"

    async def _why_no_share(self, shared: Shared) -> str:
        if self._node is None:
            return _NO_NODE
        with contextlib.suppress(BarnraiseError, OSError):
            through, shown = tuple(map(Bootstrap.parse, shared.through)), self._sign(self._node.peer_id)
            path = await self._node.reach(shared.peer_id, through, shown)
            await asyncio.to_thread(fetch_ca_behind, path, shared.name, REACHING_S)
            return ""
        return "nobody reaches what this machine shares through the relays at which it waits"
