"""A worker's side of the wire: typed, signed calls over one gRPC channel, each with a deadline.

Decides how a failed call is named (protocol/errors.py) and when it is tried again: `Unavailable` is retried with full
jitter (AWS Architecture Blog, "Exponential Backoff and Jitter", 2015) under the same request id and a new counter;
nothing else is. A refusal is final only where the coordinator says so, never by its status. Touches the network, and
the files that downloads are written to.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_never, wait_random_exponential

from protocol.causes import CAUSE_KEY, Cause, cause_named
from protocol.errors import (
    FINAL_TRAILER,
    BrokeDown,
    DigestMismatch,
    FinalRefusal,
    MalformedMessage,
    Refused,
    RemoteError,
    Unauthenticated,
    Unavailable,
)
from protocol.framing import FrameReader, frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.joinlink import JoinLink
from protocol.limits import (
    CALL_TIMEOUT_S,
    MAX_CALL_S,
    MAX_WAIT_S,
    PROTOCOL_VERSION,
    STALL_TIMEOUT_S,
    channel_options,
    transfer_deadline_s,
)
from protocol.signing import SESSION_ID_BYTES, CallSigner, new_request_id
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb
from worker.lease import printable
from worker.trouble import transport_cause


class SessionEnded(Unauthenticated):
    """The coordinator does not take this call's signature: the session is not open (any more)."""


SERVICE = "/barnraise.protocol.v1.Coordinator/"
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
_READ_BYTES = 1 << 20

log = structlog.get_logger()
Reply = TypeVar("Reply", bound=Message)

_BLAME: dict[grpc.StatusCode, type[RemoteError]] = {
    grpc.StatusCode.UNAUTHENTICATED: SessionEnded,
    grpc.StatusCode.INVALID_ARGUMENT: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.NOT_FOUND: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.OUT_OF_RANGE: Refused,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.DATA_LOSS: DigestMismatch,
    grpc.StatusCode.INTERNAL: BrokeDown,
    grpc.StatusCode.UNKNOWN: BrokeDown,
}
"""Every other status (no connection, deadline, overload) may pass: `Unavailable`."""


def error_of(call: str, error: grpc.aio.AioRpcError) -> RemoteError:
    """What a gRPC status means here: the coordinator's own word for it, or what can be told from gRPC's."""
    details = printable(error.details() or error.code().name)
    marks = tuple(error.trailing_metadata() or ())
    cause = cause_named(dict(marks).get(CAUSE_KEY)) or transport_cause(error.code().name, details)
    kind = FinalRefusal if FINAL_TRAILER in marks else _BLAME.get(error.code(), Unavailable)
    return kind(f"{call}: {details}", cause=cause)


