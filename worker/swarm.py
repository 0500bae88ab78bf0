"""Blocks from whoever has them: asks the coordinator who that is, takes from other workers, and from it what it grants.

Decides which block is taken next and from whom, and to whom this worker does not go again. Always: a block is believed
only under its digest, by whoever keeps it; a holder that gave something else, or nothing, costs one try and is then
avoided; one that is busy, or has just let go of a block, costs nothing and is nobody's fault; where other workers come
to nothing, the coordinator's own stream does. Of one holder one block is taken at a time, since it gives no more.
Touches the network through its ports; time and chance are given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

from peering.limits import MAX_CERTIFICATE_BYTES
from peering.line import holder_name, may_dial
from protocol.chunks import Chunks, believable, has_chunks
from protocol.errors import DigestMismatch, RateLimited, Refused, RemoteError
from protocol.ids import Digest
from protocol.manifest import BlockRef
from protocol.messages import record_of
from protocol.tickets import Ticket
from protocol.v1 import barnraise_pb2 as pb
from worker.chunked import ChunkedSource
from worker.detour import relays_in
from worker.ports import BlockSource, Coordinator
from worker.sharing import Sharing
from worker.timing import Timing

LANES = 4
"""Blocks that come at once; each from somebody else."""
MOST_ASKED = 256
RENEW_S = 8.0
"""While everything that may come is on its way, the coordinator hears so often: a third of a grant's life."""
SHORTEST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
BUSY_S = 1.0
"""A holder that is busy is not asked again for about so long: a block takes seconds to give."""
GONE_S = 2.0
"""Nor one that has let go of what it was asked for: it tells the coordinator so when it asks next, at once."""

Take = Callable[[BlockSource], Awaitable[None]]
"""Brings a block from there to the disk, checked."""


class HolderLine(BlockSource, Protocol):
    """The line to another worker."""

    name: Digest
    ticket: Ticket | None

    async def close(self) -> None:
        """Hang up."""


DialHolder = Callable[[pb.Holder], HolderLine]


