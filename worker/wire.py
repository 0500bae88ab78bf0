"""The line to one coordinator, below the typed calls: raw messages with their metadata, over gRPC.

Decides how a failed call is named (protocol/errors.py): the coordinator's own word where there is one. A refusal is
final only where the coordinator says so, never by its status. Touches the network. The deterministic simulation has a
line of its own, with the same errors (`error_told`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Protocol

import grpc

from protocol.bootstrap import fetch_ca
from protocol.causes import CAUSE_KEY, Cause, cause_named
from protocol.errors import (
    FINAL_TRAILER,
    BrokeDown,
    DigestMismatch,
    FinalRefusal,
    Refused,
    RemoteError,
    Unauthenticated,
    Unavailable,
)
from protocol.joinlink import JoinLink
from protocol.limits import channel_options
from protocol.services import COORDINATOR_SERVICE
from protocol.signing import Metadata
from protocol.tls import COORDINATOR_NAME
from worker.lease import printable
from worker.trouble import transport_cause

SERVICE = f"/{COORDINATOR_SERVICE}/"
BOOTSTRAP_TIMEOUT_S = 10.0


class SessionEnded(Unauthenticated):
    """The coordinator does not take this call's signature: the session is not open (any more)."""


_BLAME: dict[str, type[RemoteError]] = {
    "UNAUTHENTICATED": SessionEnded,
    "INVALID_ARGUMENT": Refused,
    "FAILED_PRECONDITION": Refused,
    "PERMISSION_DENIED": Refused,
    "NOT_FOUND": Refused,
    "ALREADY_EXISTS": Refused,
    "OUT_OF_RANGE": Refused,
    "UNIMPLEMENTED": Refused,
    "DATA_LOSS": DigestMismatch,
    "INTERNAL": BrokeDown,
    "UNKNOWN": BrokeDown,
}
"""By gRPC status. Every other status (no connection, deadline, overload) may pass: `Unavailable`."""


_WRITTEN_TOO_LATE = "Internal error from Core"
"""What grpc.aio makes of a refusal that comes while a message is being sent (grpc/grpc#36066)."""


class Wire(Protocol):
    """One line. Every failure is a `RemoteError`; `name` is a method of the coordinator's service."""

    def bootstrap(self, timeout_s: float) -> bytes:
        """PEM of the certificate that the join link names; blocks. As `protocol.bootstrap.fetch_ca`."""

    def connect(self, ca_pem: bytes) -> None:
        """Trust this certificate alone from now on. The line is dialled when it is needed, as often as it is lost."""

    async def close(self) -> None:
        """Hang up: calls that are under way end."""

    async def unary(self, name: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One message there and one back."""

    async def upload(self, name: str, messages: AsyncIterator[bytes], metadata: Metadata, timeout_s: float) -> bytes:
        """Messages there, as fast as they are taken, and one back."""

    def download(self, name: str, body: bytes, metadata: Metadata, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """One message there, messages back. Close the iterator, however far it was read."""


def error_told(call: str, status: str, details: str, trailers: Iterable[tuple[str, str | bytes]] = ()) -> RemoteError:
    """What gRPC `status` means here: the coordinator's own word for it, or what can be told from gRPC's."""
    details = printable(details or status)
    marks = tuple(trailers)
    told = dict(marks).get(CAUSE_KEY)
    cause = cause_named(told if isinstance(told, str) else None) or transport_cause(status, details)
    kind = FinalRefusal if FINAL_TRAILER in marks else _BLAME.get(status, Unavailable)
    return kind(f"{call}: {details}", cause=cause)


class GrpcWire:
    """A gRPC channel over TLS."""

    def __init__(self, link: JoinLink) -> None:
        self._link = link
        self._trusted_pem: bytes | None = None
        self._channel: grpc.aio.Channel | None = None
        self._left: list[grpc.aio.Channel] = []
        """To where the coordinator was: calls that are under way there come to their own end."""

    def bootstrap(self, timeout_s: float) -> bytes:
        """A connection of its own, which sends nothing."""
        return fetch_ca(self._link.host, self._link.port, self._link.fingerprint, timeout_s)

    def connect(self, ca_pem: bytes) -> None:
        """Make the channel; gRPC dials."""
        self._trusted_pem = ca_pem
        credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
        # The CA certifies this one coordinator only, under whatever address the volunteer reaches it.
        options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        self._channel = grpc.aio.secure_channel(self._link.target, credentials, options=options)

    def move(self, link: JoinLink) -> None:
        """The same coordinator is there now: calls from now on go there, under the same certificate."""
        self._link = link
        if self._channel is not None and self._trusted_pem is not None:
            self._left.append(self._channel)
            self.connect(self._trusted_pem)

    async def close(self) -> None:
        """Close the channels."""
        for channel in (*self._left, self._channel):
            if channel is not None:
                await channel.close(grace=None)
        self._left, self._channel = [], None

    async def unary(self, name: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """A unary call with identity serializers."""
        call = self._connected().unary_unary(SERVICE + name, None, None)
        try:
            return bytes(await call(body, timeout=timeout_s, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            raise error_of(name, error) from None

    async def upload(self, name: str, messages: AsyncIterator[bytes], metadata: Metadata, timeout_s: float) -> bytes:
        """A client stream."""
        call = self._connected().stream_unary(SERVICE + name, None, None)
        sending = call(messages, timeout=timeout_s, metadata=metadata)
        try:
            return bytes(await sending)
        except asyncio.CancelledError:
            # gRPC cancels the call, and so whoever awaits it, when the message iterator raises (the file is gone, say).
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable(f"{name}: the payload could not be read to its end", cause=Cause.BROKEN_OFF) from None
        except grpc.aio.AioRpcError as error:
            raise error_of(name, error) from None
        finally:
            sending.cancel()

    async def download(
        self, name: str, body: bytes, metadata: Metadata, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        """A server stream."""
        call = self._connected().unary_stream(SERVICE + name, None, None)
        frames = call(body, timeout=timeout_s, metadata=metadata)
        try:
            while (frame := await frames.read()) is not grpc.aio.EOF:
                yield frame
        except grpc.aio.AioRpcError as error:
            raise error_of(name, error) from None
        finally:
            frames.cancel()  # whoever stops reading early, over a bad frame say, must not go on being sent to

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise Unavailable("not connected")
        return self._channel


def error_of(call: str, error: grpc.aio.AioRpcError) -> RemoteError:
    """As `error_told`, of what gRPC raised; where that hides what the coordinator said, the call is asked for again."""
    if error.details() == _WRITTEN_TOO_LATE:
        return Unavailable(f"{call}: it ended while something was being sent", cause=Cause.BROKEN_OFF)
    return error_told(call, error.code().name, error.details() or "", tuple(error.trailing_metadata() or ()))
