"""A follower's line to its leader: signed calls, and files fetched under their digests.

Decides nothing. Always: a file has its name only when all of it is there, durable, and what its digest says. Touches
the network and the files that it is told to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from coordinator.edge.dialling import CONNECT_S, dialled, told
from coordinator.run.followed import put_in_place
from protocol.errors import MalformedMessage, Unavailable
from protocol.framing import FrameReader
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.joinlink import JoinLink
from protocol.limits import MAX_TRANSFER_S, transfer_deadline_s
from protocol.services import STANDBY_SERVICE
from protocol.signing import CallSigner
from protocol.storage import telling_storage_trouble
from protocol.v1 import barnraise_pb2 as pb

NONCE_BYTES = 16
SILENT_S = 10.0
"""A leader says something every two seconds."""
MAX_BATCH_BYTES = 1 << 30


class LeaderLine:
    """To one leader."""

    def __init__(self, link: JoinLink, identity: PrivateIdentity) -> None:
        self._link, self._identity = link, identity
        self._signer = CallSigner(identity, audience=bytes.fromhex(link.fingerprint))
        self._channel: grpc.aio.Channel | None = None

    async def connect(self) -> None:
        """Dial; only the leader that the link names is spoken to."""
        self._channel = await dialled(self._link)

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close(grace=None)
            self._channel = None

    async def follow(self, request: pb.FollowRequest) -> tuple[Any, AsyncIterator[pb.FollowBatch]]:
        """The call, to acknowledge by, and what the leader says in it."""
        request.public_key, request.nonce = self._identity.public_key, secrets.token_bytes(NONCE_BYTES)
        call = await self._opened("Follow", request.SerializeToString(), MAX_TRANSFER_S)
        return call, _batches(call)

    async def acknowledge(self, call: Any, position: int) -> None:
        """Everything up to `position` is durable here."""
        try:
            await call.write(pb.FollowAck(position=position).SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise told(error) from None
        except asyncio.InvalidStateError:
            raise Unavailable("the leader hung up") from None

    async def fetch(self, file: pb.HeldFile, target: Path) -> None:
        """Bring `file` to `target`, whole."""
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        with telling_storage_trouble(target):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as writing:
                    await self._frames(file, writing)
                    await asyncio.to_thread(_synced, writing)
                put_in_place(temporary, target)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    async def _frames(self, file: pb.HeldFile, writing: Any) -> None:
        request = pb.FetchRequest(
            public_key=self._identity.public_key, nonce=secrets.token_bytes(NONCE_BYTES), file=file
        )
        call = await self._opened("Fetch", request.SerializeToString(), transfer_deadline_s(file.size_bytes))
        reader = FrameReader(file.size_bytes, Digest(file.digest.hex()))
        try:
            while not reader.complete:
                frame = await _read(call, SILENT_S * 3)
                if frame is None:
                    break
                writing.write(reader.feed(frame))
            reader.finish()
        finally:
            call.cancel()

    async def _opened(self, name: str, body: bytes, timeout_s: float) -> Any:
        if self._channel is None:
            raise Unavailable("not connected")
        method = f"/{STANDBY_SERVICE}/{name}"
        metadata = self._signer.metadata(method, body)
        call = self._channel.stream_stream(method, None, None)(timeout=timeout_s, metadata=metadata)
        try:
            await call.write(body)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await _read(call, CONNECT_S)  # says why
            raise Unavailable("the leader hung up") from None
        return call


async def _batches(call: Any) -> AsyncIterator[pb.FollowBatch]:
    content = bytearray()
    while (message := await _read(call, SILENT_S)) is not None:
        try:
            part = pb.FollowPart.FromString(message)
            content += part.part
            if len(content) > MAX_BATCH_BYTES:
                raise MalformedMessage(f"the leader sends more than {MAX_BATCH_BYTES} bytes at once")
            if not part.more:
                batch = pb.FollowBatch.FromString(bytes(content))
                content.clear()
                yield batch
        except DecodeError as error:
            raise MalformedMessage("what the leader sends cannot be read") from error


async def _read(call: Any, limit_s: float) -> bytes | None:
    """The next message; None at the end."""
    try:
        async with asyncio.timeout(limit_s):
            message = await call.read()
    except TimeoutError:
        raise Unavailable(f"the leader has said nothing for {limit_s:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise told(error) from None
    return None if message is grpc.aio.EOF else bytes(message)


def _synced(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
