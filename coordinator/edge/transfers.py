"""Tensor bytes and lease data, as raw frames on streams that can be taken up again after a break.

Decides what may be sent and fetched: an upload only for a commitment of the same worker, a download only of a block
that is kept or of the caller's own lease data. Always: a payload counts only when its digest holds and it is durable,
and is refused for good when it came in one stream and does not; of two uploads for one lease the newer goes on and the
older ends.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, BinaryIO

import structlog

from coordinator.edge.patience import Patience
from coordinator.edge.residuals import residual_bytes
from coordinator.edge.served import RunContext
from coordinator.edge.service import WorkerService, digest_from
from coordinator.edge.sessions import CallerSession
from coordinator.edge.upload_writer import UploadWriter
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.stages import told_to_worker
from coordinator.store.ports import Upload
from protocol.errors import DigestMismatch, MalformedMessage, Refused, Unavailable
from protocol.file_frames import FileFrames, opened
from protocol.framing import FrameReader, frames_of
from protocol.ids import Digest, LeaseId
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES
from protocol.sequences import encode_sequences
from protocol.v1 import barnraise_pb2 as pb

ALIVE_EVERY_S = 1.0
"""An upload counts as a sign of life this often: a slow uplink may have no room for heartbeats beside it."""
CACHED_LEASE_DATA = 16

_FramesOf = Callable[[Digest, int], Iterator[bytes]]

_log = structlog.get_logger(__name__)


class _Slot:
    """One upload that is under way."""

    def __init__(self, lease_id: LeaseId) -> None:
        self.done = asyncio.Event()
        self._lease_id = lease_id
        self._replaced = False
        self._receiving: asyncio.Task[None] | None = None

    def replace(self) -> None:
        """End it: a newer upload waits for `done`."""
        self._replaced = True
        if self._receiving is not None:
            self._receiving.cancel()

    async def run(self, receiving: Coroutine[Any, Any, None]) -> None:
        """Receive until the end, or until replaced."""
        # In a task of its own: a call whose own task is cancelled leaves its client waiting for an answer.
        self._receiving = asyncio.ensure_future(receiving)
        if self._replaced:
            self._receiving.cancel()
        try:
            await self._receiving
        except asyncio.CancelledError:
            if not self._replaced:
                raise
            raise Unavailable(
                f"upload for lease {self._lease_id} was taken over by a newer one; commit to learn the offset"
            ) from None


class Transfers:
    """Answers Upload and Download."""

    def __init__(self, run: RunContext, service: WorkerService, frame_bytes: int | None = None) -> None:
        self._run = run
        self._frame_bytes = frame_bytes
        self._service = service
        self.measures = service.measures
        self._writer = UploadWriter()
        self._scratch = bytearray(FRAME_HEADER_BYTES + FRAME_BYTES)
        self._uploading: dict[LeaseId, _Slot] = {}
        self._lease_data: OrderedDict[LeaseId, bytes] = OrderedDict()

    async def upload(
        self, session: CallerSession, header: pb.UploadHeader, frames: AsyncIterator[bytes], patience: Patience
    ) -> pb.UploadReply:
        """Take the bytes of a committed submission."""
        opening = self._audited_record(session, header)
        if opening is not None:
            return await self._open(session, header, opening, frames, patience)
        record = self._committed_record(session, header)
        lease_id, digest = record.lease.lease_id, digest_from(header.digest)
        if record.status is not LeaseStatus.COMMITTED:
            return pb.UploadReply(received_bytes=header.payload_bytes, complete=True)
        if not self._run.store.payloads.has(digest):
            reader = await self._take(session, header, lease_id, digest, frames, patience)
            if not reader.complete:
                return pb.UploadReply(received_bytes=reader.offset, complete=False)
        await self._service.uploaded(session, lease_id, digest)
        return pb.UploadReply(received_bytes=header.payload_bytes, complete=True)

    async def _open(
        self,
        session: CallerSession,
        header: pb.UploadHeader,
        record: LeaseRecord,
        frames: AsyncIterator[bytes],
        patience: Patience,
    ) -> pb.UploadReply:
        """Take a residual that an audit asked for, and was told from which byte on."""
        lease_id, digest = record.lease.lease_id, digest_from(header.digest)
        size = residual_bytes(self._run.layout, record, digest)
        if header.payload_bytes != size or header.offset > size:
            raise MalformedMessage(
                f"a residual for lease {lease_id} has {size} bytes, got one of {header.payload_bytes} from byte "
                f"{header.offset} on"
            )
        if not self._run.store.payloads.has(digest):
            reader = await self._take(session, header, lease_id, digest, frames, patience)
            if not reader.complete:
                return pb.UploadReply(received_bytes=reader.offset, complete=False)
        await self._service.opened(session, lease_id, digest)
        return pb.UploadReply(received_bytes=size, complete=True)

    async def _take(
        self,
        session: CallerSession,
        header: pb.UploadHeader,
        lease_id: LeaseId,
        digest: Digest,
        frames: AsyncIterator[bytes],
        patience: Patience,
    ) -> FrameReader:
        """Write frames until the payload is whole and kept, or the stream ends."""
        slot = await self._take_over(lease_id)
        try:
            upload, reader = await asyncio.to_thread(self._opened_upload, lease_id, header, digest)
            try:
                await slot.run(self._receive(session, lease_id, reader, upload, frames, patience))
                if reader.complete:
                    resumed = header.offset > 0
                    await asyncio.to_thread(self._finish, lease_id, reader, upload, digest, resumed=resumed)
                else:
                    await asyncio.to_thread(upload.sync)
                return reader
            finally:
                upload.close()
        finally:
            slot.done.set()
            if self._uploading.get(lease_id) is slot:
                del self._uploading[lease_id]

    async def _take_over(self, lease_id: LeaseId) -> _Slot:
        """End an older upload for the same lease, whose connection is most likely dead, and take its place."""
        while (older := self._uploading.get(lease_id)) is not None:
            older.replace()
            await older.done.wait()
        slot = self._uploading[lease_id] = _Slot(lease_id)
        return slot

    async def _receive(
        self,
        session: CallerSession,
        lease_id: LeaseId,
        reader: FrameReader,
        upload: Upload,
        frames: AsyncIterator[bytes],
        patience: Patience,
    ) -> None:
        alive_at_s = self._run.run_time()
        while not reader.complete:
            frame = await patience.wait(anext(frames, None))
            if frame is None:
                return
            patience.moved(len(frame))
            if session.closed.is_set():
                raise Unavailable(f"upload for lease {lease_id}: the session was replaced; commit to learn the offset")
            await self._writer.write(upload, reader, frame)
            if self._run.run_time() - alive_at_s >= ALIVE_EVERY_S:
                alive_at_s = self._run.run_time()
                self._service.on_alive(session)

    def _finish(self, lease_id: LeaseId, reader: FrameReader, upload: Upload, digest: Digest, *, resumed: bool) -> None:
        try:
            reader.finish()
        except DigestMismatch as error:
            self._run.store.drop_upload(lease_id, digest)
            if resumed:
                # Its earlier bytes have lain here, perhaps through a power loss: no fault of the worker until what
                # comes in one go is wrong as well.
                raise Unavailable(
                    f"upload for lease {lease_id} is damaged here ({error}): send it from the start"
                ) from None
            raise
        self._run.store.finish_upload(lease_id, upload, digest)

    def _audited_record(self, session: CallerSession, header: pb.UploadHeader) -> LeaseRecord | None:
        """The lease that an audit waits for this residual of; None where the header is about no such thing."""
        record = self._run.pump.engine.state.leases.get(LeaseId(header.lease_id))
        if record is None or record.lease.worker != session.worker or not record.audit_due:
            return None
        return record if digest_from(header.digest) in record.residuals_missing else None

    def _committed_record(self, session: CallerSession, header: pb.UploadHeader) -> LeaseRecord:
        record = self._run.pump.engine.state.leases.get(LeaseId(header.lease_id))
        if record is None or record.lease.worker != session.worker:
            raise Refused(f"lease {header.lease_id[:64]!r} is not one of this worker's; nothing to upload")
        if record.digest != digest_from(header.digest) or record.payload_bytes != header.payload_bytes:
            raise Refused(f"lease {record.lease.lease_id}: commit to this digest and size before the upload")
        if header.offset > header.payload_bytes:
            size = header.payload_bytes
            raise MalformedMessage(f"upload for lease {header.lease_id} begins at byte {header.offset} of {size}")
        if record.status in {LeaseStatus.EXPIRED, LeaseStatus.RETURNED, LeaseStatus.GRANTED}:
            why = told_to_worker(record.ended) if record.ended else "nothing was committed"
            raise Refused(f"lease {record.lease.lease_id} is {record.status}: {why}")
        return record

    async def download(self, session: CallerSession, request: pb.DownloadRequest) -> AsyncGenerator[bytes, None]:
        """Frames of a block, or of the caller's own lease data, from the offset on."""
        if request.WhichOneof("resource") == "block_digest":
            digest = digest_from(request.block_digest)
            beside = self._service.archives.companion(session.worker, digest)
            if beside is not None:
                frames = self._frames_of(beside, request.offset)
            elif self._service.archives.gives(session.worker, digest):
                frames = await self._opened(digest, request.offset, self._kept_frames)
            else:
                frames = await self._opened(digest, request.offset)
        elif request.WhichOneof("resource") == "lease_data":
            payload = await self._data_of(session, LeaseId(request.lease_data))
            frames = self._frames_of(payload, request.offset)
        elif request.WhichOneof("resource") == "measure_data":
            payload = await self.measures.sequences(session.worker, request.measure_data)
            frames = self._frames_of(payload, request.offset)
        elif request.WhichOneof("resource") == "measure_payload":
            command = self.measures.submission(session.worker, request.measure_payload)
            frames = await self._opened(command.digest, request.offset, self._payload_frames)
        else:
            raise MalformedMessage("Download must name a block, a lease or an item")
        if not isinstance(frames, FileFrames):
            for frame in frames:  # of what is in memory
                yield frame
            return
        try:
            while not frames.ended:
                yield await frames.read()
        finally:
            frames.close()

    async def _opened(self, digest: Digest, offset: int, frames: _FramesOf | None = None) -> Iterator[bytes]:
        """A file's frames, a block's as a rule."""
        return await opened(partial(frames or self._block_frames, digest, offset))

    def _block_frames(self, digest: Digest, offset: int) -> Iterator[bytes]:
        blocks = self._run.store.blocks
        if not blocks.has(digest):
            raise Refused(f"block {digest[:16]}… is not kept here; take the manifest of the version that is leased")
        # what the coordinator goes on from lies beside the blocks
        if not self._run.versions.is_served(digest):
            raise Refused(f"block {digest[:16]}… is nobody's to download")
        return FileFrames(blocks.open(digest), offset, self._scratch)

    def _kept_frames(self, digest: Digest, offset: int) -> Iterator[bytes]:
        """Of a file of the version that an archive is to have."""
        if self._run.store.blocks.stat(digest) is None:
            raise Refused(f"file {digest[:16]}… is not kept here any more; ask for what is to be archived now")
        return FileFrames(self._run.store.blocks.open(digest), offset, self._scratch)

    def _payload_frames(self, digest: Digest, offset: int) -> Iterator[bytes]:
        payloads = self._run.store.payloads
        if not payloads.has(digest):  # judged meanwhile, and dropped
            raise Refused(f"submission {digest[:16]}… is not kept here any more; nobody waits for its measuring")
        return self._file_frames(payloads.open(digest), offset)

    def _file_frames(self, file: BinaryIO, offset: int) -> Iterator[bytes]:
        return FileFrames(file, offset, self._scratch)

    def _frames_of(self, payload: bytes, offset: int) -> Iterator[bytes]:
        return frames_of(lambda start, length: payload[start : start + length], len(payload), offset, self._frame_bytes)

    def _opened_upload(self, lease_id: LeaseId, header: pb.UploadHeader, digest: Digest) -> tuple[Upload, FrameReader]:
        upload = self._run.store.open_upload(lease_id, digest, header.offset)
        try:
            reader = FrameReader(header.payload_bytes, digest, upload.received_bytes, frame_bytes=self._frame_bytes)
            for piece in upload.prefix():
                reader.skip(piece)
        except BaseException:
            upload.close()
            raise
        return upload, reader

    async def _data_of(self, session: CallerSession, lease_id: LeaseId) -> bytes:
        record = self._run.pump.engine.state.leases.get(lease_id)
        if record is None or record.lease.worker != session.worker:
            raise Refused(
                f"lease {lease_id[:64]!r} is not one of this worker's; data is served for one's own leases only"
            )
        if record.status not in LIVE_STATUSES and record.status is not LeaseStatus.EXPIRED:
            raise Refused(f"lease {lease_id} is {record.status}; its data is not needed any more")
        payload = self._lease_data.get(lease_id)
        if payload is None:
            payload = await asyncio.to_thread(self._encode, record)
            self._lease_data[lease_id] = payload
            while len(self._lease_data) > CACHED_LEASE_DATA:
                self._lease_data.popitem(last=False)
        return payload

    def _encode(self, record: LeaseRecord) -> bytes:
        data = record.lease.data
        length = self._run.settings.sequence_length
        return encode_sequences(self._run.dataset.sequences(data.seed, data.start, data.count, length))
