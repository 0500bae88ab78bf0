"""Raw gRPC handlers: bytes in, checked, answered, bytes out; errors become a status with a sentence.

Decides which status an error is. Handlers have identity (de)serializers, because signatures are over raw bytes and
tensors are not protobuf. Every message is counted, every caller limited (throttle.py), nothing waited for
without end (patience.py). What is not one of our errors is logged whole and told in part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from coordinator.edge.auth import Authenticator
from coordinator.edge.patience import Patience
from coordinator.edge.sessions import CallerSession
from coordinator.edge.throttle import Release, Throttle, address_of, host_of
from coordinator.run.traffic import Traffic
from protocol.causes import CAUSE_KEY, Cause
from protocol.errors import (
    FINAL_TRAILER,
    BarnraiseError,
    ConfigError,
    DigestMismatch,
    FinalRefusal,
    IllegalEvent,
    MalformedMessage,
    RateLimited,
    Refused,
    StorageTrouble,
    TooSlow,
    Unauthenticated,
    Unavailable,
)
from protocol.limits import most_time_left_s
from protocol.text import printable

MAX_DETAIL_CHARACTERS = 600
"""A status travels in metadata, whose size is bounded; percent-encoding can triple it."""

ABORT_S = 2.0
"""For a refusal to leave; somebody who takes no answers takes no refusal either."""

_log = structlog.get_logger(__name__)

Request = TypeVar("Request", bound=Message)
Context = Any  # grpc.aio.ServicerContext; grpc ships no types
Handler = Any

_STATUS: tuple[tuple[type[BarnraiseError], grpc.StatusCode], ...] = (
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (MalformedMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (DigestMismatch, grpc.StatusCode.DATA_LOSS),
    (RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooSlow, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (StorageTrouble, grpc.StatusCode.UNAVAILABLE),
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


def cause_of(error: BarnraiseError) -> Cause:
    """The word that goes with it, by which the worker chooses what its volunteer reads."""
    if error.cause is not None:
        return error.cause
    if isinstance(error, StorageTrouble):
        return Cause.OUT_OF_STORAGE
    if isinstance(error, Unavailable):
        return Cause.NO_ANSWER if isinstance(error, TooSlow) else Cause.OVERLOADED
    return Cause.FAILED if status_of(error) is grpc.StatusCode.INTERNAL else Cause.REFUSED


def trailers_of(error: BarnraiseError) -> tuple[tuple[str, str], ...]:
    """What goes with the status: the cause, and whether asking again could ever change the answer."""
    final = isinstance(error, FinalRefusal | DigestMismatch)
    return ((CAUSE_KEY, cause_of(error).value), *((FINAL_TRAILER,) if final else ()))


class Endpoint:
    """Makes handlers that authenticate, limit, count and map errors.

    Every method is served as a stream of messages both ways, which on the wire is what a unary call is too: so that a
    request that trickles in and an answer that nobody takes are ours to break off.
    """

    def __init__(
        self,
        service: str,
        auth: Authenticator,
        traffic: Traffic,
        throttle: Throttle,
        on_alive: Callable[[CallerSession], None] = lambda _: None,
        gate: Callable[[], None] = lambda: None,
    ) -> None:
        """`gate` raises where nobody is answered any more."""
        self._service = service
        self._auth = auth
        self._traffic = traffic
        self._throttle = throttle
        self._on_alive = on_alive
        self._gate = gate

    def anonymous(
        self, name: str, kind: type[Request], answer: Callable[[Request], Awaitable[Message]]
    ) -> tuple[str, Handler]:
        """A unary call that anybody may make, signed or not."""

        async def handle(call: ServedCall) -> bytes:
            return (await answer(parse(kind, await call.opening()))).SerializeToString()

        return name, self._unary(name, handle, deadline=False)

    def keyed(
        self, name: str, kind: type[Request], answer: Callable[[Request, str], Awaitable[Message]]
    ) -> tuple[str, Handler]:
        """A unary call that carries its own public key and needs no session; `answer` hears the caller's address."""
        method = self._method(name)

        async def handle(call: ServedCall) -> bytes:
            self._throttle.registration(call.address)
            body = await call.opening()
            request = parse(kind, body)
            self._auth.check_key(call.metadata, method, body, request.public_key)  # type: ignore[attr-defined]
            return (await answer(request, call.address)).SerializeToString()

        return name, self._unary(name, handle)

    def unary(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[CallerSession, Request], Awaitable[Message]],
        *,
        operator: bool = False,
        remember: bool = False,
    ) -> tuple[str, Handler]:
        """A unary call in a session. `remember`: a repeated request id gets the first answer again."""
        method = self._method(name)

        async def handle(call: ServedCall) -> bytes:
            body = await call.opening()
            session, signed = self._auth.session_call(call.metadata, method, body)
            self._admit(session, operator)
            session.host = call.host
            if not operator:
                self._throttle.worker_call(session.worker)
            key = (method, signed.request_id.hex())
            if remember and key in session.replies:
                return session.replies[key]
            reply = (await answer(session, parse(kind, body))).SerializeToString()
            if remember:
                session.remember(*key, reply)
            return reply

        return name, self._unary(name, handle)

    def upload(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[CallerSession, Request, AsyncIterator[bytes], Patience], Awaitable[Message]],
    ) -> tuple[str, Handler]:
        """A stream of a signed header and raw frames, answered once."""
        method = self._method(name)

        async def handle(call: ServedCall) -> None:
            header = await call.opening()
            session, _ = self._auth.session_call(call.metadata, method, header)
            self._admit(session, operator=False)
            call.at_end(self._throttle.stream(session.worker))
            reply = await answer(session, parse(kind, header), call.messages, call.patience("this upload"))
            await call.write(reply.SerializeToString())

        return name, self._handler(name, handle, longest_s=self._throttle.limits.transfer_s)

    def download(
        self,
        name: str,
        kind: type[Request],
        answer: Callable[[CallerSession, Request], AsyncGenerator[bytes, None]],
    ) -> tuple[str, Handler]:
        """A signed request, answered by raw frames."""
        method = self._method(name)

        async def handle(call: ServedCall) -> None:
            body = await call.opening()
            session, _ = self._auth.session_call(call.metadata, method, body)
            self._admit(session, operator=False)
            call.at_end(self._throttle.stream(session.worker))
            patience = call.patience("this download")
            async with aclosing(answer(session, parse(kind, body))) as frames:
                async for frame in frames:
                    await call.write(frame, patience)

        return name, self._handler(name, handle, longest_s=self._throttle.limits.transfer_s)

    def _admit(self, session: CallerSession, operator: bool) -> None:
        if session.is_operator != operator:
            raise Unauthenticated(f"this call is for {'the operator' if operator else 'workers'} only")
        if not operator:
            self._on_alive(session)

    def _method(self, name: str) -> str:
        return f"/{self._service}/{name}"

    def _unary(self, name: str, handle: Callable[[ServedCall], Awaitable[bytes]], *, deadline: bool = True) -> Handler:
        async def exchange(call: ServedCall) -> None:
            await call.write(await handle(call))

        return self._handler(name, exchange, longest_s=self._throttle.limits.call_deadline_s if deadline else None)

    def _handler(
        self, name: str, handle: Callable[[ServedCall], Awaitable[None]], *, longest_s: float | None
    ) -> Handler:
        method = self._method(name)

        async def guarded(messages: AsyncIterator[bytes], context: Context) -> None:
            self._traffic.calls += 1
            call = ServedCall(method, messages, context, self._throttle, self._traffic)
            try:
                self._gate()
                call.at_end(self._throttle.call(call.address))
                call.check_deadline(longest_s)
                await handle(call)
            except BarnraiseError as error:
                self._log_refusal(method, error, call.address)
                await _abort(context, status_of(error), str(error), trailers_of(error))
            except asyncio.CancelledError:
                raise
            except Exception:
                self._traffic.refused_calls += 1
                _log.exception("call_failed", method=method)
                await _abort(
                    context,
                    grpc.StatusCode.INTERNAL,
                    "the coordinator failed on this call; its operator finds why in the log",
                    ((CAUSE_KEY, Cause.FAILED.value),),
                )

        return grpc.stream_stream_rpc_method_handler(guarded)

    def _log_refusal(self, method: str, error: BarnraiseError, address: str) -> None:
        self._traffic.refused_calls += 1
        status = status_of(error)
        internal = status is grpc.StatusCode.INTERNAL
        if not internal and not self._throttle.may_log():
            return
        fields = {"method": method, "status": status.name, "address": address, "error": printable(str(error))}
        if self._throttle.suppressed_lines:
            fields["not_logged_before"] = str(self._throttle.suppressed_lines)
            self._throttle.suppressed_lines = 0
        (_log.error if internal else _log.info)("call_refused", **fields)


