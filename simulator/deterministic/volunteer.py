"""A simulated volunteer's machine: the real session on it, a disk that outlives its processes, and cheap training.

Decides nothing about the order of things (`worker/session.py` does). It carries out commands as `worker/agent.py`
does: one call at a time beside the heartbeats, a new call replaces it, a finished submission is on disk before the
session hears of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol.errors import BarnraiseError, Unauthenticated, Unavailable
from protocol.ids import BlockId, Digest, LeaseId
from protocol.lease import Lease
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.loop import PROCESS, Process, VirtualLoop
from simulator.deterministic.network import Network
from simulator.deterministic.scenario import Scenario, VolunteerSpec, key_of
from simulator.deterministic.work import Trained, Work, stretched
from worker import messages as m
from worker.lease import lease_from_message
from worker.refusals import Refusals, nothing_to_send
from worker.session import IN_SESSION, Session, State

LONG_POLL_S = 20.0
UPLOAD_PAUSE_S = 1.0
COMES_BACK_S = 60.0
"""After a process left by itself, its volunteer starts it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A trained lease, on the volunteer's disk."""

    lease_id: LeaseId
    trained: Trained
    inner_steps: int
    train_s: float

    @property
    def payload(self) -> bytes:
        """What is sent."""
        return self.trained.payload

    @property
    def digest(self) -> Digest:
        """Its content address."""
        return Digest(hashlib.sha256(self.payload).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A lease in training, from `started_s` on."""

    lease: Lease
    base: dict[BlockId, Digest]
    started_s: float
    takes_s: float


class Volunteer:
    """One machine. `boot` starts a process on it, `kill` ends it."""

    def __init__(
        self,
        index: int,
        spec: VolunteerSpec,
        loop: VirtualLoop,
        scenario: Scenario,
        network: Network,
        work: Work,
        draw: random.Random,
        *,
        acknowledged: Callable[[LeaseId, Digest], None],
        forgotten: Callable[[LeaseId], None],
        on_state: Callable[[int, State], None],
        note: Callable[[str], None],
    ) -> None:
        self.index, self.spec = index, spec
        self.key = key_of(scenario.seed, index)
        self.process: Process | None = None
        self.told_over = False
        self._loop, self._network, self._work, self._draw = loop, network, work, draw
        self._heartbeat_s = scenario.config.heartbeat_interval_s
        self._train_sequences = scenario.config.train_sequences
        self._acknowledged, self._forgotten, self._on_state, self._note = acknowledged, forgotten, on_state, note
        self._enrolled = False  # on disk, as is the outbox
        self._outbox: Submission | None = None
        self._training: Training | None = None
        self._stalled_until_s = 0.0

    # ---- processes -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start a process; what an earlier one left on disk is there."""
        if self.process is not None or self.told_over:
            return
        self.process = Process(f"volunteer {self.index}")
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self.process)
        self._session = Session()
        self._session_id = b""
        self._call: asyncio.Task[None] | None = None
        self._base: dict[BlockId, Digest] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._broken_uploads = 0
        self._refusals = Refusals(lambda: self._loop.now_s)
        unsent = self._outbox.lease_id if self._outbox else None
        self._post(m.Started(enrolled=self._enrolled, unsent=unsent))

    @property
    def state(self) -> State:
        """Of the session of the process that runs, or ran last."""
        return self._session.state

    def kill(self) -> None:
        """Gone; the disk stays."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            for timer in self._timers.values():
                timer.cancel()
            self._interrupt_training()

    def _interrupt_training(self) -> None:
        training, self._training = self._training, None
        if training is not None:
            share = min(1.0, (self._loop.now_s - training.started_s) / training.takes_s)
            self._work.interrupted(self.index, training.lease, training.base, share)

    def stall(self, seconds: float) -> None:
        """The process stands still: whatever happens meanwhile, it sees afterwards."""
        self._stalled_until_s = self._loop.now_s + seconds

    def leave(self) -> None:
        """The volunteer wants the machine back."""
        self._post(m.LeaveRequested(reason="the volunteer wants the machine back"))

    def _post(self, event: m.Event) -> None:
        process = self.process
        assert process is not None
        self._loop.call_at(max(self._loop.now_s, self._stalled_until_s), self._handle, process, event)

    def _handle(self, process: Process, event: m.Event) -> None:
        if not process.alive:
            return
        if self._loop.now_s < self._stalled_until_s:
            self._post(event)
            return
        before = self._session.state
        commands = self._session.handle(event)
        self._note(f"volunteer {self.index} {before.value} -> {self._session.state.value}: {type(event).__name__}")
        for command in commands:
            self._execute(command)
        if self._session.state is not before:
            self._on_state(self.index, self._session.state)

    # ---- commands ------------------------------------------------------------------------------------------------

    def _execute(self, command: m.Command) -> None:
        match command:
            case m.Call():
                if self._call is not None:
                    self._call.cancel()
                self._call = self._loop.create_task(self._perform(command), context=self._context)
            case m.StartTraining(training=training, lease=lease):
                self._train(training, lease)
            case m.StopTraining():
                self._training = None
                self._cancel("training")
            case m.DropSubmission(lease_id=lease_id):
                if self._outbox is not None and self._outbox.lease_id == lease_id:
                    self._outbox = None
                    self._forgotten(lease_id)
            case m.Finish(reason=reason):
                self._finish(reason)

    def _finish(self, reason: str) -> None:
        self._note(f"volunteer {self.index} leaves: {reason}")
        self.told_over = reason.startswith("the run is over")
        self.kill()
        self._loop.call_later(COMES_BACK_S, self.boot)

    def _train(self, training: int, lease: Lease) -> None:
        base = dict(self._base)
        whole_s = lease.inner_steps * self.spec.step_s * self._draw.uniform(0.8, 1.3)
        takes_s = whole_s * self._work.share_left(self.index, lease, base)
        self._training = Training(lease=lease, base=base, started_s=self._loop.now_s, takes_s=takes_s)
        self._timer("training", takes_s, self._trained, training, lease, base, whole_s)

    def _trained(self, training: int, lease: Lease, base: dict[BlockId, Digest], train_s: float) -> None:
        self._training = None
        trained = self._work.trained(self.index, lease, base)
        if self.spec.liar:
            trained = Trained(payload=stretched(f"{lease.lease_id} {self.index} lies", len(trained.payload)))
        self._outbox = Submission(
            lease_id=lease.lease_id, trained=trained, inner_steps=lease.inner_steps, train_s=train_s
        )
        self._post(m.Trained(training=training))

    def _timer(self, name: str, seconds: float, act: Callable[..., None], *args: Any) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.call_later(seconds, act, *args, context=self._context)

    def _cancel(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def _perform(self, call: m.Call) -> None:
        session = self._session.session
        event: m.Event
        try:
            event = await self._answer(call)
        except Unauthenticated as error:
            event = m.SessionLost(session=session, reason=str(error))
            if isinstance(call, m.Enrol | m.OpenSession):
                event = self._refusals.answer(call, error)
        except BarnraiseError as error:
            event = self._refusals.answer(call, error)
        self._post(event)

    async def _answer(self, call: m.Call) -> m.Event:
        match call:
            case m.Enrol():
                await self._ask("Enrol", self._offer())
                self._enrolled = True
                return m.Enrolled(ticket=call.ticket)
            case m.OpenSession():
                self._session_id = await self._ask("OpenSession", self._offer())
                self._timer("heartbeat", self._heartbeat_s, self._beat, call.session)
                return m.Opened(ticket=call.ticket)
            case m.AcquireLease():
                return await self._acquire(call)
            case m.FetchShard(lease=lease):
                self._base = await self._ask("Fetch", lease.lease_id)
                return m.Fetched(ticket=call.ticket)
            case m.CommitSubmission():
                return await self._commit(call)
            case m.UploadSubmission():
                return await self._upload(call)
            case m.ReturnLease(lease_id=lease_id, reason=reason):
                await self._ask("ReturnLease", pb.ReturnLeaseRequest(lease_id=lease_id, reason=reason))
                return m.Returned(ticket=call.ticket)
        raise AssertionError(f"no such call: {call}")

    async def _ask(self, call: str, request: Any, hold_s: float = 0.0) -> Any:
        return await self._network.call(self.index, call, self.key, self._session_id, request, hold_s)

    def _offer(self) -> tuple[str, int, float]:
        return (f"volunteer {self.index}", self.spec.max_columns, 8.0 / self.spec.step_s)

    async def _acquire(self, call: m.AcquireLease) -> m.Event:
        if call.after_s > 0:
            await asyncio.sleep(call.after_s * self._draw.uniform(0.8, 1.2))
        wait_s = LONG_POLL_S if call.may_wait else 0.0
        reply = await self._ask("AcquireLease", pb.AcquireLeaseRequest(wait_s=wait_s), wait_s)
        match reply.WhichOneof("outcome"):
            case "lease":
                columns, length = self._work.layout.columns, self._work.sequence_length
                lease = lease_from_message(
                    reply.lease, max_columns=columns, layout_columns=columns, sequence_length=length
                )
                self._refusals.keep_for(lease.ttl_s)
                self._timer("deadline", lease.ttl_s, self._on_deadline, lease.lease_id)
                return m.LeaseGranted(ticket=call.ticket, lease=lease)
            case "over":
                return m.RunEnded(ticket=call.ticket, reason=reply.over.reason)
        return m.ToldToWait(ticket=call.ticket, reason=reply.wait.reason, retry_after_s=reply.wait.retry_after_s)

    async def _commit(self, call: m.CommitSubmission) -> m.Event:
        if call.after_s > 0:
            await asyncio.sleep(call.after_s * self._draw.uniform(0.8, 1.2))
        kept = self._outbox
        if kept is None or kept.lease_id != call.lease_id:
            return nothing_to_send(call)
        request = pb.CommitSubmissionRequest(
            lease_id=kept.lease_id,
            digest=bytes.fromhex(kept.digest),
            payload_bytes=len(kept.payload),
            codec=self._work.codec,
            inner_steps_done=kept.inner_steps,
            tokens=kept.inner_steps,
            train_loss_first=kept.trained.loss_first,
            train_loss_last=kept.trained.loss_last,
            train_s=kept.train_s,
        )
        reply = await self._ask("CommitSubmission", request)
        judged = reply.HasField("verdict") and reply.verdict.outcome != pb.Verdict.PENDING
        has_all = reply.upload_offset >= len(kept.payload)
        if judged or has_all:
            self._acknowledged(kept.lease_id, kept.digest)
        return m.Committed(ticket=call.ticket, offset=reply.upload_offset, settled=judged or has_all)

    async def _upload(self, call: m.UploadSubmission) -> m.Event:
        kept = self._outbox
        if kept is None or kept.lease_id != call.lease_id:
            return nothing_to_send(call)
        header = pb.UploadHeader(
            lease_id=kept.lease_id,
            digest=bytes.fromhex(kept.digest),
            payload_bytes=len(kept.payload),
            offset=call.offset,
        )
        try:
            reply = await self._network.upload(self.index, self.key, self._session_id, header, kept.payload)
        except Unavailable:
            reply = pb.UploadReply()
        if not reply.complete:
            pause_s = UPLOAD_PAUSE_S * 2.0 ** min(self._broken_uploads, 6)
            self._broken_uploads += 1
            await asyncio.sleep(self._draw.uniform(0.0, pause_s))
            return m.UploadBroken(ticket=call.ticket)
        self._broken_uploads = 0
        self._acknowledged(kept.lease_id, kept.digest)
        return m.Uploaded(ticket=call.ticket)

    # ---- beside the calls ----------------------------------------------------------------------------------------

    def _beat(self, session: int) -> None:
        if self._session.session != session:
            return
        self._timer("heartbeat", self._heartbeat_s, self._beat, session)
        if self._session.state in IN_SESSION and self._loop.now_s >= self._stalled_until_s:
            self._loop.create_task(self._heartbeat(session), context=self._context)

    async def _heartbeat(self, session: int) -> None:
        request = pb.HeartbeatRequest(lease_id=self._session.lease_id or "")
        try:
            reply = await self._network.once(self.index, "Heartbeat", self.key, self._session_id, request)
        except Unauthenticated as error:
            self._post(m.SessionLost(session=session, reason=str(error)))
            return
        except BarnraiseError:
            return
        for cancelled in reply.cancelled:
            self._post(m.LeaseCancelled(lease_id=LeaseId(cancelled.lease_id), reason=cancelled.reason))

    def _on_deadline(self, lease_id: LeaseId) -> None:
        if self._session.state is State.FETCHING:
            self._post(m.LeaseCancelled(lease_id=lease_id, reason="its deadline passed before its data had come"))
