"""A worker gives what it has fetched to other workers of its run: blocks by the digest of their bytes, nothing else.

Decides who is given a block: whoever shows the coordinator's ticket and proves its key by a signature over this call's
nonce (protocol/tickets.py), while a slot is free. Always: what is not a checked block of the run is not here; nothing
waits without end for the other side; nothing leaves faster than the volunteer's rate, nor against their rules. Listens
on one port, which is the only one that a worker ever opens, and only where its volunteer said `--share`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, BinaryIO, Protocol

import grpc
from google.protobuf.message import DecodeError

from peering.finding import answer
from peering.keeping import RecordKeeper
from peering.limits import (
    FIND_METHOD,
    FRAME_STALL_S,
    MAX_PEER_CALLS,
    MIN_PEER_BYTES_PER_S,
    OPENING_S,
    PEER_GRACE_S,
    PEER_METHOD,
    UPLOAD_SLOTS,
    peer_server_options,
)
from peering.pace import Slots, Spend, UplinkPace, at_once
from protocol.errors import (
    ConfigError,
    MalformedMessage,
    RateLimited,
    Refused,
    RemoteError,
    TooSlow,
    Unauthenticated,
)
from protocol.file_frames import FileFrames
from protocol.hosts import address_text
from protocol.ids import Digest, RunId
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES
from protocol.messages import record_of
from protocol.tickets import NONCE_BYTES, Ticket, check_proof, check_ticket
from protocol.tls import LeafCertificate
from protocol.v1 import barnraise_pb2 as pb

_ABORT_S = 2.0
_STATUS = {
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    Refused: grpc.StatusCode.NOT_FOUND,
}


class Uplink(Protocol):
    """What holds all that is given to the volunteer's rules about the line."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing is to be given now."""

    def giving(self) -> AbstractAsyncContextManager[Spend]:
        """While one block is given. RateLimited, which is nobody's fault, where, and as soon as, none may be."""

    async def passing(self, count: int) -> None:
        """Wait until so many bytes of others may come in and go out again; RateLimited where none may now."""


class BlockShelf(Protocol):
    """What a worker has to give."""

    def open(self, digest: Digest) -> BinaryIO | None:
        """A checked block, from its start; None where it is not here."""


