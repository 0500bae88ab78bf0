"""The worker's hands: carries out what the session decides, and turns what happens into events for it.

Decides nothing about the order of things (worker/session.py does). One call at a time goes on in each lane (work, and
the line that sends what is finished) beside the heartbeats; a new call replaces the one in its lane. What it needs of
the world comes in from outside: the coordinator's line in `Joining`, files in the run's home, the trainer, the
volunteer's policy, clock, sleep and randomness in `Timing`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from protocol.errors import RemoteError
from protocol.ids import LeaseId
from protocol.lease import Lease
from protocol.v1 import barnraise_pb2 as pb
from worker import messages as m
from worker import sentences
from worker.announcements import Announcements
from worker.archivist import Archivist
from worker.calls import Calls
from worker.deadline import Deadline
from worker.joining import Joining
from worker.lease import ReceivedLease, printable
from worker.machine.machine import Machine
from worker.outbox import Outbox, Submission
from worker.pauses import Pauses
from worker.policy import Always, Circumstances, Permission, Policy
from worker.ports import Measurer, Trainer
from worker.progress import Reporter
from worker.receipts import ReceiptKeeper
from worker.session import Session
from worker.sharing import Sharing
from worker.states import IN_SESSION, State
from worker.suspended import why_too_late
from worker.trouble import Trouble
from worker.wire import SessionEnded
from worker.words import Words, say

LEAVE_TIMEOUT_S = 1.2  # of the 2 s in which a worker leaves; the rest is for the training thread and the interpreter
MIN_HEARTBEAT_S = 0.05
MAX_HEARTBEAT_S = 300.0
MIN_HEARTBEAT_TIMEOUT_S = 5.0


class Agent:
    """One worker process's event loop."""

    def __init__(
        self,
        machine: Machine | Callable[[], Machine],
        joining: Joining,
        outbox: Outbox,
        trainer: Trainer,
        reporter: Reporter,
        *,
        pauses: Pauses | None = None,
        policy: Policy | None = None,
        circumstances: Callable[[], Circumstances] = Circumstances.now,
        session: Session | None = None,
        measurer: Measurer | None = None,
        receipts: ReceiptKeeper | None = None,
        unwanted: Callable[[ReceivedLease], str] = lambda _lease: "",
        sharing: Sharing | None = None,
        archivist: Archivist | None = None,
    ) -> None:
        """`machine`: what is offered, or what finds out. `unwanted`: why the volunteer's rules do not accept a lease;
        empty: they do.
        """
        pauses = pauses or Pauses()
        self._joining = joining
        joining.tell_work(self._work)
        self._outbox = outbox
        self._trainer = trainer
        self._reporter = reporter
        self._timing = joining.timing
        self._policy, self._circumstances = policy or Always(), circumstances
        self._session = session or Session(pauses)
        self._deadline = Deadline(self._on_deadline)
        self._calls = Calls(
            machine,
            joining,
            outbox,
            reporter,
            pauses,
            opened=self._start_beating,
            granted=self._deadline.set,
            measurer=measurer,
            receipts=receipts,
            unwanted=unwanted,
            sharing=sharing,
        )
        self._announcements, self._archivist = Announcements(reporter), archivist
        self._events: asyncio.Queue[m.SessionEvent | Exception] = asyncio.Queue()
        self._lanes: dict[m.Lane, asyncio.Task[None]] = {}
        """The call that goes on, or went on last, in each."""
        self._heartbeats: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.permission = Permission(allowed=True)
        """What the policy said last."""
        self._share = 1.0
        self._is_finishing, self._wall_s = False, 0.0
        self._finish: m.Finish | None = None

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._session.state

    def _work(self) -> sentences.InHand:
        if self._session.has_unsent:
            return sentences.InHand.UNSENT
        if self._session.is_training:
            return sentences.InHand.TRAINING
        return sentences.InHand.LEASED if self._session.lease is not None else sentences.InHand.NOTHING

    async def run(self) -> m.Finish:
        """Work until the run is over, the worker is told to leave, or nothing more can be done."""
        if self._joining.finder is not None:
            await self._joining.finder.start()
        unsent = tuple(submission.lease_id for submission in self._outbox.all())
        self._put(m.Started(enrolled=self._joining.is_enrolled, unsent=unsent))
        await self.look_at_policy()
        if self._policy.look_again_s is not None:
            self._watch = asyncio.create_task(self._watch_policy(self._policy.look_again_s))
        try:
            while self._finish is None:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                for command in self._session.handle(event):
                    self._execute(command)
                if self._is_finishing and self.state is State.PAUSED and not self._has_work:
                    self._is_finishing = False
                    self.leave(say("leave.finished"))
        finally:
            await self._close()
        return self._finish

    def leave(self, reason: str) -> None:
        """Ask to leave; a lease that is held goes back first."""
        self._reporter.say("leaving", say("leaving", why=Words(reason)), reason=reason)
        self._put(m.LeaveRequested(reason=reason))
        asyncio.get_running_loop().call_later(LEAVE_TIMEOUT_S, self._on_leave_timeout)

    def finish(self) -> None:
        """Leave once the present lease, if there is one, is done and sent; the policy has to want no other by then."""
        self._is_finishing = True

    @property
    def held_lease(self) -> str | None:
        """The lease that is held, be it in training or waiting for the end of a pause."""
        return self._session.lease.lease_id if self._session.lease is not None else None

    @property
    def is_sending(self) -> bool:
        """Whether finished work is on its way."""
        return self._session.line.is_busy

    @property
    def _has_work(self) -> bool:
        return self._session.lease is not None or self._session.has_unsent

    def wait_for_thread(self, timeout_s: float) -> bool:
        """Give the training thread time to end; whether it has."""
        return self._trainer.join(timeout_s) and not self._joining.background.busy

    def _put(self, event: m.SessionEvent) -> None:
        self._events.put_nowait(event)

    async def _close(self) -> None:
        self._trainer.stop()
        self._deadline.cancel()
        for task in (*self._lanes.values(), self._heartbeats, self._watch):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._archivist is not None:
            await self._archivist.close()
        await self._calls.close()
        await self._joining.close()

    # ---- commands -----------------------------------------------------------------------------------------------

    def _execute(self, command: m.SessionCommand) -> None:
        match command:
            case m.Call():
                self._cancel_call(command.lane)
                self._lanes[command.lane] = asyncio.create_task(self._perform(command))
            case m.CancelCall(lane=lane):
                self._cancel_call(lane)
            case m.StartTraining(training=training, lease=lease):
                self._start_training(training, lease)
            case m.StopTraining():
                self._trainer.stop()
                self._reporter.close()
                if not self.permission.allowed:
                    self._trainer.rest()
            case m.DropSubmission(lease_id=lease_id):
                self._outbox.drop(lease_id)
            case m.Tell():
                self._reporter.say("note", sentences.told(command), detail=printable(command.detail or command.reason))
            case m.Finish():
                self._finish = command

    def _cancel_call(self, lane: m.Lane) -> None:
        if lane in self._lanes:
            self._lanes[lane].cancel()

    async def _perform(self, call: m.Call) -> None:
        try:
            event = await self._calls.perform(call, self._session.session)
        except Exception as error:
            self._events.put_nowait(error)
            return
        self._put(event)

    def _start_training(self, training: int, lease: Lease) -> None:
        loop = asyncio.get_running_loop()

        def post(event: m.SessionEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is leaving
                loop.call_soon_threadsafe(self._put, event)

        def done(submission: Submission) -> None:
            first, last = submission.train_loss_first, submission.train_loss_last
            text = sentences.trained(submission.tokens, submission.train_s, first, last)
            self._reporter.say("trained", text, lease=lease.lease_id, loss_first=first, loss_last=last)
            post(m.Trained(training=training))

        def failed(trouble: Trouble) -> None:
            reason = sentences.report(trouble.cause, trouble.detail)
            failure = m.TrainingFailed(
                training=training,
                reason=reason,
                cause=trouble.cause,
                detail=trouble.detail,
                device_lost=trouble.device_lost,
            )
            post(failure)

        self._trainer.start(self._calls.take_fetched(), done, failed)

    # ---- beside the calls ---------------------------------------------------------------------------------------

    def _start_beating(self, session: int, interval_s: float) -> None:
        interval_s = interval_s if interval_s > MIN_HEARTBEAT_S else MIN_HEARTBEAT_S  # false for NaN too
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        self._heartbeats = asyncio.create_task(self._beat(session, min(interval_s, MAX_HEARTBEAT_S)))

    async def _beat(self, session: int, interval_s: float) -> None:
        while True:
            await self._timing.sleep(interval_s)
            if self._session.state not in IN_SESSION or self._session.session != session:
                continue
            progress = self._trainer.progress
            request = pb.HeartbeatRequest(
                lease_id=self._session.lease_id or "",
                sending_lease_id=self._session.line.lease_id or "",
                inner_step=progress.inner_step,
                train_loss=progress.train_loss,
                tokens_per_s=progress.tokens_per_s,
                paused=not self.permission.allowed,
                paused_for_s=max(0.0, (self.permission.until_s or 0.0) - self._wall_s),
            )
            try:
                reply = await self._joining.client.heartbeat(request, max(interval_s, MIN_HEARTBEAT_TIMEOUT_S))
            except SessionEnded as error:
                self._put(m.SessionLost(session=session, reason=str(error)))
                return
            except RemoteError:
                continue  # the next one says it all again
            self._announcements.heard(reply.announcement)
            if self._archivist is not None:
                allowed = self.permission.allowed
                self._archivist.on_beat(session, reply, self._calls.swarm, allowed=allowed)
            for cancelled in reply.cancelled:
                reason = printable(cancelled.reason)
                self._put(m.LeaseCancelled(lease_id=LeaseId(cancelled.lease_id), reason=reason))

    async def _watch_policy(self, every_s: float) -> None:
        while True:
            await self._timing.sleep(every_s)
            try:
                await self.look_at_policy()
            except Exception as error:  # rules that nobody looks at any more would be worse than a worker that ends
                self._events.put_nowait(error)
                return

    async def look_at_policy(self) -> None:
        """Ask the policy once more, and act on what it says."""
        now = await self._joining.background.run(self._circumstances)
        before, self.permission = self.permission, self._policy.may_work(now)
        self._wall_s = now.wall_s
        permission = self.permission
        self._keep_tempo(permission)
        self._calls.on_look()
        if permission.allowed:
            if not before.allowed:
                self._trainer.wake()
                self._put(m.Resumed())
            return
        if before.allowed or permission.stops_training > before.stops_training:
            self._put(m.Paused(reason=permission.reason, stops_training=permission.stops_training))
        self._trainer.rest()
        self._give_up_in_time(permission)

    def _keep_tempo(self, now: Permission) -> None:
        if not now.allowed or now.share == self._share:
            return
        self._share = now.share
        self._trainer.pace(now.share)
        text = say("slowed.over")
        if now.share < 1.0:
            text = say("slowed", share=f"{now.share:.0%}", why=Words(now.slowed))
        self._reporter.say("slowed", text, share=now.share)

    def _give_up_in_time(self, permission: Permission) -> None:
        """A lease that waits for the end of the pause goes back as soon as it cannot be done any more."""
        lease = self._deadline.lease
        if self.state is not State.PAUSED or lease is None or self._session.lease_id != lease.lease_id:
            return
        pause_s = None if permission.until_s is None else max(0.0, permission.until_s - self._wall_s)
        length = self._joining.run.description.sequence_length
        why = why_too_late(lease, self._trainer.progress, length, left_s=self._deadline.left_s, pause_s=pause_s)
        if why:
            self._put(m.OutOfTime(reason=why))

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
