"""Raw gRPC handlers: bytes in, checked, answered, bytes out; errors become a status with a sentence.

Decides which status an error is. Handlers have identity (de)serializers, because signatures are over raw bytes and
tensors are not protobuf. Every message is counted. What is not one of our errors is logged whole and told in part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from coordinator.auth import Authenticator
from coordinator.sessions import Session
from coordinator.traffic import Traffic
from protocol.errors import (
    BarnraiseError,
    ConfigError,
    DigestMismatch,
    IllegalEvent,
    MalformedMessage,
    Refused,
    Unauthenticated,
    Unavailable,
)

MAX_DETAIL_CHARACTERS = 600
"""A status travels in metadata, whose size is bounded; percent-encoding can triple it."""

_log = structlog.get_logger(__name__)

Request = TypeVar("Request", bound=Message)
Context = Any  # grpc.aio.ServicerContext; grpc ships no types
Handler = Any

_STATUS: tuple[tuple[type[BarnraiseError], grpc.StatusCode], ...] = (
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (MalformedMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (DigestMismatch, grpc.StatusCode.DATA_LOSS),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (IllegalEvent, grpc.StatusCode.FAILED_PRECONDITION),
)


def status_of(error: BarnraiseError) -> grpc.StatusCode:
    """The gRPC status that tells the caller whom to blame and whether to try again."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.INTERNAL


class Endpoint:
    """Makes handlers that authenticate, count and map errors."""

    def __init__(
        self, service: str, auth: Authenticator, traffic: Traffic, on_alive: Callable[[Session], None]
    ) -> None:
        self._service = service
        self._auth = auth
        self._traffic = traffic
        self._on_alive = on_alive

    def keyed(
        self, name: str, kind: type[Request], answer: Callable[[Request], Awaitable[Message]]
    ) -> tuple[str, Handler]:
        """A unary call that carries its own public key and needs no session."""
        method = self._method(name)

        async def handle(body: bytes, context: Context) -> bytes:
            request = parse(kind, body)
            self._auth.check_key(context.invocation_metadata(), method, body, request.public_key)  # type: ignore[attr-defined]
            return (await answer(request)).SerializeToString()

        return name, grpc.unary_unary_rpc_method_handler(self._unary(method, handle))

    def unary(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[Session, Request], Awaitable[Message]],
        *,
        operator: bool = False,
        remember: bool = False,
    ) -> tuple[str, Handler]:
        """A unary call in a session. `remember`: a repeated request id gets the first answer again."""
        method = self._method(name)

        async def handle(body: bytes, context: Context) -> bytes:
            session, call = self._auth.session_call(context.invocation_metadata(), method, body)
            self._admit(session, operator)
            key = (method, call.request_id.hex())
            if remember and key in session.replies:
                return session.replies[key]
            reply = (await answer(session, parse(kind, body))).SerializeToString()
            if remember:
                session.remember(*key, reply)
            return reply

        return name, grpc.unary_unary_rpc_method_handler(self._unary(method, handle))

    def upload(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[Session, Request, AsyncIterator[bytes]], Awaitable[Message]],
    ) -> tuple[str, Handler]:
        """A stream of a signed header and raw frames, answered once."""
        method = self._method(name)

        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            counted = self._counted(messages)
            header = await anext(counted, None)
            if header is None:
                raise MalformedMessage(f"{name}: the stream ended before its opening header")
            session, _ = self._auth.session_call(context.invocation_metadata(), method, header)
            self._admit(session, operator=False)
            return (await answer(session, parse(kind, header), counted)).SerializeToString()

        return name, grpc.stream_unary_rpc_method_handler(self._unary(method, handle, count_request=False))

    def download(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[Session, Request], AsyncIterator[bytes]],
    ) -> tuple[str, Handler]:
        """A signed request, answered by raw frames."""
        method = self._method(name)

        async def handle(body: bytes, context: Context) -> None:
            self._traffic.bytes_up += len(body)
            session, _ = self._auth.session_call(context.invocation_metadata(), method, body)
            self._admit(session, operator=False)
            async for frame in answer(session, parse(kind, body)):
                await context.write(frame)
                self._traffic.bytes_down += len(frame)

        return name, grpc.unary_stream_rpc_method_handler(self._guarded(method, handle))

    def _admit(self, session: Session, operator: bool) -> None:
        if session.is_operator != operator:
            raise Unauthenticated(f"this call is for {'the operator' if operator else 'workers'} only")
        if not operator:
            self._on_alive(session)

    def _method(self, name: str) -> str:
        return f"/{self._service}/{name}"

    async def _counted(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            self._traffic.bytes_up += len(message)
            yield message

    def _unary(self, method: str, handle: Callable[..., Awaitable[bytes]], *, count_request: bool = True) -> Handler:
        async def counted(request: Any, context: Context) -> bytes:
            if count_request:
                self._traffic.bytes_up += len(request)
            reply = await handle(request, context)
            self._traffic.bytes_down += len(reply)
            return reply

        return self._guarded(method, counted)

    def _guarded(self, method: str, handle: Callable[..., Awaitable[Any]]) -> Handler:
        async def guarded(request: Any, context: Context) -> Any:
            self._traffic.calls += 1
            try:
                return await handle(request, context)
            except BarnraiseError as error:
                status = status_of(error)
                self._traffic.refused_calls += 1
                log = _log.error if status is grpc.StatusCode.INTERNAL else _log.info
                log("call_refused", method=method, status=status.name, error=str(error))
                await context.abort(status, str(error)[:MAX_DETAIL_CHARACTERS])
            except asyncio.CancelledError:
                raise
            except Exception:
                self._traffic.refused_calls += 1
                _log.exception("call_failed", method=method)
                await context.abort(
                    grpc.StatusCode.INTERNAL, "the coordinator failed on this call; its operator finds why in the log"
                )

        return guarded


def parse(kind: type[Request], body: bytes) -> Request:
    """A protobuf request, or MalformedMessage."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise MalformedMessage(f"the request is not a {kind.__name__}") from error
