"""Who takes which block from whom, over the wire: the tracker (peering/tracker.py) behind the call `Sources`.

Decides what of a worker's words goes into the book: blocks that some kept version serves, and a share only where this
coordinator has itself reached it, at the address from which its worker calls, under the certificate that it told. So
nobody sends others to a machine that is not theirs, and a port that a router keeps shut costs nobody but its owner,
who is told. Always: in memory alone; after a restart everybody tells it again.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable

import structlog

from coordinator.edge.chunks import ChunkBook
from coordinator.edge.kept import Archived, kept_elsewhere
from coordinator.edge.relays import MOST_NAMED, Relays
from coordinator.edge.served import RunContext
from coordinator.edge.sessions import CallerSession
from coordinator.edge.status import KeptStatus
from coordinator.run.found_again import MOST_SHARERS
from coordinator.run.replication import StandbyState
from peering.limits import MAX_CERTIFICATE_BYTES
from peering.line import holder_name
from peering.tracker import Shared, TakeFrom, Tracker
from protocol.bootstrap import fetch_ca
from protocol.errors import MalformedMessage, RemoteError
from protocol.hosts import address_text
from protocol.ids import Digest, Version, WorkerId
from protocol.manifest import MAX_BLOCKS
from protocol.messages import fill
from protocol.tickets import TICKET_S, Ticket, sign_pass, sign_ticket
from protocol.v1 import barnraise_pb2 as pb

MOST_WANTED = 512
"""Blocks that one question may be about; whoever lacks more asks again."""
MOST_TOLD = 2 * MAX_BLOCKS
MOST_FAILED = 64
REACHING_S = 5.0
"""For a connection to whoever shares, with its handshake."""
REACH_AGAIN_S = 60.0
"""A share that could not be reached is not looked for again before that."""
REACHING_AT_ONCE = 8
MOST_PEER_CHARACTERS = 64
SHORTEST_PAUSE_S = 0.5
MOST_CHUNK_LIST_BYTES = 512 * 1024
"""In one answer, which is a message of at most a megabyte: chunks of 128 GiB."""
NEIGHBOURS = 4
"""Sharers that a worker hears of with each answer, so that it knows whom to ask should the run move."""
WORKERS_A_SECOND = 100
"""Questions of all that wait, together."""

_log = structlog.get_logger(__name__)


class Sources:
    """Answers Sources."""

    def __init__(self, run: RunContext, reach: Callable[[Shared], str] | None = None) -> None:
        """`reach`: why nobody reaches a share, empty where they do; may block. None: by connecting to it."""
        self._run, self._reach = run, reach or _why_unreached
        settings = run.settings
        self._tracker = Tracker(copies=settings.copies, fallback_s=settings.fallback_s, is_here=self._is_here)
        self._book = secrets.token_bytes(8)
        self._served: frozenset[Digest] = frozenset()
        self._served_at: Version | None = None
        self._tickets: dict[WorkerId, Ticket] = {}
        self._unreached: dict[WorkerId, tuple[float, str]] = {}
        """Until when a share is not looked for again, and why."""
        self._said: dict[WorkerId, tuple[str, bool]] = {}
        """Why a share was not reached last, and whether it was looked for behind relays."""
        self._reaching = asyncio.Semaphore(REACHING_AT_ONCE)
        self._chunks = ChunkBook(run.store.blocks)
        node = None if run.whereabouts is None else run.whereabouts.node
        self._relays = Relays(
            node, run.run_time, self._is_here, lambda peer_id: sign_pass(run.authority, peer_id, run.wall_time())
        )

    @property
    def anybody_shares(self) -> bool:
        """Whether workers gain by asking before they download."""
        return self._tracker.anybody_shares

    def kept_elsewhere(self, standby: Callable[[], StandbyState | None], archives: Archived) -> KeptStatus | None:
        """What of the present version other machines hold."""
        version = self._run.pump.engine.state.version
        try:
            return kept_elsewhere(self._run.versions, version, self._tracker.is_held, standby(), archives)
        except OSError:
            return None

    async def answer(self, session: CallerSession, request: pb.SourcesRequest) -> pb.SourcesReply:
        """What the worker told goes into the book, and what it may take from whom comes out."""
        _check(request)
        worker, tracker = session.worker, self._tracker
        await self._look_at_versions()
        notice, relay_notice = await self._note_share(session, request), await self._relays.note(session, request)
        now_s, served = self._run.run_time(), self._served
        tracker.gone(worker, _digests(request.gone))
        tracker.got(worker, served.intersection(_digests(request.got)), whole=request.whole)
        tracker.renew(worker, _digests(request.taking), now_s)
        tracker.failed(worker, _digests(request.failed), now_s)
        still_s = request.still_s if request.still_s > 0.0 else 0.0  # false for NaN too
        wanted = [one for one in _digests(request.wanted) if one in served]
        relay_pass = self._relays.pass_for(worker, request.node)
        found = tracker.ask(worker, wanted, now_s, room=request.room, still_s=still_s, relayed=bool(relay_pass))
        reply = _reply(found)
        held, told_bytes = [one.digest for one in found if one.holders], 0
        for digest in served.intersection(_digests(request.unchunked)).intersection(held):
            chunks = await self._chunks.of(digest)
            told_bytes += 0 if chunks is None else len(chunks.digests)
            if chunks is not None and told_bytes <= MOST_CHUNK_LIST_BYTES:
                told = bytes.fromhex(digest)
                reply.chunks.add(digest=told, chunk_bytes=chunks.chunk_bytes, digests=chunks.digests)
        fill(reply.ticket, self._ticket(session, now_s), Ticket)
        reply.now_s, reply.book, reply.notice, reply.record = now_s, self._book, notice, self._run.record
        reply.relay_notice, reply.relay_pass = relay_notice, relay_pass
        reply.relays.extend(map(str, self._relays.some(worker) if relay_pass else ()))
        for one in tracker.some_sharers(NEIGHBOURS, beside=worker):
            reply.neighbours.add(host=one.host, port=one.port, certificate=one.certificate)
        reply.retry_after_s = max(SHORTEST_PAUSE_S, len(self._run.sessions) / WORKERS_A_SECOND)
        return reply

    def _is_here(self, worker: WorkerId) -> bool:
        known = self._run.pump.engine.state.workers.get(worker)
        return known is not None and known.present and self._run.sessions.has(worker)

    async def _look_at_versions(self) -> None:
        version = self._run.pump.engine.state.version
        if version != self._served_at:
            self._served = served = await asyncio.to_thread(self._run.versions.served)
            self._served_at = version
            self._tracker.keep(lambda digest: digest in served)
            self._chunks.keep(served)

    def _ticket(self, session: CallerSession, now_s: float) -> Ticket:
        ticket = self._tickets.get(session.worker)
        if ticket is None or ticket.expires_s < now_s + TICKET_S / 2:
            ticket = sign_ticket(self._run.authority, self._run.run_id, session.public_key, now_s + TICKET_S)
            self._tickets[session.worker] = ticket
        return ticket

    async def _note_share(self, session: CallerSession, request: pb.SourcesRequest) -> str:
        """Why the worker's share is not one; empty where it is, or there is none."""
        worker, told = session.worker, request.share
        if not request.HasField("share") or self._run.settings.copies == 0:
            self._tracker.share(worker, None)
            return ""
        shared = Shared(
            host=session.host, port=told.port, certificate=told.certificate, name=holder_name(told.certificate)
        )
        relayed, known = self._relays.share_of(told), self._tracker.shares(worker)
        if known is not None and known in (shared, relayed):
            return ""
        until_s, why = self._unreached.get(worker, (-math.inf, ""))
        if self._run.run_time() >= until_s:
            async with self._reaching:
                why = await asyncio.to_thread(self._reach, shared)
            self._unreached[worker] = (self._run.run_time() + REACH_AGAIN_S, why) if why else (-math.inf, "")
        if why and relayed is not None:
            async with self._reaching:
                why = await self._relays.why_unreached(worker, relayed)
            shared = relayed
        self._tracker.share(worker, None if why else shared)
        if not why and self._run.whereabouts is not None:
            await asyncio.to_thread(self._run.whereabouts.keep_sharers, self._tracker.some_sharers(MOST_SHARERS))
        said = (why, bool(shared.peer_id))
        if self._said.get(worker) != said:
            self._said[worker] = said
            relayed_now = bool(shared.peer_id)
            _log.info("share_unreached" if why else "share_reached", worker=worker, port=told.port, relayed=relayed_now)
        return why