class BlockSwarm:
    """One worker's side, for one coordinator. `bring` is called for many blocks at once."""

    def __init__(
        self,
        coordinator: Coordinator,
        dial: DialHolder,
        timing: Timing,
        *,
        near: str,
        sharing: Sharing | None = None,
        lanes: int = LANES,
        tell: Callable[[pb.SourcesRequest], None] = lambda _request: None,
        heard: Callable[[pb.SourcesReply], None] = lambda _reply: None,
    ) -> None:
        """`near`: the host at which the coordinator is reached; `tell` may add to what it is told, and `heard` gets all
        that it says."""
        self._coordinator, self._dial, self._timing = coordinator, dial, timing
        self._near, self._lanes = near, lanes
        self.sharing, self._tell, self._heard = sharing, tell, heard
        self._waiting: dict[Digest, asyncio.Future[HolderLine | None]] = {}
        self._sizes: dict[Digest, int] = {}
        """Of large blocks that are wanted."""
        self._chunks: dict[Digest, Chunks] = {}
        """As the coordinator told them."""
        self._coming: dict[Digest, HolderLine | None] = {}
        """What comes, and from whom; None: from the coordinator."""
        self._lines: dict[Digest, HolderLine] = {}
        self._busy_until_s: dict[Digest, float] = {}
        self._refused: set[Digest] = set()
        """Holders that had not what was asked of them, and have given nothing since: once, it is nobody's fault."""
        self._got: list[Digest] = []
        self._failed: list[Digest] = []
        self._moved_s = self._still_s = 0.0
        """When something came last, but for time in which nothing was wanted; how long nothing had when that began."""
        self._wake, self._one_question = asyncio.Event(), asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None
        self.from_workers_bytes = 0
        """Taken from other workers, since the beginning."""

    async def bring(self, ref: BlockRef, take: Take) -> None:
        """Have `take` bring the block, from one source after the other until it holds.

        Raises what the coordinator's own stream ends in, where that is no `Unavailable`.
        """
        if has_chunks(ref.payload_bytes):
            self._sizes[ref.digest] = ref.payload_bytes
        try:
            await self._brought(ref, take)
        finally:
            self._sizes.pop(ref.digest, None)
            self._chunks.pop(ref.digest, None)

    async def _brought(self, ref: BlockRef, take: Take) -> None:
        givers, wrong = set[Digest](), False
        while True:
            line: HolderLine | None = None
            try:
                line = await self._turn(ref.digest)
                if line is None:
                    watched: BlockSource = _Watched(self._coordinator, partial(self._moved, None, givers))
                    await self._coordinator.patiently(partial(take, watched))
                else:
                    await take(self._checked(ref, _Watched(line, partial(self._moved, line.name, givers))))
            except DigestMismatch:
                # Whose bytes were wrong is not known where several gave some, nor where an earlier process kept some.
                self._failed += givers
                if line is None and wrong:
                    raise
                givers, wrong = set(), wrong or line is None
            except RemoteError as error:
                if line is None:
                    raise
                self._gave_nothing(line.name, error)
            else:
                self._refused -= {line.name} if line is not None else set()
                self._got.append(ref.digest)
                return
            finally:
                self._coming.pop(ref.digest, None)
                self._wake.set()
                self._note_still()

    def _gave_nothing(self, name: Digest, error: RemoteError) -> None:
        """What that says of a holder: it is left alone for a moment, or gone to no more for long."""
        is_new = isinstance(error, Refused) and name not in self._refused
        if not (is_new or isinstance(error, RateLimited)):
            self._failed.append(name)
            return
        if is_new:
            self._refused.add(name)
        left_s = (GONE_S if is_new else BUSY_S) * self._timing.draw.uniform(0.5, 1.5)
        self._busy_until_s[name] = self._timing.clock() + left_s

    def _checked(self, ref: BlockRef, source: BlockSource) -> BlockSource:
        chunks = self._chunks.get(ref.digest)
        return source if chunks is None else ChunkedSource(source, chunks)

    async def announce(self) -> str:
        """Tell the coordinator what is shared; why that reaches nobody, or nothing."""
        return str((await self._ask()).notice)

    async def close(self) -> None:
        """Give up."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking
        await self._hang_up()

    # ---- turns ------------------------------------------------------------------------------------------------------

    async def _turn(self, digest: Digest) -> HolderLine | None:
        """Wait until the block may come from somebody."""
        if not self._waiting and not self._coming:  # a lease that got nothing in its time leaves the next to wait on
            self._moved_s = self._timing.clock() - self._still_s
        future: asyncio.Future[HolderLine | None] = asyncio.get_running_loop().create_future()
        self._waiting[digest] = future
        self._wake.set()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_on())
        try:
            return await future
        finally:
            self._waiting.pop(digest, None)
            self._note_still()

    def _note_still(self) -> None:
        if not self._waiting and not self._coming:
            self._still_s = self._timing.clock() - self._moved_s

    async def _ask_on(self) -> None:
        """Ask until nothing is waited for any more, and what has come is told."""
        try:
            while self._waiting or self._coming or self._got:
                self._wake.clear()
                begun = len(self._coming)
                pause_s = self._give_turns(await self._ask())
                if self._waiting and len(self._coming) == begun < self._lanes:
                    # nobody has anything for us now; what comes to an end meanwhile changes little
                    await self._timing.sleep(pause_s * self._timing.draw.uniform(0.8, 1.2))
                elif self._waiting or self._coming:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), RENEW_S)
                    await self._timing.sleep(SHORTEST_PAUSE_S)
        except RemoteError as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
        finally:
            await self._hang_up()

    async def _ask(self) -> pb.SourcesReply:
        async with self._one_question:
            return await self._asked()

    async def _asked(self) -> pb.SourcesReply:
        got, failed = tuple(self._got), tuple(dict.fromkeys(self._failed))[:64]
        wanted = [bytes.fromhex(one) for one, future in self._waiting.items() if not future.done()]
        request = pb.SourcesRequest(
            wanted=wanted[:MOST_ASKED],
            room=max(0, self._lanes - len(self._coming)),
            taking=[bytes.fromhex(digest) for digest, line in self._coming.items() if line is None],
            failed=map(bytes.fromhex, failed),
            still_s=self._timing.clock() - self._moved_s,
            unchunked=[bytes.fromhex(one) for one in self._sizes if one in self._waiting and one not in self._chunks][
                :MOST_ASKED
            ],
        )
        if self.sharing is not None:
            self.sharing.tell(request)
        self._tell(request)
        told = set(request.got)
        request.got.extend(one for one in map(bytes.fromhex, got) if one not in told)
        reply = await self._coordinator.sources(request)
        del self._got[: len(got)]
        self._failed = [one for one in self._failed if one not in failed]
        if self.sharing is not None:
            self.sharing.heard(reply)
        for one in reply.chunks:
            digest = Digest(one.digest.hex())
            found = believable(one.chunk_bytes, one.digests, self._sizes.get(digest, 0))
            if found is not None:
                self._chunks[digest] = found
        self._heard(reply)
        return reply

    def _give_turns(self, reply: pb.SourcesReply) -> float:
        """Let begin what may; the pause before asking again about the rest."""
        ticket, now_s = record_of(Ticket, reply.ticket), self._timing.clock()
        names = [holder_name(holder.certificate) for holder in reply.holders]
        taken_from = {line.name for line in self._coming.values() if line is not None}
        for source in sorted(reply.sources, key=lambda one: not one.granted):
            digest = Digest(source.digest.hex())
            future = self._waiting.get(digest)
            if future is None or future.done() or len(self._coming) >= self._lanes:
                continue
            line: HolderLine | None = None
            if not source.granted:
                free = [
                    place
                    for place in source.holders
                    if place < len(names)
                    and names[place] not in taken_from
                    and self._busy_until_s.get(names[place], now_s) <= now_s
                    and names[place] not in self._failed
                ]
                line = self._line(reply.holders[free[0]], names[free[0]], ticket) if free else None
                if line is None:
                    continue
                taken_from.add(line.name)
            self._coming[digest] = line
            future.set_result(line)
        retry_s = reply.retry_after_s
        retry_s = retry_s if retry_s > SHORTEST_PAUSE_S else SHORTEST_PAUSE_S  # false for NaN too
        return min(retry_s, LONGEST_PAUSE_S)

    def _line(self, holder: pb.Holder, name: Digest, ticket: Ticket) -> HolderLine | None:
        """The line to a holder; None where it is none that this machine connects to."""
        line = self._lines.get(name)
        if line is None:
            if not self._goes_to(holder):
                self._failed.append(name)
                return None
            line = self._lines[name] = self._dial(holder)
        line.ticket = ticket
        return line

    def _goes_to(self, holder: pb.Holder) -> bool:
        if len(holder.certificate) > MAX_CERTIFICATE_BYTES:
            return False
        if holder.peer_id:
            return bool(relays_in(holder.through, self._near))
        return 1 <= holder.port <= 65_535 and may_dial(holder.host, self._near)

    def _moved(self, giver: Digest | None, givers: set[Digest], count: int) -> None:
        self._moved_s = self._timing.clock()
        if giver is not None:
            givers.add(giver)
            self.from_workers_bytes += count

    async def _hang_up(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.close()


class _Watched:
    """A source whose bytes are counted as they come."""

    def __init__(self, source: BlockSource, moved: Callable[[int], None]) -> None:
        self._source, self._count = source, moved

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As the source gives it."""
        async with aclosing(self._source.block(digest, payload_bytes, offset)) as pieces:
            async for piece in pieces:
                self._count(len(piece))
                yield piece
