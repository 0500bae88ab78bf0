"""A worker's side of the wire: typed, signed calls over one line, each with a deadline.

Decides when a failed call is tried again: `Unavailable` is retried with full jitter (AWS Architecture Blog,
"Exponential Backoff and Jitter", 2015) under the same request id and a new counter; nothing else is. Touches the
network through its `Wire`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from protocol.causes import Cause
from protocol.errors import BrokeDown, MalformedMessage, Refused, Unavailable
from protocol.framing import FrameReader, Unhashed, frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.joinlink import JoinLink
from protocol.limits import (
    CALL_TIMEOUT_S,
    MAX_CALL_S,
    MAX_WAIT_S,
    PROTOCOL_VERSION,
    STALL_TIMEOUT_S,
    transfer_deadline_s,
)
from protocol.rotation import agree_to_replace
from protocol.signing import SESSION_ID_BYTES, CallSigner, new_request_id
from protocol.v1 import barnraise_pb2 as pb
from protocol.versions import OLDEST_VERSION
from worker.ports import Background, ReadPart
from worker.timing import Timing
from worker.wire import BOOTSTRAP_TIMEOUT_S, SERVICE, GrpcWire, Wire

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0

Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")


class CoordinatorClient:
    """One line to one coordinator. `open_session` starts a session; later calls are signed within it."""

    def __init__(
        self,
        link: JoinLink,
        identity: PrivateIdentity,
        *,
        wire: Wire | None = None,
        timing: Timing | None = None,
        on_trouble: Callable[[Exception, float], None] = lambda _error, _pause_s: None,
        first_backoff_s: float = FIRST_BACKOFF_S,
        max_backoff_s: float = MAX_BACKOFF_S,
        stall_s: float = STALL_TIMEOUT_S,
        frame_bytes: int | None = None,
    ) -> None:
        self._wire = wire or GrpcWire(link)
        self._timing = timing or Timing()
        self._identity = identity
        self._on_trouble = on_trouble
        self._first_backoff_s, self._max_backoff_s = first_backoff_s, max_backoff_s
        self._stall_s, self._frame_bytes = stall_s, frame_bytes
        self._audience = bytes.fromhex(link.fingerprint)
        self._signer = CallSigner(identity, audience=self._audience)
        self._version = PROTOCOL_VERSION

    async def certificate(self, background: Background) -> bytes:
        """PEM of the one certificate that the join link names."""
        return await self.patiently(lambda: background.run(self._wire.bootstrap, BOOTSTRAP_TIMEOUT_S))

    def connect(self, ca_pem: bytes) -> None:
        """Trust this certificate alone."""
        self._wire.connect(ca_pem)

    async def close(self) -> None:
        """Hang up and end calls that are under way."""
        await self._wire.close()

    async def patiently(
        self, step: Callable[[], Awaitable[Result]], *, unless: tuple[type[Unavailable], ...] = ()
    ) -> Result:
        """`step`, until it ends in something else than Unavailable: a coordinator that is down may be up tomorrow.

        Of `unless` nothing is tried again. Leaving cancels the task.
        """
        most_s = self._first_backoff_s
        while True:
            try:
                return await step()
            except Unavailable as error:
                if isinstance(error, unless):
                    raise
                trouble = error
            pause_s = self._timing.draw.uniform(0.0, min(self._max_backoff_s, most_s))
            most_s = min(self._max_backoff_s, 2.0 * most_s)
            self._on_trouble(trouble, pause_s)
            await self._timing.sleep(pause_s)

    # ---- unary calls --------------------------------------------------------------------------------------------

    async def enrol(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        """Redeem the invite."""
        signer = CallSigner(self._identity, audience=self._audience)

        async def ask(version: int) -> pb.EnrolReply:
            request.protocol_version = version
            return await self._retried("Enrol", request, pb.EnrolReply, signer=signer)

        return await self._understood(ask)

    async def open_session(self, capability: pb.Capability, team: str | None = None) -> pb.OpenSessionReply:
        """Open a session and sign with it from now on."""
        signer = CallSigner(self._identity, audience=self._audience)

        async def once(version: int) -> pb.OpenSessionReply:
            # A nonce opens one session only, so a try whose reply was lost cannot be repeated to the letter.
            request = pb.OpenSessionRequest(
                protocol_version=version,
                public_key=self._identity.public_key,
                nonce=secrets.token_bytes(16),
                capability=capability,
                team=team,
            )
            return await self._call("OpenSession", request, pb.OpenSessionReply, signer, CALL_TIMEOUT_S, None)

        reply = await self._understood(lambda version: self.patiently(partial(once, version)))
        if reply.protocol_version not in {0, self._version}:
            raise MalformedMessage(
                f"OpenSession: asked in version {self._version}, answered in {reply.protocol_version}"
            )
        if len(reply.session_id) != SESSION_ID_BYTES:
            raise MalformedMessage(
                f"OpenSession: a session id has {SESSION_ID_BYTES} bytes, got {len(reply.session_id)}"
            )
        self._signer = CallSigner(self._identity, reply.session_id, audience=self._audience)
        return reply

    async def _understood(self, ask: Callable[[int], Awaitable[Reply]]) -> Reply:
        """The answer in the newest version that both speak; a coordinator of the release before knows one less."""
        try:
            return await ask(self._version)
        except Refused as error:
            if error.cause is not Cause.OTHER_VERSION or self._version <= OLDEST_VERSION:
                raise
            try:
                reply = await ask(self._version - 1)
            except Refused:
                raise error from None  # it is not that: what it said of the newest is what counts
            self._version -= 1
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
        return await self._retried("CommitSubmission", request, pb.CommitSubmissionReply, unless=(BrokeDown,))

    async def get_manifest(self, version: int) -> pb.GetManifestReply:
        """The signed manifest of `version`."""
        return await self._retried("GetManifest", pb.GetManifestRequest(version=version), pb.GetManifestReply)

    async def ask_audit(self, lease_id: str) -> pb.AskAuditReply:
        """Ask that work be computed again; in no session, and tried once: a person is waiting."""
        request = pb.AskAuditRequest(public_key=self._identity.public_key, lease_id=lease_id)
        signer = CallSigner(self._identity, audience=self._audience)
        return await self._call("AskAudit", request, pb.AskAuditReply, signer, CALL_TIMEOUT_S, None)

    async def list_receipts(self, after: int) -> pb.ListReceiptsReply:
        """This worker's receipts after that number, tried once: whoever misses them asks again later."""
        request = pb.ListReceiptsRequest(after=after)
        return await self._call("ListReceipts", request, pb.ListReceiptsReply, self._signer, CALL_TIMEOUT_S, None)

    async def leave(self, *, forget: bool, revoke: bool) -> None:
        """Take part no more; in no session, and tried once: a person is waiting."""
        request = pb.LeaveRequest(
            public_key=self._identity.public_key, nonce=secrets.token_bytes(16), forget=forget, revoke=revoke
        )
        signer = CallSigner(self._identity, audience=self._audience)
        await self._call("Leave", request, pb.LeaveReply, signer, CALL_TIMEOUT_S, None)

    async def rotate_key(self, new: PrivateIdentity) -> pb.RotateKeyReply:
        """Have `new` take this key's place; likewise."""
        request = pb.RotateKeyRequest(
            public_key=self._identity.public_key,
            nonce=secrets.token_bytes(16),
            new_public_key=new.public_key,
            new_signature=agree_to_replace(new, self._identity.public_key, self._audience),
        )
        signer = CallSigner(self._identity, audience=self._audience)
        return await self._call("RotateKey", request, pb.RotateKeyReply, signer, CALL_TIMEOUT_S, None)

    async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
        """Who has what; what is told in it may be told again."""
        return await self._retried("Sources", request, pb.SourcesReply)

    async def archive(self, request: pb.ArchiveRequest) -> pb.ArchiveReply:
        """What is to be kept whole."""
        return await self._retried("Archive", request, pb.ArchiveReply)

    async def answer_measure(self, request: pb.AnswerMeasureRequest) -> pb.AnswerMeasureReply:
        """What measuring an item came to."""
        return await self._retried("AnswerMeasure", request, pb.AnswerMeasureReply)

    async def _retried(
        self,
        name: str,
        request: Message,
        reply: type[Reply],
        timeout_s: float = CALL_TIMEOUT_S,
        *,
        signer: CallSigner | None = None,
        unless: tuple[type[Unavailable], ...] = (),
    ) -> Reply:
        signed_by, request_id = signer or self._signer, new_request_id()
        return await self.patiently(
            lambda: self._call(name, request, reply, signed_by, timeout_s, request_id), unless=unless
        )

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
        metadata = signer.metadata(SERVICE + name, body, request_id)
        answer = await self._wire.unary(name, body, metadata, min(timeout_s, MAX_CALL_S))
        try:
            return reply.FromString(answer)
        except DecodeError as error:
            raise MalformedMessage(f"{name}: the reply is not a {reply.DESCRIPTOR.name}") from error

    # ---- streams ------------------------------------------------------------------------------------------------

    async def upload(self, header: pb.UploadHeader, read: ReadPart, on_bytes: Callable[[int], None]) -> pb.UploadReply:
        """Send what `read` gives, from the header's offset on. Tried once: a resume begins with a commit."""
        body, frames_sent = header.SerializeToString(), 0

        async def messages() -> AsyncIterator[bytes]:
            yield body
            for frame in frames_of(read, header.payload_bytes, header.offset, self._frame_bytes):
                yield frame
                nonlocal frames_sent
                frames_sent += 1
                on_bytes(len(frame))

        metadata = self._signer.metadata(SERVICE + "Upload", body)
        sending = self._wire.upload("Upload", messages(), metadata, transfer_deadline_s(header.payload_bytes))
        try:
            return pb.UploadReply.FromString(await self._unless_stalled(sending, lambda: frames_sent))
        except DecodeError as error:
            raise MalformedMessage("Upload: the reply is not an UploadReply") from error

    async def _unless_stalled(self, sending: Coroutine[Any, Any, bytes], frames_sent: Callable[[], int]) -> bytes:
        """The answer to an upload, as long as frames leave, or the last has left only just now."""
        # Watched from beside it: the iterator that gRPC takes frames from cannot tell that it takes none.
        answer = asyncio.ensure_future(sending)
        try:
            while True:
                before = frames_sent()
                done, _ = await asyncio.wait({answer}, timeout=self._stall_s)
                if done:
                    return answer.result()
                if frames_sent() == before:
                    raise Unavailable(f"Upload: nothing was taken for {self._stall_s:g} s", cause=Cause.NO_ANSWER)
        finally:
            answer.cancel()

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """As a `BlockSource`: the coordinator's frames, unpacked."""
        reader = FrameReader(payload_bytes, digest, offset, Unhashed(), frame_bytes=self._frame_bytes)
        request = pb.DownloadRequest(block_digest=bytes.fromhex(digest), offset=offset)
        async with aclosing(self._frames(request, payload_bytes)) as frames:
            async for frame in frames:
                yield reader.feed(frame)

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
        """The payload with the lease's sequences; small, so it is not resumed but fetched anew."""
        # The shape is leased, not the size to the byte nor a digest: TLS vouches, `decode_sequences` checks.
        return await self._whole(pb.DownloadRequest(lease_data=lease_id), max_bytes, None, on_bytes)

    async def download_measure_data(self, item_id: str, max_bytes: int) -> bytes:
        """The payload with an item's sequences, likewise."""
        return await self._whole(pb.DownloadRequest(measure_data=item_id), max_bytes, None)

    async def download_measure_payload(self, item_id: str, payload_bytes: int, digest: Digest) -> bytes:
        """The submission that an item is about. DigestMismatch where what came is another."""
        return await self._whole(pb.DownloadRequest(measure_payload=item_id), payload_bytes, digest)

    async def _whole(
        self,
        request: pb.DownloadRequest,
        max_bytes: int,
        digest: Digest | None,
        on_bytes: Callable[[int], None] = lambda _count: None,
    ) -> bytes:
        """What comes, at most `max_bytes`; under a digest, exactly so many."""

        async def once() -> bytes:
            payload, hasher = bytearray(), Unhashed() if digest is None else None
            reader = FrameReader(max_bytes, digest or Digest(""), 0, hasher, frame_bytes=self._frame_bytes)
            async with aclosing(self._frames(request, max_bytes)) as frames:
                async for frame in frames:
                    payload += reader.feed(frame)
                    on_bytes(len(frame))
            if digest is not None:
                reader.finish()
            return bytes(payload)

        return await self.patiently(once)

    async def _frames(self, request: pb.DownloadRequest, payload_bytes: int) -> AsyncGenerator[bytes, None]:
        body = request.SerializeToString()
        metadata = self._signer.metadata(SERVICE + "Download", body)
        frames = self._wire.download("Download", body, metadata, transfer_deadline_s(payload_bytes))
        try:
            while True:
                # not `wait_for`: cancelled just after its time was up, it leaves `anext` running, and nothing can close
                async with asyncio.timeout(self._stall_s):
                    frame = await anext(frames, None)
                if frame is None:
                    return
                yield frame
        except TimeoutError:
            raise Unavailable(f"Download: nothing came for {self._stall_s:g} s", cause=Cause.NO_ANSWER) from None
        finally:
            await frames.aclose()
