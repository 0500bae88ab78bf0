"""A follower's calls: everything of the run for the one machine that the operator let follow it.

Decides nothing; `coordinator/run/replication.py` says what is given. Always: each call is signed by the key that
redeemed the standby link, once (a nonce); a base's files are there as long as its call is. Touches the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from coordinator.edge.auth import Authenticator
from coordinator.edge.patience import Patience
from coordinator.edge.rpc import Endpoint, Handler, ServedCall, parse
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.base import OfferedFile, RunBase
from coordinator.run.folder import RunFolder
from coordinator.run.replication import TICK_S, Replication, put_away
from coordinator.run.seats import admit
from coordinator.run.shipping import HeldRecords, RegistryWatch, files_beside
from protocol.causes import Cause
from protocol.errors import MalformedMessage, Refused, Unavailable
from protocol.file_frames import FileFrames, opened
from protocol.ids import Digest
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES, PROTOCOL_VERSION
from protocol.v1 import barnraise_pb2 as pb

PART_BYTES = 512 * 1024
_STILL_HERE = pb.FollowPart(more=True).SerializeToString()
"""A piece with nothing in it."""

Request = TypeVar("Request", bound=Message)


class StandbyEndpoint(Endpoint):
    """Makes handlers for calls that go on both ways for a long time, under a key and no session."""

    def dialogue(
        self, name: str, kind: type[Request], answer: Callable[[Request, ServedCall], Awaitable[None]]
    ) -> tuple[str, Handler]:
        """`answer` reads and writes as it likes, once the opening is known to be signed by its own public key."""
        method = self._method(name)

        async def handle(call: ServedCall) -> None:
            body = await call.opening()
            request = parse(kind, body)
            self._auth.check_key(call.metadata, method, body, request.public_key)  # type: ignore[attr-defined]
            await answer(request, call)

        return name, self._handler(name, handle, longest_s=self._throttle.limits.transfer_s)


class StandbyService:
    """Answers one run's follower."""

    def __init__(self, folder: RunFolder, replication: Replication, auth: Authenticator) -> None:
        self._folder, self._replication, self._auth = folder, replication, auth
        self._of_base: dict[tuple[str, str], OfferedFile] = {}
        self._beside: dict[tuple[str, str], OfferedFile] = {}
        """Files that no record names: the registry, and small ones."""
        self._calls = 0
        self._acked = 0
        """Of what the present call has told."""
        self._admitting = asyncio.Lock()
        self._scratch = bytearray(FRAME_HEADER_BYTES + FRAME_BYTES)

    def handlers(self, calls: StandbyEndpoint) -> dict[str, Handler]:
        """By method."""
        return dict(
            [
                calls.dialogue("Follow", pb.FollowRequest, self.follow),
                calls.dialogue("Fetch", pb.FetchRequest, self.fetch),
            ]
        )

    async def follow(self, request: pb.FollowRequest, call: ServedCall) -> None:
        """Records, as they are committed, until somebody hangs up."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise Refused(
                f"this coordinator speaks protocol version {PROTOCOL_VERSION}, the follower speaks "
                f"{request.protocol_version}: run the same release on both machines",
                cause=Cause.OTHER_VERSION,
            )
        if request.engine_version != ENGINE_VERSION:
            raise Refused(
                f"this coordinator's engine is of version {ENGINE_VERSION}, the follower's {request.engine_version}: "
                "run the same release on both machines"
            )
        await self._admit(request.public_key, request.invite)
        self._auth.spend_nonce(request.public_key, request.nonce)
        self._calls += 1
        mine, base, patience = self._calls, None, call.patience("what the follower is told")
        try:
            base = await self._attached(request, call, patience)
            if mine == self._calls:
                self._of_base = {(one.name, one.digest): one for one in (() if base is None else base.files)}
                await self._tell(request, call, patience, mine, base)
        finally:
            if mine == self._calls:
                self._of_base = {}
                self._replication.detached(request.follower)
            if base is not None:
                await asyncio.to_thread(base.pins.close)

    async def _admit(self, public_key: bytes, invite: str = "") -> None:
        async with self._admitting:  # of two that show one invite at once, the first has redeemed it
            await asyncio.to_thread(admit, self._folder.root, public_key, invite, time.time())

    async def _attached(self, request: pb.FollowRequest, call: ServedCall, patience: Patience) -> RunBase | None:
        """What a follower begins with; while that is made, it hears that its leader lives."""
        attaching = asyncio.ensure_future(
            self._replication.attach(request.follower, request.epoch, request.position, request.chain)
        )
        try:
            while not (await asyncio.wait({attaching}, timeout=TICK_S))[0]:
                await call.write(_STILL_HERE, patience)
        except BaseException:
            attaching.add_done_callback(put_away)
            attaching.cancel()
            raise
        return attaching.result()

    async def fetch(self, request: pb.FetchRequest, call: ServedCall) -> None:
        """One file that was offered."""
        await self._admit(request.public_key)
        self._auth.spend_nonce(request.public_key, request.nonce)
        name, digest = request.file.name, Digest(request.file.digest.hex())
        offered, patience = self._offered(name, digest), call.patience("this file")
        try:
            frames = await opened(lambda: FileFrames(offered.open(), request.offset, self._scratch))
        except FileNotFoundError:  # its base, or its pin, was let go of since it was found
            raise _not_offered(name) from None
        try:
            while not frames.ended:
                await call.write(await frames.read(), patience)
        finally:
            frames.close()

    def _offered(self, name: str, digest: Digest) -> OfferedFile:
        found = self._of_base.get((name, digest)) or self._beside.get((name, digest))
        found = found or self._replication.shipment.find(name, digest)
        if found is None:
            raise _not_offered(name)
        return found

    async def _hear(self, follower: str, messages: AsyncIterator[bytes]) -> None:
        async for message in messages:
            position = parse(pb.FollowAck, message).position
            self._acked = max(self._acked, position)
            self._replication.acknowledged(follower, position)

    async def _tell(
        self, request: pb.FollowRequest, call: ServedCall, patience: Patience, mine: int, base: RunBase | None
    ) -> None:
        replication, position = self._replication, request.position
        self._beside.clear()
        self._acked = 0 if base is not None else position
        acks = asyncio.create_task(self._hear(request.follower, call.messages))
        acks.add_done_callback(lambda _: replication.news.set())
        registry = RegistryWatch(self._folder.registry_path)
        try:
            if base is not None:
                await _send(call, self._batch(base.position, (), base.chain, base.files, is_base=True), patience)
                position = base.position
            while not acks.done() and mine == self._calls:
                replication.gate()
                held = replication.shipment.after(position)
                if held is None:
                    raise Unavailable("the follower is too far behind for what is held for it: it has to begin anew")
                if self._acked >= position:  # else it fetches files, and reads nothing: what is sent would pile up
                    changed = await asyncio.to_thread(self._changed_beside, registry)
                    await _send(call, self._next(position, held, changed), patience)
                    position = held[-1].last if held else position
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._anything_after(position, acks)
            if acks.done() and not acks.cancelled() and (error := acks.exception()) is not None:
                raise MalformedMessage("the follower's acknowledgement cannot be read") from error
        finally:
            acks.cancel()
            registry.close()

    def _changed_beside(self, registry: RegistryWatch) -> tuple[OfferedFile, ...]:
        """What is another one than was told last."""
        copy = registry.copy_if_changed()
        found = [*([] if copy is None else [copy]), *files_beside(self._folder.root)]
        news = tuple(one for one in found if (one.name, one.digest) not in self._beside)
        for one in news:
            for old in [key for key in self._beside if key[0] == one.name]:
                del self._beside[old]
            self._beside[one.name, one.digest] = one
        return news

    async def _anything_after(self, position: int, acks: asyncio.Task[None]) -> None:
        replication, shipment = self._replication, self._replication.shipment
        while shipment.begun_at is not None and not acks.done():
            if self._acked >= position and shipment.after(position):
                return
            replication.news.clear()
            await replication.news.wait()

    def _next(self, position: int, held: list[HeldRecords], beside: tuple[OfferedFile, ...]) -> pb.FollowBatch:
        records = [record for one in held for record in one.records]
        files = [file for one in held for file in one.files]
        chain = held[-1].chain if held else b""
        after = held[0].first - 1 if held else position
        return self._batch(after, records, chain, (*files, *beside), is_base=False)

    def _batch(
        self, after: int, records: object, chain: bytes, files: tuple[OfferedFile, ...], *, is_base: bool
    ) -> pb.FollowBatch:
        replication = self._replication
        return pb.FollowBatch(
            epoch=replication.epoch,
            after=after,
            records=records,  # type: ignore[arg-type]
            chain=chain,
            files=[
                pb.HeldFile(name=one.name, digest=bytes.fromhex(one.digest), size_bytes=one.size_bytes)
                for one in {(file.name, file.digest): file for file in files}.values()
            ],
            is_base=is_base,
            committed=replication.committed,
            waits=replication.state.mode.value != "async",
        )


def _not_offered(name: str) -> Unavailable:
    return Unavailable(f"{name[:120]!r} is not offered any more: follow anew")


async def _send(call: ServedCall, batch: pb.FollowBatch, patience: Patience) -> None:
    content = batch.SerializeToString()
    for start in range(0, len(content), PART_BYTES):
        part = content[start : start + PART_BYTES]
        message = pb.FollowPart(part=part, more=start + PART_BYTES < len(content))
        await call.write(message.SerializeToString(), patience)
