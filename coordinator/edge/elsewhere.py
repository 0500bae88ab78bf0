"""The line to a coordinator on another machine, for an operator with a key of their own.

Decides how a failed call is told to a person. Always: only the coordinator whose certificate has the fingerprint that
the operator was given is spoken to, and each call is signed, as workers' calls are. Touches the network.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from coordinator.edge.dialling import OTHER_VERSION, dialled, told
from protocol.causes import Cause
from protocol.errors import ConfigError, MalformedMessage, RemoteError
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import CALL_TIMEOUT_S, PROTOCOL_VERSION
from protocol.services import COORDINATOR_SERVICE, OPERATOR_SERVICE
from protocol.signing import CallSigner
from protocol.v1 import barnraise_pb2 as pb

Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A run whose coordinator is on another machine."""

    link: JoinLink
    """Its address and fingerprint."""
    identity: PrivateIdentity


class RemoteLine:
    """One session of one operator. An asynchronous context manager."""

    def __init__(self, where: Elsewhere) -> None:
        self._link, self._identity = where.link, where.identity
        self._audience = bytes.fromhex(where.link.fingerprint)
        self._signer = CallSigner(where.identity, audience=self._audience)
        self._channel: Any = None

    async def __aenter__(self) -> RemoteLine:
        self._channel = await dialled(self._link)
        try:
            await self._open()
        except BaseException:
            await self._channel.close()
            raise
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._channel.close()

    async def call(self, name: str, request: Message, kind: type[Reply]) -> Reply:
        """One call of the operator's service."""
        return await self._call(f"/{OPERATOR_SERVICE}/{name}", request, kind)

    async def _open(self) -> None:
        request = pb.OpenSessionRequest(
            protocol_version=PROTOCOL_VERSION,
            public_key=self._identity.public_key,
            nonce=secrets.token_bytes(16),
            capability=pb.Capability(device="cpu"),
        )
        reply = await self._call(f"/{COORDINATOR_SERVICE}/OpenSession", request, pb.OpenSessionReply)
        self._signer = CallSigner(self._identity, reply.session_id, audience=self._audience)

    async def _call(self, method: str, request: Message, kind: type[Reply]) -> Reply:
        body = request.SerializeToString()
        asking = self._channel.unary_unary(method)
        try:
            answer = await asking(body, timeout=CALL_TIMEOUT_S, metadata=self._signer.metadata(method, body))
        except grpc.aio.AioRpcError as error:
            raise self._told(error) from None
        try:
            return kind.FromString(bytes(answer))
        except DecodeError as error:
            raise MalformedMessage(f"the answer is not a {kind.DESCRIPTOR.name}: {OTHER_VERSION}") from error

    def _told(self, error: grpc.aio.AioRpcError) -> RemoteError | ConfigError:
        found = told(error, f"at {self._link.address}")
        if found.cause is Cause.NOT_ENROLLED:
            return ConfigError(
                f"the coordinator at {self._link.address} does not know this key: on its machine, `barnraise "
                f"coordinator operator-key add RUN NAME {self._identity.public_key.hex()}` lets it in"
            )
        return found
