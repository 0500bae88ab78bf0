"""Other workers of the run, as far as this one has to do with them: what it gives them, and whether it asks them.

Decides when the swarm is asked at all: where the coordinator said beside the lease that somebody shares; and that a
port which cannot be had costs the sharing alone, which is told. Always: who shares is told what that means as soon as
something listens. Touches the network through the swarm and the listener.
"""

from __future__ import annotations

import asyncio
import contextlib

from peering.line import PeerLine
from protocol.errors import ConfigError, RemoteError
from protocol.identity import PrivateIdentity
from protocol.text import human_bytes
from protocol.v1 import barnraise_pb2 as pb
from worker.detour import Detour, RelayedLine, RelayedNetwork
from worker.joining import Joining
from worker.lease import printable
from worker.progress import Reporter
from worker.sharing import Sharing
from worker.swarm import BlockSwarm, HolderLine
from worker.words import Words, foreign, say


class Neighbours:
    """One agent's."""

    def __init__(self, joining: Joining, reporter: Reporter, sharing: Sharing | None) -> None:
        self._joining, self._reporter, self._sharing = joining, reporter, sharing
        self._swarm: BlockSwarm | None = None
        self._detour: Detour | None = None
        self._detouring: asyncio.Task[None] | None = None
        self._relay_notice, self._is_relay = "", False
        self._told_bytes = 0
        self._notice = ""
        self._announcing: asyncio.Future[None] | None = None
        self._is_open = True
        """As the volunteer's rules were when the coordinator was told last."""
        self.others_share = False
        """As the coordinator said beside the latest lease."""

    async def on_session(self) -> None:
        """A session is open: what is here is there for others, if the volunteer wants that."""
        if self._sharing is None:
            return
        try:
            is_new = await self._sharing.start(self._joining.enrolment)
        except ConfigError as error:
            self._sharing = None
            self._reporter.say("not_sharing", say("not_sharing", why=Words(str(error))))
            return
        if is_new:
            port = self._sharing.port
            self._reporter.say("sharing", say("sharing", port=port), port=port)
        try:
            notice: str = foreign(printable(await self._made().announce()))
        except RemoteError:
            notice = say("sharing.untold")
        if notice and notice != self._notice:
            self._reporter.say("share_unreached", notice)
        self._notice = notice
        self._made()
        if self._detour is not None and self._detouring is None:
            keeping = self._detour.keep(self._sharing.port, lambda: bool(self._notice), self._say_again)
            self._detouring = asyncio.ensure_future(keeping)

    async def _say_again(self) -> None:
        """Something has changed in how others reach this machine."""
        before, self._notice = self._notice, foreign(printable(await self._made().announce()))
        relays = 0 if self._detour is None else self._detour.relays
        if before and not self._notice and relays:
            self._reporter.say("sharing", say("sharing.relayed", relays=relays), relays=relays)

    @property
    def swarm(self) -> BlockSwarm | None:
        """Whom to ask for blocks; None: the coordinator alone."""
        return self._made() if self.others_share else None

    def on_fetched(self) -> None:
        """A lease's blocks are here, those too that were made of others: whoever asks next may have them."""
        if self._sharing is not None and self._sharing.has_news and not self._notice:
            self._announcing = asyncio.ensure_future(self._announce())

    def on_look(self) -> None:
        """The rules were looked at: where they let nothing out any more, or again, nobody has to come to find out."""
        sharing = self._sharing
        if sharing is None or not sharing.port or sharing.is_closed is not self._is_open:
            return
        self._is_open = not sharing.is_closed
        if not self._notice:
            self._announcing = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        with contextlib.suppress(RemoteError):  # it is told again with the next lease
            await self._made().announce()

    def told(self) -> str:
        """How much of what was fetched came from others; empty where nothing did."""
        bytes_now = 0 if self._swarm is None else self._swarm.from_workers_bytes
        count, self._told_bytes = bytes_now - self._told_bytes, bytes_now
        return human_bytes(count) if count else ""

    async def close(self) -> None:
        """Hang up on everybody."""
        for task in (self._announcing, self._detouring):
            if task is not None:
                task.cancel()
        if self._swarm is not None:
            await self._swarm.close()
        if self._sharing is not None:
            await self._sharing.stop()

    def _made(self) -> BlockSwarm:
        if self._swarm is None:
            joining = self._joining
            self._swarm = BlockSwarm(
                joining.client,
                joining.dial_holder or self._dial,
                joining.timing,
                near=joining.host,
                sharing=self._sharing,
                tell=self._tell,
                heard=self._heard,
            )
            if joining.network is not None:
                self._detour = Detour(joining.network, joining.host, joining.timing)
        return self._swarm

    def _tell(self, request: pb.SourcesRequest) -> None:
        if self._detour is not None:
            self._detour.tell(request)
        if request.HasField("relay") and not self._is_relay:
            self._is_relay = True
            self._reporter.say("relaying", say("relaying"))

    def _heard(self, reply: pb.SourcesReply) -> None:
        if self._detour is not None:
            self._detour.heard(reply)
        if reply.relay_notice and reply.relay_notice != self._relay_notice:
            self._reporter.say("relay_unreached", foreign(printable(reply.relay_notice)))
        self._relay_notice = reply.relay_notice
        finder = self._joining.finder
        if finder is not None:
            finder.heard(reply.record)
            finder.met([*reply.holders, *reply.neighbours])

    def _dial(self, holder: pb.Holder) -> HolderLine:
        return line_to(holder, self._joining.identity, self._joining.network, self._joining.host)


def line_to(
    holder: pb.Holder, identity: PrivateIdentity, network: RelayedNetwork | None = None, near: str = ""
) -> HolderLine:
    """The line on which the key's owner takes blocks from a holder; through relays where it can be reached no other
    way, by this machine's node in the `network`. `near`: the host at which the coordinator is reached."""
    if holder.peer_id:
        return RelayedLine(network, holder, near, identity)
    return PeerLine(holder.host, holder.port, holder.certificate, identity)