def _why_unreached(shared: Shared) -> str:
    """Why nobody else can take anything there, as far as it can be seen from here; empty: they can. Blocks."""
    address = address_text(shared.host or "an unknown address", shared.port)
    try:
        if shared.host:
            fetch_ca(shared.host, shared.port, shared.name, REACHING_S)
            return ""
        why = "this coordinator does not see where its worker calls from"
    except RemoteError:
        why = "forward that port to this machine, with --share-port, or add --p2p where the run has relays"
    return f"nobody reaches what this machine shares at {address}: {why}"


def _check(request: pb.SourcesRequest) -> None:
    """MalformedMessage where it is more than an honest worker tells."""
    told = {"wanted": MOST_WANTED, "taking": MOST_WANTED, "got": MOST_TOLD, "gone": MOST_TOLD, "failed": MOST_FAILED}
    told["unchunked"] = MOST_WANTED
    for name, most in told.items():
        digests = getattr(request, name)
        if len(digests) > most or any(len(one) != 32 for one in digests):
            raise MalformedMessage(f"Sources: {name} must be at most {most} SHA-256 digests, got {len(digests)}")
    if len(request.node) > MOST_PEER_CHARACTERS:
        raise MalformedMessage(f"Sources: a node's name has at most {MOST_PEER_CHARACTERS} characters")
    if request.HasField("share"):
        share = request.share
        if not 1 <= share.port <= 65_535 or not 1 <= len(share.certificate) <= MAX_CERTIFICATE_BYTES:
            raise MalformedMessage("Sources: a share has a port, and a certificate of at most 2 KiB")
        if len(share.peer_id) > MOST_PEER_CHARACTERS or len(share.through) > MOST_NAMED:
            raise MalformedMessage(f"Sources: a share is behind at most {MOST_NAMED} relays")


def _digests(found: object) -> list[Digest]:
    return [Digest(one.hex()) for one in found]  # type: ignore[attr-defined]  # protobuf's repeated bytes


def _reply(found: list[TakeFrom]) -> pb.SourcesReply:
    reply, places = pb.SourcesReply(), dict[Digest, int]()
    for one in found:
        source = reply.sources.add(digest=bytes.fromhex(one.digest), granted=one.granted)
        for holder in one.holders:
            if holder.name not in places:
                places[holder.name] = len(places)
                told = reply.holders.add(host=holder.host, port=holder.port, certificate=holder.certificate)
                told.peer_id, told.through[:] = holder.peer_id, holder.through
            source.holders.append(places[holder.name])
    return reply