class ServedCall:
    """One call that is under way: what comes in and goes out, counted, and never waited for without end."""

    def __init__(
        self, method: str, messages: AsyncIterator[bytes], context: Context, throttle: Throttle, traffic: Traffic
    ) -> None:
        self._method = method
        self._context = context
        self._throttle = throttle
        self._traffic = traffic
        self._began = False
        self.address, self.host = address_of(context.peer()), host_of(context.peer())
        self.metadata = context.invocation_metadata()
        self.messages = self._counted(messages)

    def check_deadline(self, longest_s: float | None) -> None:
        """A call must say by when its caller gives up; gRPC then frees it, whatever the caller does."""
        if longest_s is None:
            return
        left_s = self._context.time_remaining()
        if left_s is None or left_s > most_time_left_s(longest_s):
            raise MalformedMessage(
                f"{self._method} needs a deadline of at most {longest_s:g} s; set the call's timeout"
            )

    def at_end(self, release: Release) -> None:
        """Call `release` when gRPC has freed the call, which for somebody who takes no answer is at its deadline."""
        self._context.add_done_callback(lambda _: release())

    async def opening(self) -> bytes:
        """The first message."""
        limit_s = self._throttle.limits.opening_s
        try:
            message = await asyncio.wait_for(anext(self.messages, None), limit_s)
        except TimeoutError:
            raise TooSlow(f"{self._method}: the request did not come within {limit_s:g} s; send it again") from None
        if message is None:
            raise MalformedMessage(f"{self._method}: the stream ended before its opening header")
        return message

    async def write(self, message: bytes, patience: Patience | None = None) -> None:
        """Send one message, as fast as the other side takes it."""
        patience = patience or self.patience(f"the answer to {self._method}")
        if not self._began:
            # On its own: with a message that is never taken gRPC would send it twice, and fail to end the call.
            self._began = True
            await self._context.send_initial_metadata(())
        await patience.wait(self._context.write(message))
        patience.moved(len(message))
        self._traffic.bytes_down += len(message)

    def patience(self, what: str) -> Patience:
        """The patience for one transfer, or one answer."""
        patience = Patience(what, self._throttle.limits, self._throttle.clock)
        self.at_end(patience.end)
        return patience

    async def _counted(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            self._traffic.bytes_up += len(message)
            yield message


async def _abort(
    context: Context, status: grpc.StatusCode, sentence: str, trailers: tuple[tuple[str, str], ...] = ()
) -> None:
    try:
        await asyncio.wait_for(context.abort(status, sentence[:MAX_DETAIL_CHARACTERS], trailers), ABORT_S)
    except TimeoutError:
        # It does not read, so it does not hear this either. gRPC frees the call at its deadline.
        raise asyncio.CancelledError from None


def parse(kind: type[Request], body: bytes) -> Request:
    """A protobuf request, or MalformedMessage."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise MalformedMessage(f"the request is not a {kind.__name__}") from error
