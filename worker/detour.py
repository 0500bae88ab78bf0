"""Ways round routers: relays by which others reach this machine, where nobody can connect to it, and it reaches others.

Decides when relays are looked for: as soon as the coordinator says that nobody reaches the share, for as long as that
is so; when it is asked for another pass to show them, long before the last has run out; and which of those that it
names are gone to: literal addresses that this machine may connect to at all, and the coordinator's own host. Always:
through a relay goes what goes without one, TLS from end to end, with the same tickets and proofs; a node that is not
there, or relays that are not, cost the sharing alone. Touches the sidecar through its keeper.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from peering.line import PeerLine, holder_name, may_dial
from protocol.errors import BarnraiseError, ConfigError, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.joinlink import Bootstrap
from protocol.tickets import MOST_PASS_BYTES, PASS_S, Ticket
from protocol.v1 import barnraise_pb2 as pb
from worker.timing import Timing

LOOK_S = 10.0
"""Between two looks: a node takes that long to be there."""
MOST_RELAYS = 4
MOST_CHARACTERS = 400


class RelayedNetwork(Protocol):
    """This machine's node in the run's network, as far as relays go."""

    relay_pass: bytes
    """What it shows to relays."""

    @property
    def is_ready(self) -> bool:
        """Whether it is there."""

    @property
    def peer_id(self) -> str:
        """What it is called."""

    @property
    def offer(self) -> Bootstrap | None:
        """Where it passes streams on itself, as it knows; None: nowhere."""

    async def wait_at(self, relays: tuple[Bootstrap, ...], port: int) -> tuple[str, tuple[Bootstrap, ...]]:
        """Be reached through some of these: by which name, and through which."""

    async def reach(self, peer_id: str, through: tuple[Bootstrap, ...]) -> Path:
        """A Unix socket behind which that node is."""


class Detour:
    """One worker's. `tell` and `heard` go with every question to the coordinator."""

    def __init__(self, network: RelayedNetwork, near: str, timing: Timing) -> None:
        """`near`: the host at which the coordinator is reached."""
        self._network, self._near, self._timing = network, near, timing
        self._named: tuple[Bootstrap, ...] = ()
        self._peer_id, self._at = "", tuple[Bootstrap, ...]()
        self._told: tuple[str, tuple[Bootstrap, ...]] = ("", ())
        self._offered: Bootstrap | None = None
        self._asked_as, self._passed_as, self._renew_s = "", "", 0.0
        """For which node a pass was asked for last, for which there is one, and when to ask for the next."""

    @property
    def relays(self) -> int:
        """Through how many others reach this machine, as the coordinator was told."""
        return len(self._told[1])

    def tell(self, request: pb.SourcesRequest) -> None:
        """Put into `request` what the coordinator is to know."""
        request.node = self._asked_as = self._network.peer_id if self._network.is_ready else ""
        if request.HasField("share") and self._at:
            request.share.peer_id = self._peer_id
            request.share.through.extend(map(str, self._at))
        offer = self._network.offer
        if offer is not None:
            request.relay.peer_id, request.relay.port = offer.peer_id, offer.port
        self._told, self._offered = (self._peer_id, self._at), offer

    def heard(self, reply: pb.SourcesReply) -> None:
        """Which relays there are."""
        if 0 < len(reply.relay_pass) <= MOST_PASS_BYTES:
            self._network.relay_pass, self._passed_as = reply.relay_pass, self._asked_as
            self._renew_s = self._timing.clock() + PASS_S / 2
        named = relays_in(reply.relays, self._near)
        if named:
            self._named = named

    async def keep(self, port: int, is_unreached: Callable[[], bool], announce: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled: see to it that others reach `port`, and the relay that is here. `announce` tells the
        coordinator how things are."""
        while True:
            with contextlib.suppress(BarnraiseError, OSError):
                if self._network.is_ready and (self._at or is_unreached()) and not self._has_pass:
                    await announce()
                if self._at or (is_unreached() and self._named):
                    self._peer_id, self._at = await self._network.wait_at(self._named, port)
                if self._is_news or (is_unreached() and self._at):
                    await announce()
            await self._timing.jittered(LOOK_S)

    @property
    def _has_pass(self) -> bool:
        """Whether relays are known, and this node has what they want, for a while yet."""
        return bool(self._named) and self._passed_as == self._network.peer_id and self._timing.clock() < self._renew_s

    @property
    def _is_news(self) -> bool:
        return (self._peer_id, self._at) != self._told or self._network.offer != self._offered


class RelayedLine:
    """The line to a holder behind relays: as a `PeerLine`, once there is a way."""

    def __init__(self, network: RelayedNetwork | None, holder: pb.Holder, near: str, identity: PrivateIdentity) -> None:
        self.name: Digest = holder_name(holder.certificate)
        self.ticket: Ticket | None = None
        self._network, self._holder, self._identity = network, holder, identity
        self._through = relays_in(holder.through, near)
        self._line: PeerLine | None = None
        self._path = Path()

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As a `BlockSource`."""
        line = await self._dialled()
        line.ticket = self.ticket
        async with aclosing(line.block(digest, payload_bytes, offset)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            await self._line.close()

    async def _dialled(self) -> PeerLine:
        """Asked for with each block, so that its way has a pass that holds, and is one that is there."""
        if self._network is None or not self._through:
            raise Unavailable("there is no way to a worker behind relays")
        try:
            path = await self._network.reach(self._holder.peer_id, self._through)
        except (ConfigError, OSError) as error:
            raise Unavailable("there is no way to a worker behind relays") from error
        if self._line is None or path != self._path:
            await self.close()
            self._line = PeerLine("", 0, self._holder.certificate, self._identity, socket=str(path))
            self._path = path
        return self._line


def relays_in(told: Iterable[str], near: str) -> tuple[Bootstrap, ...]:
    """Those of them that this machine goes to, of a coordinator that it reached at `near`."""
    found = []
    for one in list(told)[:MOST_RELAYS]:
        with contextlib.suppress(ConfigError):
            relay = Bootstrap.parse(one[:MOST_CHARACTERS])
            if relay.host == near or may_dial(relay.host, near):
                found.append(relay)
    return tuple(found)
