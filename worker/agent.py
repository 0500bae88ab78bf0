"""The worker's hands: carries out what the session decides, and turns what happens into events for it.

Decides nothing about the order of things (worker/session.py does). One call at a time goes on beside the heartbeats; a
new call replaces it. Touches the network, the training thread and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from protocol.errors import BarnraiseError, BrokeDown, RemoteError, Unavailable
from protocol.ids import LeaseId
from protocol.lease import Lease
from protocol.storage import is_full, is_storage_trouble, storage_trouble
from protocol.text import human_bytes
from protocol.v1 import barnraise_pb2 as pb
from worker import messages as m
from worker import sentences
from worker.client import CoordinatorClient, SessionEnded
from worker.disk import DISK_RETRY_S
from worker.fetch import FetchedLease, Fetcher, Run
from worker.joining import Joining
from worker.lease import lease_from_message, printable
from worker.machine.probe import Machine
from worker.options import WorkerOptions
from worker.outbox import Outbox, Submission
from worker.progress import Reporter
from worker.refusals import Refusals, nothing_to_send
from worker.repeats import Repeats
from worker.session import IN_SESSION, Session, State
from worker.train.training import TrainingRoom
from worker.trouble import Trouble

LONG_POLL_S = 20.0
MAX_RETRY_AFTER_S = 300.0
MIN_RETRY_AFTER_S = 0.1  # told to wait, this worker does not ask again at once, whatever it was told
MAX_VERDICTS = 64  # told at a time: as many as a coordinator keeps for a worker that was away
LEAVE_TIMEOUT_S = 1.2  # of the 2 s in which a worker leaves; the rest is for the training thread and the interpreter
MIN_HEARTBEAT_S = 0.05
MAX_HEARTBEAT_S = 300.0
UPLOAD_PAUSE_S = 1.0  # before a broken upload is resumed, growing, with full jitter
MAX_UPLOAD_PAUSE_S = 60.0


class Agent:
    """One worker process's event loop."""

    def __init__(
        self, options: WorkerOptions, machine: Machine, joining: Joining, outbox: Outbox, reporter: Reporter
    ) -> None:
        self._machine = machine
        self._joining = joining
        joining.tell_work(self._work)
        self._outbox = outbox
        self._reporter = reporter
        home = joining.home
        self._room = TrainingRoom(options, machine, home.disk, outbox, reporter)
        self._session = Session()
        self._events: asyncio.Queue[m.Event | Exception] = asyncio.Queue()
        self._call: asyncio.Task[None] | None = None
        self._heartbeats: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._fetched: FetchedLease | None = None
        self._broken_uploads = 0
        self._refusals = Refusals(time.monotonic)
        self._waits = Repeats()
        self._finish: m.Finish | None = None

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._session.state

    def _work(self) -> sentences.Work:
        if self._session.has_unsent:
            return sentences.Work.UNSENT
        if self._session.is_training:
            return sentences.Work.TRAINING
        return sentences.Work.LEASED if self._session.lease is not None else sentences.Work.NOTHING

    async def run(self) -> m.Finish:
        """Work until the run is over, the worker is told to leave, or nothing more can be done."""
        unsent = self._outbox.load()
        self._put(m.Started(enrolled=self._joining.is_enrolled, unsent=unsent.lease_id if unsent else None))
        try:
            while self._finish is None:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                for command in self._session.handle(event):
                    self._execute(command)
        finally:
            await self._close()
        return self._finish

    def leave(self, reason: str) -> None:
        """Ask to leave; a lease that is held goes back first."""
        self._reporter.say("leaving", f"leaving: {reason}", reason=reason)
        self._put(m.LeaveRequested(reason=reason))
        asyncio.get_running_loop().call_later(LEAVE_TIMEOUT_S, self._on_leave_timeout)

    def wait_for_thread(self, timeout_s: float) -> bool:
        """Give the training thread time to end; whether it has."""
        return self._room.join(timeout_s) and not self._joining.background.busy

    def _put(self, event: m.Event) -> None:
        self._events.put_nowait(event)

    async def _close(self) -> None:
        self._room.stop()
        if self._deadline is not None:
            self._deadline.cancel()
        for task in (self._call, self._heartbeats):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._joining.close()

    # ---- commands -----------------------------------------------------------------------------------------------

    def _execute(self, command: m.Command) -> None:
        match command:
            case m.Call():
                if self._call is not None:
                    self._call.cancel()
                self._call = asyncio.create_task(self._perform(command))
            case m.StartTraining(training=training, lease=lease):
                self._start_training(training, lease)
            case m.StopTraining():
                self._room.stop()
                self._reporter.close()
            case m.DropSubmission(lease_id=lease_id):
                self._outbox.drop(lease_id)
            case m.Tell():
                self._reporter.say("note", sentences.told(command), detail=printable(command.detail or command.reason))
            case m.Finish():
                self._finish = command

    def _start_training(self, training: int, lease: Lease) -> None:
        assert self._fetched is not None
        loop = asyncio.get_running_loop()

        def post(event: m.Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is leaving
                loop.call_soon_threadsafe(self._put, event)

        def done(submission: Submission) -> None:
            first, last = submission.train_loss_first, submission.train_loss_last
            text = f"trained {submission.tokens} tokens in {submission.train_s:.1f} s, loss {first:.3f} to {last:.3f}"
            self._reporter.say("trained", text, lease=lease.lease_id, loss_first=first, loss_last=last)
            post(m.Trained(training=training))

        fetched, self._fetched = self._fetched, None

        def failed(trouble: Trouble) -> None:
            reason = sentences.report(trouble.cause, trouble.detail)
            post(m.TrainingFailed(training=training, reason=reason, cause=trouble.cause, detail=trouble.detail))

        self._room.start(fetched, done, failed)

    # ---- calls --------------------------------------------------------------------------------------------------

    async def _perform(self, call: m.Call) -> None:
        session = self._session.session
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
        except Exception as error:
            self._events.put_nowait(error)
            return
        self._joining.on_answer()
        self._put(event)

    def _answer(self, call: m.Call) -> Awaitable[m.Event]:
        handlers: dict[type[m.Call], Callable[[Any], Coroutine[Any, Any, m.Event]]] = {
            m.Enrol: self._enrol,
            m.OpenSession: self._open,
            m.AcquireLease: self._acquire,
            m.FetchShard: self._fetch,
            m.CommitSubmission: self._commit,
            m.UploadSubmission: self._upload,
            m.ReturnLease: self._return,
        }
        return handlers[type(call)](call)

    async def _enrol(self, call: m.Enrol) -> m.Event:
        enrolment = await self._joining.enrol(self._machine)
        trusted = " as trusted" if enrolment.trusted else ""
        text = f"enrolled{trusted} as worker {enrolment.worker_id}"
        self._reporter.say("enrolled", text, worker=enrolment.worker_id, trusted=enrolment.trusted)
        return m.Enrolled(ticket=call.ticket)

    async def _open(self, call: m.OpenSession) -> m.Event:
        interval_s = await self._joining.open(self._machine)
        interval_s = interval_s if interval_s > MIN_HEARTBEAT_S else MIN_HEARTBEAT_S  # false for NaN too
        interval_s = min(interval_s, MAX_HEARTBEAT_S)
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        self._heartbeats = asyncio.create_task(self._beat(call.session, interval_s))
        run = self._run.description
        self._reporter.say("session_opened", f"connected to {run.name!r} (run {run.run_id})", run=run.run_id)
        return m.Opened(ticket=call.ticket)

    async def _acquire(self, call: m.AcquireLease) -> m.Event:
        if call.after_s > 0:
            # Jittered, so that workers that were told the same pause do not come back in step.
            await asyncio.sleep(min(call.after_s, MAX_RETRY_AFTER_S) * random.uniform(0.8, 1.2))
        reply = await self._client.acquire_lease(LONG_POLL_S if call.may_wait else 0.0)
        for verdict in reply.verdicts[:MAX_VERDICTS]:
            self._tell_verdict(verdict)
        match reply.WhichOneof("outcome"):
            case "lease":
                return self._granted(call.ticket, reply.lease)
            case "over":
                return m.RunEnded(ticket=call.ticket, reason=printable(reply.over.reason))
        reason = printable(reply.wait.reason) or "The coordinator has no work now."
        lasting_s = self._waits.lasting_s(reason)
        if lasting_s is not None:
            self._reporter.say("waiting", sentences.waiting(reason, lasting_s), reason=reason)
        retry_s = reply.wait.retry_after_s
        retry_s = retry_s if retry_s > MIN_RETRY_AFTER_S else MIN_RETRY_AFTER_S  # false for NaN too
        return m.ToldToWait(ticket=call.ticket, reason=reason, retry_after_s=retry_s)

    def _granted(self, ticket: int, message: pb.Lease) -> m.Event:
        lease = lease_from_message(
            message,
            max_columns=self._joining.columns,
            layout_columns=self._run.layout.columns,
            sequence_length=self._run.description.sequence_length,
        )
        if self._deadline is not None:
            self._deadline.cancel()
        self._refusals.keep_for(lease.ttl_s)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(lease.ttl_s, self._on_deadline, lease.lease_id)
        self._waits.over()
        text = f"round {lease.round}: {lease.inner_steps} steps on columns {', '.join(map(str, lease.columns))}"
        self._reporter.say(
            "lease_granted",
            text,
            lease=lease.lease_id,
            round=lease.round,
            columns=list(lease.columns),
            ttl_s=lease.ttl_s,
        )
        return m.LeaseGranted(ticket=ticket, lease=lease)

    async def _fetch(self, call: m.FetchShard) -> m.Event:
        joining = self._joining
        joining.home.progress.keep_only(call.lease.lease_id)
        fetcher = Fetcher(self._client, joining.home.disk, joining.enrolment, joining.background)
        got_bytes = 0

        def on_bytes(count: int) -> None:
            nonlocal got_bytes
            got_bytes += count

        self._fetched = await self._with_room(lambda: fetcher.fetch(call.lease, self._run, on_bytes))
        self._reporter.say("fetched", f"fetched {human_bytes(got_bytes)}", lease=call.lease.lease_id, bytes=got_bytes)
        return m.Fetched(ticket=call.ticket)

    async def _with_room(self, fetch: Callable[[], Awaitable[FetchedLease]]) -> FetchedLease:
        """`fetch`, as often as it takes: a full disk is no reason to give a lease back before its deadline."""
        while True:
            try:
                return await fetch()
            except OSError as error:
                if not is_storage_trouble(error):
                    raise
                if is_full(error) and self._joining.home.disk.give_way():
                    continue
                reason = str(storage_trouble(error.errno or 0, self._joining.home.folder))
            self._reporter.say("paused", f"paused: {reason}", reason=reason)
            await asyncio.sleep(DISK_RETRY_S)

    async def _commit(self, call: m.CommitSubmission) -> m.Event:
        if call.after_s > 0:
            await asyncio.sleep(call.after_s * random.uniform(0.8, 1.2))
        submission = self._outbox.load()
        if submission is None or submission.lease_id != call.lease_id:
            return nothing_to_send(call)
        request = pb.CommitSubmissionRequest(
            lease_id=submission.lease_id,
            digest=bytes.fromhex(submission.digest),
            payload_bytes=submission.payload_bytes,
            codec=submission.codec,
            inner_steps_done=submission.inner_steps_done,
            tokens=submission.tokens,
            train_loss_first=submission.train_loss_first,
            train_loss_last=submission.train_loss_last,
            train_s=submission.train_s,
        )
        reply = await self._client.commit_submission(request)
        if reply.HasField("verdict"):
            self._tell_verdict(reply.verdict)
        judged = reply.HasField("verdict") and reply.verdict.outcome != pb.Verdict.PENDING
        has_all = reply.upload_offset >= submission.payload_bytes
        return m.Committed(ticket=call.ticket, offset=reply.upload_offset, settled=judged or has_all)

    async def _upload(self, call: m.UploadSubmission) -> m.Event:
        submission = self._outbox.load()
        if submission is None or submission.lease_id != call.lease_id:
            return nothing_to_send(call)
        header = pb.UploadHeader(
            lease_id=submission.lease_id,
            digest=bytes.fromhex(submission.digest),
            payload_bytes=submission.payload_bytes,
            offset=call.offset,
        )
        try:
            reply = await self._client.upload(header, self._outbox.payload_path(submission), lambda _count: None)
        except BrokeDown:
            raise
        except Unavailable as error:
            text = sentences.broken_upload(error.cause, self._joining.address)
            self._reporter.say("upload_broken", text, detail=printable(str(error)))
            reply = pb.UploadReply()
        if not reply.complete:
            pause_s = min(UPLOAD_PAUSE_S * 2**self._broken_uploads, MAX_UPLOAD_PAUSE_S)
            self._broken_uploads = min(self._broken_uploads + 1, 10)
            await asyncio.sleep(random.uniform(0.0, pause_s))
            return m.UploadBroken(ticket=call.ticket)
        self._broken_uploads = 0
        sent_bytes = submission.payload_bytes - call.offset
        self._reporter.say("uploaded", f"sent {human_bytes(sent_bytes)}", lease=submission.lease_id, bytes=sent_bytes)
        return m.Uploaded(ticket=call.ticket)

    async def _return(self, call: m.ReturnLease) -> m.Event:
        await self._client.return_lease(call.lease_id, call.reason)
        return m.Returned(ticket=call.ticket)

    # ---- beside the calls ---------------------------------------------------------------------------------------

    async def _beat(self, session: int, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            if self._session.state not in IN_SESSION or self._session.session != session:
                continue
            progress = self._room.progress
            request = pb.HeartbeatRequest(
                lease_id=self._session.lease_id or "",
                inner_step=progress.inner_step,
                train_loss=progress.train_loss,
                tokens_per_s=progress.tokens_per_s,
            )
            try:
                reply = await self._client.heartbeat(request, timeout_s=max(interval_s, 5.0))
            except SessionEnded as error:
                self._put(m.SessionLost(session=session, reason=str(error)))
                return
            except RemoteError:
                continue  # the next one says it all again
            for cancelled in reply.cancelled:
                reason = printable(cancelled.reason)
                self._put(m.LeaseCancelled(lease_id=LeaseId(cancelled.lease_id), reason=reason))

    def _on_leave_timeout(self) -> None:
        if self._session.state is State.LEAVING:
            self._put(m.LeaveTimedOut())

    def _on_deadline(self, lease_id: LeaseId) -> None:
        """A coordinator that keeps this worker waiting does so no longer than the lease; training waits for nobody.

        What is being trained goes on: the coordinator moves deadlines by the time in which it was not there, and says
        at a heartbeat when one has passed. While it cannot be reached, there is nothing better to do either.
        """
        if self._session.state is State.FETCHING:
            self._put(m.LeaseCancelled(lease_id=lease_id, reason="its deadline passed before its data had come"))

    def _tell_verdict(self, verdict: pb.Verdict) -> None:
        reason, lease = printable(verdict.reason), printable(verdict.lease_id, 64)
        outcome = {pb.Verdict.ACCEPTED: "accepted", pb.Verdict.REJECTED: "rejected"}.get(verdict.outcome, "pending")
        words = {"accepted": "was accepted", "rejected": "was not accepted"}.get(outcome, "is being looked at")
        self._reporter.say(f"submission_{outcome}", f"your work for lease {lease} {words}: {reason}", lease=lease)

    @property
    def _client(self) -> CoordinatorClient:
        return self._joining.client

    @property
    def _run(self) -> Run:
        return self._joining.run