class CoordinatorClient:
    """One channel to one coordinator. `open_session` starts a session; later calls are signed within it."""

    def __init__(
        self,
        link: JoinLink,
        ca_pem: bytes,
        identity: PrivateIdentity,
        *,
        on_trouble: Callable[[Exception, float], None] = lambda _error, _pause_s: None,
        first_backoff_s: float = FIRST_BACKOFF_S,
        max_backoff_s: float = MAX_BACKOFF_S,
        stall_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._link = link
        self._ca_pem = ca_pem
        self._identity = identity
        self._on_trouble = on_trouble
        self._stall_s = stall_s
        self._wait = wait_random_exponential(multiplier=first_backoff_s, max=max_backoff_s)
        self._audience = bytes.fromhex(link.fingerprint)
        self._signer = CallSigner(identity, audience=self._audience)
        self._channel: grpc.aio.Channel | None = None

    def connect(self) -> None:
        """Make the channel. gRPC dials on the first call, and again whenever the connection is lost."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self._ca_pem)
        # The CA certifies this one coordinator only, under whatever address the volunteer reaches it.
        options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        self._channel = grpc.aio.secure_channel(self._link.target, credentials, options=options)

    async def close(self) -> None:
        """Close the channel and end calls that are under way."""
        if self._channel is not None:
            await self._channel.close(grace=None)
            self._channel = None

    def retrying(self, *, unless: tuple[type[Unavailable], ...] = ()) -> AsyncRetrying:
        """Try as long as it takes: a coordinator that is down today may be up tomorrow. Leaving cancels the task."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Unavailable) and not isinstance(error, unless)),
            wait=self._wait,
            stop=stop_never,
            before_sleep=self._tell_trouble,
            reraise=True,
        )

    def _tell_trouble(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Exception):
            self._on_trouble(error, state.next_action.sleep if state.next_action else 0.0)

    # ---- unary calls --------------------------------------------------------------------------------------------

    async def enrol(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        """Redeem the invite."""
        signer = CallSigner(self._identity, audience=self._audience)
        return await self.retrying()(
            self._call, "Enrol", request, pb.EnrolReply, signer, CALL_TIMEOUT_S, new_request_id()
        )

    async def open_session(self, capability: pb.Capability) -> pb.OpenSessionReply:
        """Open a session and sign with it from now on."""
        signer = CallSigner(self._identity, audience=self._audience)

        async def once() -> pb.OpenSessionReply:
            # A nonce opens one session only, so a try whose reply was lost cannot be repeated to the letter.
            request = pb.OpenSessionRequest(
                protocol_version=PROTOCOL_VERSION,
                public_key=self._identity.public_key,
                nonce=secrets.token_bytes(16),
                capability=capability,
            )
            return await self._call("OpenSession", request, pb.OpenSessionReply, signer, CALL_TIMEOUT_S, None)

        reply: pb.OpenSessionReply = await self.retrying()(once)
        if len(reply.session_id) != SESSION_ID_BYTES:
            raise MalformedMessage(
                f"OpenSession: a session id has {SESSION_ID_BYTES} bytes, got {len(reply.session_id)}"
            )
        self._signer = CallSigner(self._identity, reply.session_id, audience=self._audience)
        return reply

    async def acquire_lease(self, wait_s: float) -> pb.AcquireLeaseReply:
        """Ask for work; the coordinator may hold the call for `wait_s`."""
        wait_s = min(wait_s, MAX_WAIT_S)
        request = pb.AcquireLeaseRequest(wait_s=wait_s)
        return await self._retried("AcquireLease", request, pb.AcquireLeaseReply, CALL_TIMEOUT_S + wait_s)

    async def return_lease(self, lease_id: str, reason: str) -> None:
        """Hand a lease back."""
        request = pb.ReturnLeaseRequest(lease_id=lease_id, reason=reason[:400])
        await self._retried("ReturnLease", request, pb.ReturnLeaseReply)

    async def heartbeat(self, request: pb.HeartbeatRequest, timeout_s: float) -> pb.HeartbeatReply:
        """One heartbeat, tried once: the next one says more."""
        return await self._call("Heartbeat", request, pb.HeartbeatReply, self._signer, timeout_s, None)

    async def commit_submission(self, request: pb.CommitSubmissionRequest) -> pb.CommitSubmissionReply:
        """Commit to a digest. A coordinator that fails on this one is not asked again here: there is other work."""
        retrying = self.retrying(unless=(BrokeDown,))
        return await retrying(
            self._call,
            "CommitSubmission",
            request,
            pb.CommitSubmissionReply,
            self._signer,
            CALL_TIMEOUT_S,
            new_request_id(),
        )

    async def get_manifest(self, version: int) -> pb.GetManifestReply:
        """The signed manifest of `version`."""
        return await self._retried("GetManifest", pb.GetManifestRequest(version=version), pb.GetManifestReply)

    async def _retried(
        self, name: str, request: Message, reply: type[Reply], timeout_s: float = CALL_TIMEOUT_S
    ) -> Reply:
        return await self.retrying()(self._call, name, request, reply, self._signer, timeout_s, new_request_id())

    async def _call(
        self,
        name: str,
        request: Message,
        reply: type[Reply],
        signer: CallSigner,
        timeout_s: float,
        request_id: bytes | None,
    ) -> Reply:
        body = request.SerializeToString()
        call = self._connected().unary_unary(SERVICE + name, None, None)
        metadata = signer.metadata(SERVICE + name, body, request_id)
        try:
            answer = await call(body, timeout=min(timeout_s, MAX_CALL_S), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of(name, error) from None
        try:
            return reply.FromString(answer)
        except DecodeError as error:
            raise MalformedMessage(f"{name}: the reply is not a {reply.DESCRIPTOR.name}") from error

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise Unavailable("not connected")
        return self._channel

    # ---- streams ------------------------------------------------------------------------------------------------

    async def upload(self, header: pb.UploadHeader, payload: Path, on_bytes: Callable[[int], None]) -> pb.UploadReply:
        """Send the bytes of `payload` from the header's offset on. Tried once: a resume starts by committing again."""
        body = header.SerializeToString()
        frames_sent = 0

        async def messages() -> AsyncIterator[bytes]:
            yield body
            with payload.open("rb") as file:

                def read(offset: int, length: int) -> bytes:
                    file.seek(offset)
                    return file.read(length)

                for frame in frames_of(read, header.payload_bytes, header.offset):
                    yield frame
                    nonlocal frames_sent
                    frames_sent += 1
                    on_bytes(len(frame))

        call = self._connected().stream_unary(SERVICE + "Upload", None, None)
        metadata = self._signer.metadata(SERVICE + "Upload", body)
        timeout_s = transfer_deadline_s(header.payload_bytes)
        try:
            sending = call(messages(), timeout=timeout_s, metadata=metadata)
            return pb.UploadReply.FromString(await self._unless_stalled(sending, lambda: frames_sent))
        except asyncio.CancelledError:
            # gRPC cancels the call, and so whoever awaits it, when the message iterator raises (the file is gone, say).
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable("Upload: the payload could not be read to its end", cause=Cause.BROKEN_OFF) from None
        except grpc.aio.AioRpcError as error:
            raise error_of("Upload", error) from None
        except DecodeError as error:
            raise MalformedMessage("Upload: the reply is not an UploadReply") from error

    async def _unless_stalled(self, sending: Any, frames_sent: Callable[[], int]) -> bytes:
        """The answer to an upload, as long as frames leave, or the last has left only just now."""

        async def answered() -> bytes:
            return bytes(await sending)

        # Watched from beside it: the iterator that gRPC takes frames from cannot tell that it takes none.
        answer = asyncio.ensure_future(answered())
        try:
            while True:
                before = frames_sent()
                done, _ = await asyncio.wait({answer}, timeout=self._stall_s)
                if done:
                    return answer.result()
                if frames_sent() == before:
                    raise Unavailable(f"Upload: nothing was taken for {self._stall_s:g} s", cause=Cause.NO_ANSWER)
        finally:
            sending.cancel()

    async def download_block(
        self, digest: Digest, payload_bytes: int, target: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Write the block into `target`, going on where an earlier download broke off, and check its digest."""
        await self.retrying()(self._download_block_once, digest, payload_bytes, target, on_bytes)

    async def _download_block_once(
        self, digest: Digest, payload_bytes: int, target: Path, on_bytes: Callable[[int], None]
    ) -> None:
        hasher, offset = _hash_prefix(target, payload_bytes)
        reader = FrameReader(payload_bytes, digest, offset, hasher)
        request = pb.DownloadRequest(block_digest=bytes.fromhex(digest), offset=offset)
        try:
            with target.open("ab") as file:
                async for frame in self._frames(request, payload_bytes):
                    file.write(reader.feed(frame))
                    on_bytes(len(frame))
            if not reader.complete:
                raise Unavailable(
                    f"Download: block {digest[:12]}… broke off at byte {reader.offset} of {payload_bytes}",
                    cause=Cause.BROKEN_OFF,
                )
            reader.finish()
        except (DigestMismatch, MalformedMessage):
            target.unlink(missing_ok=True)  # noqa: ASYNC240  # a local unlink is shorter than a thread's start
            raise

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
        """The payload with the lease's sequences; small, so it is not resumed but fetched anew."""

        async def once() -> bytes:
            payload = bytearray()
            # The shape is leased, not the size to the byte nor a digest: TLS vouches, `decode_sequences` checks.
            reader = FrameReader(max_bytes, Digest(""))
            async for frame in self._frames(pb.DownloadRequest(lease_data=lease_id), max_bytes):
                payload += reader.feed(frame)
                on_bytes(len(frame))
            return bytes(payload)

        return await self.retrying()(once)

    async def _frames(self, request: pb.DownloadRequest, payload_bytes: int) -> AsyncIterator[bytes]:
        body = request.SerializeToString()
        call = self._connected().unary_stream(SERVICE + "Download", None, None)
        metadata = self._signer.metadata(SERVICE + "Download", body)
        frames = call(body, timeout=transfer_deadline_s(payload_bytes), metadata=metadata)
        try:
            while (frame := await asyncio.wait_for(frames.read(), self._stall_s)) is not grpc.aio.EOF:
                yield frame
        except TimeoutError:
            raise Unavailable(f"Download: nothing came for {self._stall_s:g} s", cause=Cause.NO_ANSWER) from None
        except grpc.aio.AioRpcError as error:
            raise error_of("Download", error) from None
        finally:
            frames.cancel()  # whoever stops reading early, over a bad frame say, must not go on being sent to


def _hash_prefix(path: Path, limit_bytes: int) -> tuple[Any, int]:
    """SHA-256 over the bytes an earlier download left in `path`, and how many; too many are thrown away."""
    hasher = hashlib.sha256()
    if not path.is_file():
        return hasher, 0
    if path.stat().st_size > limit_bytes:
        path.unlink()
        return hasher, 0
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher, path.stat().st_size
