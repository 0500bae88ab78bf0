"""The worker-facing calls in a session: leases, heartbeats, submissions, manifests.

Decides nothing about rounds: it turns requests into events, waits for the pump, and reads the engine's state for the
answer. Always: what a reply says was accepted is in the journal; every call may be repeated.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

from coordinator.edge.archives import Archives
from coordinator.edge.measures import Measures
from coordinator.edge.residuals import Openings, check_residuals
from coordinator.edge.served import RunContext
from coordinator.edge.sessions import CallerSession
from coordinator.edge.sources import Sources
from coordinator.engine.commands import AnnounceVerdict, Item
from coordinator.engine.events import (
    LeaseRequested,
    LeaseReturned,
    ResidualOpened,
    SubmissionCommitted,
    SubmissionUploaded,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.stages import told_to_worker, verdict_told
from moe.layout import submission_specs
from protocol.arithmetic import MAX_ARITHMETIC_CHARACTERS, is_arithmetic
from protocol.causes import Cause
from protocol.codecs import codec_named
from protocol.errors import FinalRefusal, IllegalEvent, MalformedMessage, Refused, Unauthenticated
from protocol.ids import Digest, LeaseId, WorkerId
from protocol.lease import Lease
from protocol.limits import MAX_WAIT_S
from protocol.manifest import sign_manifest
from protocol.messages import fill
from protocol.tensor_headers import payload_size
from protocol.text import printable
from protocol.v1 import barnraise_pb2 as pb
from protocol.versions import check_version

RETRY_AFTER_S = 0.2
"""A worker that waited a long poll out asks again at once; the pause only keeps a confused one from spinning."""
OPENING = "An audit needs what earlier encodings lost; it is on its way."
MAX_REASON_CHARACTERS = 200

_JUDGED = {LeaseStatus.ACCEPTED, LeaseStatus.REJECTED}


class WorkerService:
    """Answers an enrolled worker's calls."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self.measures = Measures(run)
        self.sources = Sources(run)
        self.archives = Archives(run)
        self._beats: dict[WorkerId, WorkerSeen] = {}
        self._openings = Openings(run.store.upload_offset)
        self._signed: tuple[Digest, pb.GetManifestReply] | None = None
        """The manifest that was asked for last: everybody asks for the same one."""
        self.told_over: set[WorkerId] = set()
        """Workers that have heard that the run is over."""

    def on_alive(self, session: CallerSession) -> None:
        """Any signed call is a sign of life."""
        now_s = self._run.run_time()
        last = self._beats.get(session.worker)
        beat = WorkerSeen(at_s=now_s, worker=session.worker) if last is None else dataclasses.replace(last, at_s=now_s)
        self._run.pump.seen(beat)

    async def acquire_lease(self, session: CallerSession, request: pb.AcquireLeaseRequest) -> pb.AcquireLeaseReply:
        """A lease, now or while the call is held open; or why there is none."""
        run, worker = self._run, session.worker
        # settings change while it is open
        check_version(session.version, run.pump.engine.state.chosen_config.inner, run.settings.column_parts)
        box = run.mailboxes.of(worker)
        reply = pb.AcquireLeaseReply(peers=self.sources.anybody_shares)
        if not run.mailboxes.ended.is_set():
            wait_s = min(max(request.wait_s, 0.0), MAX_WAIT_S) if math.isfinite(request.wait_s) else 0.0
            box.asked.clear()
            wanted = self._openings.wanted(run.pump.engine.state, worker)
            lease, item = (None, None) if wanted else await self._wait_for_lease(session, wait_s)
            if item is not None:
                reply.measure.CopyFrom(self.measures.message(item))
            if lease is not None:
                self._beats[worker] = WorkerSeen(at_s=run.run_time(), worker=worker, lease_id=lease.lease_id)
                reply.lease.CopyFrom(lease_message(lease, run.run_time()))
        if run.mailboxes.ended.is_set():
            self.told_over.add(worker)
            reply.over.reason = run.pump.engine.state.end_reason or "the run has ended"
        elif reply.WhichOneof("outcome") is None:
            wanted = self._openings.wanted(run.pump.engine.state, worker)
            reply.open.extend(self._openings.ask(worker, wanted))
            reply.wait.reason = OPENING if wanted else run.pump.engine.wait_sentence(worker, run.run_time())
            reply.wait.retry_after_s = RETRY_AFTER_S
        reply.verdicts.extend(verdict_message(verdict) for verdict in box.take_verdicts())
        return reply

    async def _wait_for_lease(self, session: CallerSession, wait_s: float) -> tuple[GrantedLease | None, Item | None]:
        """A lease, or, while there is none, something to measure for us."""
        run, box = self._run, self._run.mailboxes.of(session.worker)
        grant, item = box.expect_grant(), run.pump.delegation.expect(session.worker)
        given: Item | None = None
        closed = asyncio.ensure_future(session.closed.wait())
        ended = asyncio.ensure_future(run.mailboxes.ended.wait())
        asked = asyncio.ensure_future(box.asked.wait())
        try:
            await run.pump.submit(LeaseRequested(at_s=run.run_time(), worker=session.worker, wait_s=wait_s))
            waiting: set[asyncio.Future[Any]] = {grant, closed, ended, asked, item}
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise Unauthenticated(
                    "this session has ended: a newer one of the same key, or the coordinator stops; open another",
                    cause=Cause.SESSION_ENDED,
                )
            lease = grant.result() if grant.done() and not grant.cancelled() else None
            given = item.result() if lease is None and item.done() else None
            return lease, given
        finally:
            run.pump.delegation.forget(session.worker, item, taken=given is not None)
            closed.cancel()
            ended.cancel()
            asked.cancel()
            if box.grant is grant:
                box.grant = None

    async def return_lease(self, session: CallerSession, request: pb.ReturnLeaseRequest) -> pb.ReturnLeaseReply:
        """The worker hands a lease back. Again is fine."""
        record = self._lease_of(session, request.lease_id)
        if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
            await self._run.pump.submit(
                LeaseReturned(
                    at_s=self._run.run_time(),
                    worker=session.worker,
                    lease_id=record.lease.lease_id,
                    reason=clean_reason(request.reason),
                )
            )
        return pb.ReturnLeaseReply()

    async def heartbeat(self, session: CallerSession, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        """A sign of life; the answer says which of the worker's leases count no more."""
        run, lease_id = self._run, LeaseId(request.lease_id)
        beat = WorkerSeen(
            at_s=run.run_time(),
            worker=session.worker,
            lease_id=lease_id or None,
            inner_step=request.inner_step,
            train_loss=request.train_loss if math.isfinite(request.train_loss) else None,
            tokens_per_s=request.tokens_per_s if math.isfinite(request.tokens_per_s) else 0.0,
            paused_until_s=_paused_until_s(request, run.run_time()),
        )
        self._beats[session.worker] = beat
        run.pump.seen(beat)
        said = run.pump.engine.state.announcement
        reply = pb.HeartbeatReply(
            latest_version=run.pump.engine.state.version,
            announcement=said.text if said else "",
            archives=self.archives.are_given,
        )
        for held in filter(None, (lease_id, LeaseId(request.sending_lease_id))):
            reason = run.pump.engine.lease_ended(session.worker, held)
            if reason is not None:
                reply.cancelled.add(lease_id=held, reason=reason)
        return reply

    async def commit_submission(
        self, session: CallerSession, request: pb.CommitSubmissionRequest
    ) -> pb.CommitSubmissionReply:
        """The worker commits to a digest; the answer says how many of the bytes are here already.

        What it refuses here it refuses for good: the worker then lets the submission go. Anywhere else, it comes back
        to ask here.
        """
        run, digest = self._run, digest_from(request.digest)
        record = self._lease_of(session, request.lease_id)
        self._check_submission(record.lease, request)
        if record.status not in _JUDGED and not (record.digest == digest and record.status is not LeaseStatus.EXPIRED):
            if run.mailboxes.ended.is_set():
                raise self._over(record.lease.lease_id)
            try:
                await run.pump.submit(self._committed(session, record, request, digest))
            except IllegalEvent as error:
                raise FinalRefusal(str(error)) from error
            record = self._lease_of(session, request.lease_id)
        if record.status is LeaseStatus.COMMITTED and record.digest == digest and run.store.payloads.has(digest):
            # All bytes were durable when an earlier process ended, but their event was not.
            await self.uploaded(session, record.lease.lease_id, digest)
            record = self._lease_of(session, request.lease_id)
        return self._commit_reply(record, digest, request.payload_bytes)

    def _commit_reply(self, record: LeaseRecord, digest: Digest, payload_bytes: int) -> pb.CommitSubmissionReply:
        lease_id = record.lease.lease_id
        if record.verdict is not None:
            outcome = pb.Verdict.ACCEPTED if record.verdict.accepted else pb.Verdict.REJECTED
            verdict = pb.Verdict(lease_id=lease_id, outcome=outcome, reason=verdict_told(record.verdict))
            return pb.CommitSubmissionReply(upload_offset=payload_bytes, verdict=verdict)
        if record.digest != digest or record.status is LeaseStatus.EXPIRED:
            why = told_to_worker(record.ended) if record.ended else "too late"
            raise FinalRefusal(
                f"lease {lease_id} is {record.status} and takes no submission: {why}", cause=Cause.LEASE_ENDED
            )
        if record.status is LeaseStatus.COMMITTED:
            # Never all of it: bytes that are here but not in place (the process ended between the two) count for
            # nothing until an upload finishes them, and a worker with nothing left to send forgets its submission.
            here = self._run.store.upload_offset(lease_id, digest)
            return pb.CommitSubmissionReply(upload_offset=min(here, payload_bytes - 1))
        return pb.CommitSubmissionReply(upload_offset=payload_bytes)

    def _committed(
        self, session: CallerSession, record: LeaseRecord, request: pb.CommitSubmissionRequest, digest: Digest
    ) -> SubmissionCommitted:
        return SubmissionCommitted(
            at_s=self._run.run_time(),
            worker=session.worker,
            lease_id=record.lease.lease_id,
            digest=digest,
            payload_bytes=request.payload_bytes,
            codec=request.codec,
            inner_steps_done=request.inner_steps_done,
            train_loss_first=request.train_loss_first,
            train_loss_last=request.train_loss_last,
            train_s=request.train_s,
            micro_batch=request.micro_batch,
            arithmetic=request.arithmetic,
            residuals_in=tuple(map(Digest, request.residuals_in)),
            residuals_out=tuple(map(Digest, request.residuals_out)),
            residuals_back=tuple(map(Digest, request.residuals_back)),
        )

    async def uploaded(self, session: CallerSession, lease_id: LeaseId, digest: Digest) -> None:
        """All bytes of a committed submission are durable."""
        arrived = SubmissionUploaded(at_s=self._run.run_time(), worker=session.worker, lease_id=lease_id, digest=digest)
        try:
            await self._run.pump.submit(arrived)
        except IllegalEvent as error:
            if self._run.mailboxes.ended.is_set():  # while its last bytes were on their way
                raise self._over(lease_id) from error
            raise

    async def opened(self, session: CallerSession, lease_id: LeaseId, digest: Digest) -> None:
        """All bytes of a residual are durable."""
        arrived = ResidualOpened(at_s=self._run.run_time(), worker=session.worker, lease_id=lease_id, digest=digest)
        try:
            await self._run.pump.submit(arrived)
        except IllegalEvent as error:  # its round, or the run, ended while it was on its way
            raise Refused(f"nobody waits for this residual any more: {error}") from error

    def _over(self, lease_id: LeaseId) -> FinalRefusal:
        reason = self._run.pump.engine.state.end_reason or "it has ended"
        return FinalRefusal(f"the run is over ({reason}): lease {lease_id} takes no submission")

    async def get_manifest(self, session: CallerSession, request: pb.GetManifestRequest) -> pb.GetManifestReply:
        """A published version's manifest, signed; the latest where none is named."""
        run = self._run
        latest = run.pump.engine.state.version
        version = request.version if request.HasField("version") else latest
        digest = run.versions.manifest_digest(version) if version <= latest else None
        if digest is None:
            raise Refused(f"version {version} is not kept here; the latest is {latest}, ask for that")
        if self._signed is None or self._signed[0] != digest:
            self._signed = digest, await asyncio.to_thread(self._manifest, digest)
        return self._signed[1]

    def _manifest(self, digest: Digest) -> pb.GetManifestReply:
        content = self._run.versions.manifest_bytes(digest)
        return pb.GetManifestReply(manifest_json=content, signature=sign_manifest(self._run.manifest_identity, content))

    def _lease_of(self, session: CallerSession, lease_id: str) -> LeaseRecord:
        record = self._run.pump.engine.state.leases.get(LeaseId(lease_id))
        if record is None or record.lease.worker != session.worker:
            raise FinalRefusal(
                f"lease {lease_id[:64]!r} is not one of this worker's, or too long ago; ask for another",
                cause=Cause.LEASE_ENDED,
            )
        return record

    def _check_submission(self, lease: Lease, request: pb.CommitSubmissionRequest) -> None:
        if request.codec != lease.codec:
            raise FinalRefusal(
                f"a submission for lease {lease.lease_id} is encoded in {lease.codec}, got {request.codec[:32]!r}"
            )
        check_residuals(lease, request)
        expected = payload_size(
            submission_specs(self._run.layout, lease.columns, lease.trunk), codec_named(request.codec)
        )
        if request.payload_bytes != expected:
            raise FinalRefusal(
                f"a submission for lease {lease.lease_id} has {expected} bytes, got {request.payload_bytes}"
            )
        for name in ("train_loss_first", "train_loss_last", "train_s"):
            if not math.isfinite(getattr(request, name)):
                raise FinalRefusal(f"{name} must be a finite number, got {getattr(request, name)}")
        if request.micro_batch > lease.batch_sequences:
            got, most = request.micro_batch, lease.batch_sequences
            raise FinalRefusal(f"lease {lease.lease_id} trains {most} sequences a step, micro_batch is {got}")
        if not is_arithmetic(request.arithmetic):
            got_characters, most = len(request.arithmetic), MAX_ARITHMETIC_CHARACTERS
            raise FinalRefusal(f"arithmetic must be at most {most} printable ASCII characters, got {got_characters}")


def lease_message(lease: GrantedLease, now_s: float) -> pb.Lease:
    """A lease for the wire: its deadline as seconds from now, since clocks differ."""
    message = pb.Lease(ttl_s=max(0.0, lease.deadline_s - now_s))
    fill(message, lease, Lease)
    return message


def verdict_message(verdict: AnnounceVerdict) -> pb.Verdict:
    """A verdict for the wire: its worker is told no figure and no threshold."""
    outcome = pb.Verdict.ACCEPTED if verdict.accepted else pb.Verdict.REJECTED
    return pb.Verdict(lease_id=verdict.lease_id, outcome=outcome, reason=verdict_told(verdict.verdict))


def digest_from(digest: bytes) -> Digest:
    """A digest off the wire."""
    if len(digest) != 32:
        raise MalformedMessage(f"a SHA-256 digest has 32 bytes, got {len(digest)}")
    return Digest(digest.hex())


def clean_reason(reason: str) -> str:
    """A reason somebody else wrote, fit for logs and terminals."""
    return printable(reason[:MAX_REASON_CHARACTERS]).strip() or "no reason given"


def _paused_until_s(request: pb.HeartbeatRequest, now_s: float) -> float | None:
    """Of the run's time; None: it is not paused."""
    if not request.paused:
        return None
    return now_s + request.paused_for_s if 0.0 < request.paused_for_s < math.inf else math.inf