class PeerServer:
    """Serves one run's blocks. `start` once, `stop` once."""

    def __init__(
        self,
        shelf: BlockShelf,
        leaf: LeafCertificate,
        name: Digest,
        *,
        run_id: RunId,
        ca_pem: bytes,
        now_s: Callable[[], float],
        bytes_per_s: float,
        slots: Slots | None = None,
        stall_s: float = FRAME_STALL_S,
        records: RecordKeeper | None = None,
        clock: Callable[[], float] = time.monotonic,
        uplink: Uplink | None = None,
    ) -> None:
        """`name`: SHA-256 of the certificate that callers check `leaf` against. `now_s`: the coordinator's clock.
        `records`: what is told whoever looks for the run; None: nothing. `uplink`: what `bytes_per_s` is under."""
        self._shelf, self._leaf, self._name = shelf, leaf, name
        self._run_id, self._ca_pem, self._now_s = run_id, ca_pem, now_s
        self._pace, self._slots = UplinkPace(bytes_per_s, clock), slots or Slots(UPLOAD_SLOTS)
        self._stall_s, self._clock = stall_s, clock
        self._scratch = bytearray(FRAME_HEADER_BYTES + FRAME_BYTES)
        self._records, self._uplink = records, uplink
        self._grpc: Any = None
        self.sent_bytes = 0
        """Of frames, since the start."""

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. ConfigError where it cannot be had."""
        self._grpc = grpc.aio.server(options=peer_server_options(), maximum_concurrent_rpcs=MAX_PEER_CALLS)
        service, _, method = PEER_METHOD[1:].partition("/")
        handlers = {
            method: grpc.stream_stream_rpc_method_handler(self._take),
            FIND_METHOD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._find),
        }
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        credentials = grpc.ssl_server_credentials([(self._leaf.key_pem, self._leaf.cert_pem)])
        try:
            bound = int(self._grpc.add_secure_port(address_text(host, port), credentials))
        except RuntimeError:
            raise ConfigError(
                f"cannot listen on port {port} to share blocks: another program has it; choose another --share-port"
            ) from None
        await self._grpc.start()
        return bound

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._grpc is not None:
            await self._grpc.stop(None)
            self._grpc = None

    async def pass_on(self, count: int) -> None:
        """Wait for the turn of so many bytes that others send through this machine: at the same rate as what is given,
        and under the same rules. RateLimited where none may go now."""
        await self._pace.spend(count)
        if self._uplink is not None:
            await self._uplink.passing(count)

    async def _take(self, messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            await self._answer(messages, context)
        except RemoteError as error:
            await _abort(context, _STATUS.get(type(error), grpc.StatusCode.UNAVAILABLE), str(error))
        except OSError:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "the block cannot be read at present")

    async def _answer(self, messages: AsyncIterator[bytes], context: Any) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        await context.send_initial_metadata(())
        await _in_time(context.write(pb.PeerGreeting(nonce=nonce).SerializeToString()), OPENING_S)
        request = _request(await _in_time(anext(messages, b""), OPENING_S))
        digest = Digest(request.digest.hex())
        self._admit(request, nonce, digest)
        async with self._slots.of(request.ticket.public_key):
            frames = await asyncio.to_thread(self._opened, digest, request)
            try:
                async with self._giving() as spend:
                    await self._send(frames, context, spend)
            finally:
                frames.close()

    def _giving(self) -> AbstractAsyncContextManager[Spend]:
        return nullcontext(at_once) if self._uplink is None else self._uplink.giving()

    async def _find(self, body: bytes, context: Any) -> bytes:
        try:
            return b"" if self._records is None else answer(body, self._records)
        except RemoteError as error:
            await _abort(context, _STATUS.get(type(error), grpc.StatusCode.UNAVAILABLE), str(error))
            return b""

    def _admit(self, request: pb.TakeRequest, nonce: bytes, digest: Digest) -> None:
        ticket = record_of(Ticket, request.ticket)
        # the cheaper one first: 60 µs of Ed25519, before the CA's ECDSA
        check_proof(ticket.public_key, request.proof, nonce, self._name, digest, request.offset)
        check_ticket(ticket, self._ca_pem, self._run_id, self._now_s())

    def _opened(self, digest: Digest, request: pb.TakeRequest) -> FileFrames:
        file = self._shelf.open(digest)
        if file is None:
            raise Refused(f"block {digest[:16]}… is not here")
        return FileFrames(file, request.offset, self._scratch)

    async def _send(self, frames: FileFrames, context: Any, spend: Spend) -> None:
        waited_s, moved = 0.0, 0
        while not frames.ended:
            frame = await frames.read()
            await self._pace.spend(len(frame))
            await spend(len(frame))
            began_s = self._clock()
            await _in_time(context.write(frame), self._stall_s)
            waited_s, moved = waited_s + self._clock() - began_s, moved + len(frame)
            self.sent_bytes += len(frame)
            if waited_s > PEER_GRACE_S + moved / MIN_PEER_BYTES_PER_S:
                raise TooSlow("bytes were taken too slowly; go on where it broke")


def _request(body: bytes) -> pb.TakeRequest:
    try:
        request = pb.TakeRequest.FromString(body)
    except DecodeError as error:
        raise MalformedMessage("the request is not a TakeRequest") from error
    if len(request.digest) != 32:
        raise MalformedMessage(f"a digest has 32 bytes, got {len(request.digest)}")
    return request


async def _in_time(step: Any, limit_s: float) -> Any:
    try:
        async with asyncio.timeout(limit_s):
            return await step
    except TimeoutError:
        raise TooSlow(f"nothing moved for {limit_s:g} s") from None


async def _abort(context: Any, status: grpc.StatusCode, sentence: str) -> None:
    try:
        await asyncio.wait_for(context.abort(status, sentence[:200]), _ABORT_S)
    except TimeoutError:
        raise asyncio.CancelledError from None
