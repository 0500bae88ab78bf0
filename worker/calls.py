"""A worker's calls: what each command of the session asks of the coordinator, and the event that its answer makes.

Decides nothing about the order of things (worker/session.py does). Whatever the coordinator says is checked and bounded
here before the session hears of it. Touches the network, the block cache and, reading, the outbox.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from protocol.errors import BarnraiseError, BrokeDown, LocalError, Refused, Unavailable
from protocol.ids import Digest
from protocol.storage import is_full, is_storage_trouble, storage_trouble
from protocol.text import human_bytes
from protocol.v1 import barnraise_pb2 as pb
from worker import messages as m
from worker import sentences
from worker.fetch import Fetcher
from worker.fetched import FetchedLease, Run
from worker.joining import Joining
from worker.lease import ReceivedLease, is_digest, lease_from_message, printable
from worker.machine.machine import Machine
from worker.measuring import Measuring
from worker.neighbours import Neighbours
from worker.outbox import Outbox
from worker.pauses import Pauses
from worker.ports import Coordinator, Measurer
from worker.progress import Reporter
from worker.receipts import ReceiptKeeper
from worker.refusals import Refusals, nothing_to_send
from worker.repeats import Repeats
from worker.sharing import Sharing
from worker.spent import TimeSpent
from worker.swarm import BlockSwarm
from worker.wire import SessionEnded
from worker.words import Words, foreign, say

LONG_POLL_S = 20.0
MAX_RETRY_AFTER_S = 300.0
MIN_RETRY_AFTER_S = 0.1  # told to wait, this worker does not ask again at once, whatever it was told
MAX_OPEN = 4096  # residuals asked for at a time: two for each block of a lease, of a few leases
MAX_VERDICTS = 64  # told at a time: as many as a coordinator keeps for a worker that was away
MOST_DOUBLINGS = 10


class Calls:
    """Carries out one call at a time in each lane."""

    def __init__(
        self,
        machine: Machine | Callable[[], Machine],
        joining: Joining,
        outbox: Outbox,
        reporter: Reporter,
        pauses: Pauses,
        *,
        opened: Callable[[int, float], None],
        granted: Callable[[ReceivedLease], None],
        measurer: Measurer | None = None,
        receipts: ReceiptKeeper | None = None,
        unwanted: Callable[[ReceivedLease], str] = lambda _lease: "",
        sharing: Sharing | None = None,
    ) -> None:
        """`machine`: what is offered, or what finds out. `measurer`: for submissions that the coordinator has others
        measure; None: none is asked for. `sharing`: what other workers are given; None: nothing.
        """
        self._receipts = receipts
        self._machine, self._joining, self._outbox = machine, joining, outbox
        self._reporter, self._pauses = reporter, pauses
        self._opened, self._lease_granted, self._unwanted = opened, granted, unwanted
        self._measuring = Measuring(measurer, joining.background, reporter) if measurer is not None else None
        self._timing = joining.timing
        self._neighbours = Neighbours(joining, reporter, sharing)
        self._refusals = Refusals(self._timing.clock, pauses.kept_after_deadline_s)
        self._waits, self._spent = Repeats(self._timing.clock), TimeSpent(self._timing.clock)
        self._short = Repeats(self._timing.clock)
        self._fetched: FetchedLease | None = None
        self._broken_uploads = 0
        self._last_verdict = "", ""

    def take_fetched(self) -> FetchedLease:
        """What the last `FetchShard` brought; once."""
        fetched, self._fetched = self._fetched, None
        if fetched is None:
            raise LocalError("nothing was fetched")
        return fetched

    async def perform(self, call: m.Call, session: int) -> m.SessionEvent:
        """Carry out `call` of session number `session`; what comes of it. A bug is raised."""
        try:
            event = await self._answer(call)
        except SessionEnded as error:
            before_session = isinstance(call, m.Enrol | m.OpenSession)
            event = (
                self._refusals.answer(call, error)
                if before_session
                else m.SessionLost(session=session, reason=str(error))
            )
        except (BarnraiseError, OSError) as error:
            event = self._refusals.answer(call, error)
        self._joining.on_answer()
        return event

    def _answer(self, call: m.Call) -> Awaitable[m.SessionEvent]:
        handlers: dict[type[m.Call], Callable[[Any], Coroutine[Any, Any, m.SessionEvent]]] = {
            m.Enrol: self._enrol,
            m.OpenSession: self._open,
            m.AcquireLease: self._acquire,
            m.FetchShard: self._fetch,
            m.CommitSubmission: self._commit,
            m.UploadSubmission: self._upload,
            m.ReturnLease: self._return,
        }
        return handlers[type(call)](call)

    async def _enrol(self, call: m.Enrol) -> m.SessionEvent:
        enrolment = await self._joining.enrol(await self._here())
        text = say("enrolled.trusted" if enrolment.trusted else "enrolled", worker=enrolment.worker_id)
        self._reporter.say("enrolled", text, worker=enrolment.worker_id, trusted=enrolment.trusted)
        return m.Enrolled(ticket=call.ticket)

    async def _open(self, call: m.OpenSession) -> m.SessionEvent:
        self._opened(call.session, await self._joining.open(await self._here()))
        self._look_for_receipts()
        run = self._run.description
        text = say("connected", name=repr(run.name), run=run.run_id)
        self._reporter.say("session_opened", text, run=run.run_id)
        if self._joining.lease_length:
            self._reporter.say("lease_length", foreign(self._joining.lease_length))
        await self._neighbours.on_session()
        return m.Opened(ticket=call.ticket)

    async def _here(self) -> Machine:
        if not isinstance(self._machine, Machine):
            self._machine = await self._joining.background.run(self._machine)
        return self._machine

    async def _acquire(self, call: m.AcquireLease) -> m.SessionEvent:
        await self._timing.jittered(min(call.after_s, MAX_RETRY_AFTER_S))
        reply = await self._client.acquire_lease(LONG_POLL_S if call.may_wait else 0.0)
        self._neighbours.others_share = reply.peers
        for verdict in reply.verdicts[:MAX_VERDICTS]:
            self._tell_verdict(verdict)
        for wanted in reply.open[:MAX_OPEN]:
            await self._open_residual(printable(wanted.lease_id, 64), Digest(wanted.digest), wanted.offset)
        match reply.WhichOneof("outcome"):
            case "lease":
                return self._granted(call.ticket, reply.lease)
            case "over":
                return m.RunEnded(ticket=call.ticket, reason=printable(reply.over.reason))
        if reply.HasField("measure") and self._measuring is not None:
            await self._measuring.answer(reply.measure, self._client, self._fetcher(), self._run)
        reason = printable(reply.wait.reason) or "The coordinator has no work now."
        lasting_s = self._waits.lasting_s(reason)
        if lasting_s is not None:
            self._reporter.say("waiting", sentences.waiting(reason, lasting_s), reason=reason)
        retry_s = reply.wait.retry_after_s
        retry_s = retry_s if retry_s > MIN_RETRY_AFTER_S else MIN_RETRY_AFTER_S  # false for NaN too
        return m.ToldToWait(ticket=call.ticket, reason=reason, retry_after_s=retry_s)

    def _granted(self, ticket: int, message: pb.Lease) -> m.SessionEvent:
        lease = lease_from_message(
            message,
            max_columns=self._joining.columns,
            layout_columns=self._run.layout.columns,
            sequence_length=self._run.description.sequence_length,
        )
        self._refusals.keep_for(lease)
        self._lease_granted(lease)
        self._waits.over()
        if (spent := self._spent.next_lease()) is not None:
            self._reporter.say("time_spent", spent)
        columns = ", ".join(map(str, lease.columns))
        text = say("granted", round=lease.round, steps=lease.inner_steps, columns=columns)
        self._reporter.say(
            "lease_granted",
            text,
            lease=lease.lease_id,
            round=lease.round,
            columns=list(lease.columns),
            ttl_s=lease.ttl_s,
        )
        return m.LeaseGranted(ticket=ticket, lease=lease, unwanted=self._unwanted(lease))

    async def _fetch(self, call: m.FetchShard) -> m.SessionEvent:
        self._joining.home.progress.keep_only(call.lease.lease_id)
        fetcher, got_bytes = self._fetcher(), 0

        def on_bytes(count: int) -> None:
            nonlocal got_bytes
            got_bytes += count

        with self._spent.fetching():
            self._fetched = await self._with_room(lambda: fetcher.fetch(call.lease, self._run, on_bytes))
        self._neighbours.on_fetched()
        shared, amount = self._neighbours.told(), human_bytes(got_bytes)
        text = say("fetched.shared", amount=amount, shared=shared) if shared else say("fetched", amount=amount)
        self._reporter.say("fetched", text, lease=call.lease.lease_id, bytes=got_bytes)
        return m.Fetched(ticket=call.ticket)

    def _fetcher(self) -> Fetcher:
        joining = self._joining

        def told(reason: str) -> None:
            self._reporter.say("no_steps", reason, reason=reason)

        swarm = self._neighbours.swarm
        disk, hands = joining.home.disk, joining.handiwork
        return Fetcher(
            self._client, disk, joining.enrolment, joining.background, told=told, swarm=swarm, handiwork=hands
        )

    async def _with_room(self, fetch: Callable[[], Awaitable[FetchedLease]]) -> FetchedLease:
        """`fetch`, as often as it takes: a full disk is no reason to give a lease back before its deadline."""
        while True:
            try:
                found = await fetch()
                self._short.over()
                return found
            except OSError as error:
                if not is_storage_trouble(error):
                    raise
                if is_full(error) and self._joining.home.disk.give_way():
                    continue
                reason = str(storage_trouble(error.errno or 0, self._joining.home.folder))
            if self._short.lasting_s(reason) is not None:
                self._reporter.say("no_room", say("no_room", why=Words(reason)), reason=reason)
            await self._timing.sleep(self._pauses.disk_s)

    async def _commit(self, call: m.CommitSubmission) -> m.SessionEvent:
        await self._timing.jittered(call.after_s)
        submission = self._outbox.load(call.lease_id)
        if submission is None:
            return nothing_to_send(call)
        request = pb.CommitSubmissionRequest(
            lease_id=submission.lease_id,
            digest=bytes.fromhex(submission.digest),
            payload_bytes=submission.payload_bytes,
            codec=submission.codec,
            residuals_in=submission.residuals_in,
            residuals_out=submission.residuals_out,
            residuals_back=submission.residuals_back,
            inner_steps_done=submission.inner_steps_done,
            tokens=submission.tokens,
            train_loss_first=submission.train_loss_first,
            train_loss_last=submission.train_loss_last,
            train_s=submission.train_s,
            micro_batch=submission.micro_batch,
            arithmetic=submission.arithmetic,
        )
        self._spent.trained(submission.lease_id, submission.train_s)
        reply = await self._client.commit_submission(request)
        if reply.HasField("verdict"):
            self._tell_verdict(reply.verdict)
        judged = reply.HasField("verdict") and reply.verdict.outcome != pb.Verdict.PENDING
        has_all = reply.upload_offset >= submission.payload_bytes
        return m.Committed(ticket=call.ticket, offset=reply.upload_offset, settled=judged or has_all)

    async def _upload(self, call: m.UploadSubmission) -> m.SessionEvent:
        submission = self._outbox.load(call.lease_id)
        if submission is None:
            return nothing_to_send(call)
        header = pb.UploadHeader(
            lease_id=submission.lease_id,
            digest=bytes.fromhex(submission.digest),
            payload_bytes=submission.payload_bytes,
            offset=call.offset,
        )

        def read(offset: int, length: int) -> bytes:
            return self._outbox.read(submission, offset, length)

        try:
            with self._spent.sending():
                reply = await self._client.upload(header, read, lambda _count: None)
        except BrokeDown:
            raise
        except Unavailable as error:
            text = sentences.broken_upload(error.cause, self._joining.address)
            self._reporter.say("upload_broken", text, detail=printable(str(error)))
            reply = pb.UploadReply()
        if not reply.complete:
            pause_s = min(self._pauses.upload_s * 2**self._broken_uploads, self._pauses.most_upload_s)
            self._broken_uploads = min(self._broken_uploads + 1, MOST_DOUBLINGS)
            await self._timing.sleep(self._timing.draw.uniform(0.0, pause_s))
            return m.UploadBroken(ticket=call.ticket)
        self._broken_uploads = 0
        sent_bytes = submission.payload_bytes - call.offset
        text = say("uploaded", amount=human_bytes(sent_bytes))
        self._reporter.say("uploaded", text, lease=submission.lease_id, bytes=sent_bytes)
        return m.Uploaded(ticket=call.ticket)

    async def _open_residual(self, lease_id: str, digest: Digest, offset: int) -> None:
        """Send what is missing of a residual that an audit asks for, if it is here; whoever asks in vain asks again,
        and then goes on.
        """
        if not is_digest(digest) or (content := self._outbox.residual(digest)) is None:
            return
        size, offset = len(content), offset if offset <= len(content) else 0
        header = pb.UploadHeader(lease_id=lease_id, digest=bytes.fromhex(digest), payload_bytes=size, offset=offset)
        with contextlib.suppress(Unavailable, Refused):
            reply = await self._client.upload(header, lambda at, length: content[at : at + length], lambda _count: None)
            if reply.complete:
                text = say("opened", amount=human_bytes(size - offset))
                self._reporter.say("opened", text, lease=lease_id, bytes=size - offset)

    async def _return(self, call: m.ReturnLease) -> m.SessionEvent:
        await self._client.return_lease(call.lease_id, call.reason)
        return m.Returned(ticket=call.ticket)

    def _tell_verdict(self, verdict: pb.Verdict) -> None:
        reason, lease = printable(verdict.reason), printable(verdict.lease_id, 64)
        outcome = {pb.Verdict.ACCEPTED: "accepted", pb.Verdict.REJECTED: "rejected"}.get(verdict.outcome, "pending")
        if (lease, outcome) == self._last_verdict:  # it came with the commit's answer, and again beside the next lease
            return
        self._last_verdict = lease, outcome
        self._reporter.say(f"submission_{outcome}", sentences.verdict(outcome, lease, reason), lease=lease)
        if outcome == "accepted":
            self._look_for_receipts()

    def on_look(self) -> None:
        """The volunteer's rules were looked at."""
        self._neighbours.on_look()

    @property
    def swarm(self) -> BlockSwarm | None:
        """Whom to ask for blocks beside the coordinator; None: nobody."""
        return self._neighbours.swarm

    async def close(self) -> None:
        """No more calls are made: other workers are hung up on; receipts that are on their way get a moment."""
        await self._neighbours.close()
        if self._receipts is not None:
            await self._receipts.close()

    def _look_for_receipts(self) -> None:
        if self._receipts is not None:
            self._receipts.look(self._client)

    @property
    def _client(self) -> Coordinator:
        return self._joining.client

    @property
    def _run(self) -> Run:
        return self._joining.run
