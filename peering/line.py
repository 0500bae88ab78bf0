"""The line from one worker to another, for taking blocks: a `BlockSource` that nobody has to believe.

Decides how long another worker is waited for, and what its answers mean: a busy one is nobody's fault (`RateLimited`);
everything else that goes wrong is a `RemoteError`, after which whoever asks goes to somebody else. Always: the other
side is who the coordinator named, by its certificate; frames are checked for size and place, and their content by
whoever keeps them. Touches the network.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from peering.failed_calls import told
from peering.limits import FRAME_STALL_S, OPENING_S, PEER_METHOD, peer_channel_options, peer_deadline_s
from protocol.errors import MalformedMessage, Unavailable
from protocol.framing import FrameReader, Unhashed
from protocol.hosts import dial_target
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.limits import FRAME_BYTES
from protocol.messages import fill
from protocol.tickets import NONCE_BYTES, Ticket, prove
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb


def holder_name(certificate: bytes) -> Digest:
    """What a holder is called by: SHA-256 of its certificate's DER bytes."""
    return Digest(hashlib.sha256(certificate).hexdigest())


class PeerLine:
    """To one holder."""

    def __init__(
        self,
        host: str,
        port: int,
        certificate: bytes,
        identity: PrivateIdentity,
        *,
        stall_s: float = FRAME_STALL_S,
        channel: Any = None,
        frame_bytes: int = FRAME_BYTES,
        socket: str = "",
    ) -> None:
        """`channel`: a gRPC channel to take in place of a new one. `frame_bytes`: as the other side sends them.
        `socket`: a Unix socket behind which the holder is, in place of `host` and `port`."""
        self.name = holder_name(certificate)
        self.ticket: Ticket | None = None
        """To be set before anything is taken, as often as there is a newer one."""
        self._identity, self._stall_s, self._frame_bytes = identity, stall_s, frame_bytes
        self._channel = channel or _channel(f"unix:{socket}" if socket else dial_target(host, port), certificate)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(grace=None)

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As a `BlockSource`. RateLimited: it is busy, and nobody's fault."""
        call = self._channel.stream_stream(PEER_METHOD, None, None)(timeout=peer_deadline_s(payload_bytes))
        try:
            greeting = await self._next(call, OPENING_S)
            await call.write(self._request(greeting, digest, payload_bytes, offset))
            await call.done_writing()
            reader = FrameReader(payload_bytes, digest, offset, Unhashed(), frame_bytes=self._frame_bytes)
            while not reader.complete:
                yield reader.feed(await self._next(call, self._stall_s))
        except asyncio.InvalidStateError:  # it ended while the request was being written
            raise Unavailable("the other worker hung up") from None
        except grpc.aio.AioRpcError as error:
            raise told(error) from None
        finally:
            call.cancel()

    async def _next(self, call: Any, limit_s: float) -> bytes:
        try:
            async with asyncio.timeout(limit_s):
                message = await call.read()
        except TimeoutError:
            raise Unavailable(f"another worker sent nothing for {limit_s:g} s") from None
        if message is grpc.aio.EOF:
            raise Unavailable("another worker's stream ended early")
        return bytes(message)

    def _request(self, greeting: bytes, digest: Digest, payload_bytes: int, offset: int) -> bytes:
        try:
            nonce = pb.PeerGreeting.FromString(greeting).nonce
        except DecodeError as error:
            raise MalformedMessage("another worker's greeting is none") from error
        if len(nonce) != NONCE_BYTES:
            raise MalformedMessage(f"another worker's nonce has {len(nonce)} bytes, expected {NONCE_BYTES}")
        request = pb.TakeRequest(
            digest=bytes.fromhex(digest),
            payload_bytes=payload_bytes,
            offset=offset,
            proof=prove(self._identity, nonce, self.name, digest, offset),
        )
        if self.ticket is not None:
            fill(request.ticket, self.ticket, Ticket)
        return request.SerializeToString()


def _channel(target: str, certificate: bytes) -> grpc.aio.Channel:
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
    credentials = grpc.ssl_channel_credentials(root_certificates=pem)
    # A holder's certificates are made as a coordinator's are, for the same name; the one above is nobody else's.
    options = [*peer_channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    return grpc.aio.secure_channel(target, credentials, options=options)


def may_dial(host: str, beside: str) -> bool:
    """Whether `host`, a literal address that a coordinator reached at `beside` names, is one to connect to.

    A coordinator out in the world has no business sending a volunteer's machine round its own home network.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_multicast or address.is_unspecified:
        return False
    return address.is_global or _is_near(beside)


def _is_near(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal", ".home.arpa"))
