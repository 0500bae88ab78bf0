"""The simulated coordinator's machine: one process at a time, which can die and be started again.

Decides nothing about rounds: engine, pump, calls and transfers are the real ones, put together as
`coordinator/edge/server.py` does it, on a disk in memory. Signatures and TLS are left out: a call names its session.
"""

from __future__ import annotations

import contextvars
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from coordinator.edge.mailboxes import Mailboxes
from coordinator.edge.patience import Patience
from coordinator.edge.served import RunContext
from coordinator.edge.service import WorkerService
from coordinator.edge.sessions import SessionTable
from coordinator.edge.throttle import EdgeLimits
from coordinator.edge.transfers import Transfers
from coordinator.engine.commands import AnnounceVerdict, Command, DropPayload, EndRun, GrantLease, SlowCommand
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    CapabilityChanged,
    Event,
    RunCreated,
    RunStopped,
    SettingChanged,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.phases import Phase
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.clock import Clocks, RunClock
from coordinator.run.needed import needed_by
from coordinator.run.pump import Pump, load_engine
from coordinator.work import port
from protocol.errors import Refused, Unauthenticated
from protocol.ids import LeaseId, WorkerId, worker_id_of
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.disk import Disk, MemoryJournal, MemoryStore, OnAppend
from simulator.deterministic.invariants import Book
from simulator.deterministic.loop import PROCESS, Process, VirtualLoop
from simulator.deterministic.scenario import Scenario
from simulator.deterministic.work import Site, Spoils, Work


class _Told(port.Work):
    """Work whose every result is told of before it is handed back."""

    def __init__(self, work: port.Work, tell: Callable[[SlowCommand], None]) -> None:
        self._work, self._tell = work, tell

    def execute(self, command: SlowCommand) -> Event:
        result = self._work.execute(command)
        self._tell(command)
        return result


class CoordinatorNode:
    """The machine. `boot` starts a process on it, `crash` ends it."""

    def __init__(
        self,
        loop: VirtualLoop,
        scenario: Scenario,
        work: Work,
        secret: bytes,
        book: Book,
        disk: Disk,
        *,
        on_append: OnAppend,
        on_execute: Callable[[SlowCommand], bool],
        on_executed: Callable[[SlowCommand], None],
        on_died: Callable[[BaseException | None], None],
        note: Callable[[str], None],
    ) -> None:
        self.disk = disk
        self._work = work
        self.process: Process | None = None
        self.boots = 0
        self.wall_ahead_s = 0.0
        """By how much the machine's wall clock is ahead of virtual time."""
        self._loop, self._scenario, self._secret, self._book, self._note = loop, scenario, secret, book, note
        self._on_append, self._on_execute, self._on_executed, self._on_died = (
            on_append,
            on_execute,
            on_executed,
            on_died,
        )
        manifest = work.first_version(disk)
        created = RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=scenario.config, base_manifest=manifest, wall_s=loop.now_s
        )
        disk.records.append((1, event_to_json(created)))
        disk.last_position = 1

    @property
    def is_up(self) -> bool:
        """Whether a process answers."""
        return self.process is not None

    @property
    def engine(self) -> Engine | None:
        """The running process's engine."""
        return self._pump.engine if self.is_up else None

    def boot(self) -> None:
        """Start a process, which reads the journal."""
        if self.process is not None:
            return
        self._book.attendance.begin()
        self.boots += 1
        self.process = Process(f"coordinator {self.boots}")
        self.context = contextvars.copy_context()
        try:
            self.context.run(self._start, self.process)
        except BaseException:
            self.process = None  # what it read from the journal is not fit to run with
            raise

    def _start(self, process: Process) -> None:
        PROCESS.set(process)
        journal = MemoryJournal(self.disk, process, self._on_append)
        journal.fence()
        engine, verdicts = load_engine(journal, self._secret)
        state, clocks = engine.state, Clocks(machine=self._loop.time, wall=self._wall_s)
        self._clock = RunClock(clocks, last_s=state.now_s, last_wall_s=state.wall_at_s(state.now_s))
        self._book.restarted(engine, self.disk.last_position)
        self._store = MemoryStore(self.disk, process)
        self._store.keep_submissions(needed_by(engine.state).submissions)
        self._count_applied(engine)
        self._mailboxes, self.sessions = Mailboxes(), SessionTable()
        for verdict in verdicts:
            self._mailboxes.of(verdict.worker).verdicts.append(verdict)
        if engine.state.phase is Phase.OVER:
            self._mailboxes.ended.set()
        site = Site(
            disk=self.disk,
            clock=self._clock.now_s,
            is_wanted=lambda command: command.command_id in engine.state.pending,
            fails=self._on_execute,
            spoils=self._spoils,
            on_aggregated=self._book.aggregated,
        )
        executor = self._work.executor(site)
        self._pump = pump = Pump(
            engine,
            journal,
            work=_Told(executor, self._on_executed),
            dispatch=self._dispatch,
            observer=self,
            clock=self._clock.now_s,
            clock_news=self._clock.news,
        )
        pump.failed.add_done_callback(lambda failed: self._on_failed(process, failed))
        self._service = WorkerService(self._context())
        self._transfers = Transfers(self._context(), self._service)
        pump.start()

    def _wall_s(self) -> float:
        return self._loop.now_s + self.wall_ahead_s

    def _context(self) -> RunContext:
        parts: Any = dict.fromkeys(("dataset", "versions", "registry", "authority", "manifest_identity"))
        return RunContext(
            run_id=self._scenario.config.run_id,
            settings=cast(Any, self._work),  # codec and sequence length are all that the calls read
            layout=self._work.layout,
            store=self._store,
            sessions=self.sessions,
            mailboxes=self._mailboxes,
            pump=self._pump,
            operator_key=b"",
            run_time=self._clock.now_s,
            wall_time=self._clock.wall_s,
            **parts,
        )

    def _count_applied(self, engine: Engine) -> None:
        """Know which position the process has applied: a crash may come between the commit and that."""
        handle, self._applied = engine.handle, itertools.count(self.disk.last_position + 1)
        self.applied_position = self.disk.last_position

        def counted(event: Event) -> list[Command]:
            if not isinstance(event, WorkerSeen):
                self.applied_position = next(self._applied)
            return handle(event)

        vars(engine)["handle"] = counted

    def crash(self, *, power_loss: bool, keep_share: float) -> None:
        """The process is gone; with the power, what was not synced is gone too."""
        process, self.process = self.process, None
        if process is None:
            return
        self._book.attendance.end()
        engine = self._pump.engine
        vars(engine).pop("handle")
        if self._book.last is None:
            self._book.last = (engine, self.applied_position)
        process.kill()
        if power_loss:
            self.disk.lose_power(keep_share)

    def sleep(self, seconds: float) -> None:
        """The machine sleeps, and its process with it."""
        if self.process is not None:
            self.process.asleep_until_s = self._loop.now_s + seconds
            self._book.attendance.end()
            self._loop.call_later(seconds, self._wake, self.process)

    def _wake(self, process: Process) -> None:
        if self.process is process:
            self._book.attendance.begin()

    def _on_failed(self, process: Process, failed: Any) -> None:
        if failed.cancelled() or not process.alive:
            return
        self._on_died(failed.exception())

    async def shut_down(self) -> None:
        """What SIGTERM does: answer who waits, commit what is queued, snapshot."""
        process = self.process
        self.sessions.close_all()
        await self._pump.stop()
        if self.process is process:
            self.crash(power_loss=False, keep_share=1.0)

    async def stop_run(self, reason: str) -> None:
        """The operator ends the run."""
        await self._pump.submit(RunStopped(at_s=self._clock.now_s(), reason=reason))

    async def change_setting(self, key: str, value: float) -> None:
        """The operator changes a setting."""
        event = SettingChanged(at_s=self._clock.now_s(), key=key, value=json.dumps(value))
        await self._pump.submit(event)
        self._book.changes.acknowledge(event)

    # ---- the pump's surroundings ---------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """The pump's observer."""
        self._note(f"applied {event}")
        self._book.applied(event, self._pump.engine)

    def command(self, command: Command, at_s: float) -> None:
        """The pump's observer."""
        self._note(f"  -> {command}")
        self._book.commanded(command)

    async def submit_result(self, command: SlowCommand) -> None:
        """The result of `command` once more, as of an executor that was slow to notice that it is not needed."""

        def never(_: SlowCommand) -> bool:
            return False

        site = Site(
            disk=self.disk,
            clock=self._clock.now_s,
            is_wanted=never,
            fails=never,
            spoils=self._spoils,
            on_aggregated=lambda *_: None,
        )
        await self._pump.submit(self._work.executor(site).execute(command))

    def _spoils(self, lease_id: LeaseId) -> Spoils:
        record = self._pump.engine.state.leases.get(lease_id)
        return Spoils.NOTHING if record is None else self._scenario.spoilers[record.lease.worker]

    def _dispatch(self, command: Command) -> None:
        match command:
            case GrantLease(lease=lease):
                self._mailboxes.of(lease.worker).deliver(lease)
            case AnnounceVerdict():
                self._mailboxes.of(command.worker).verdicts.append(command)
            case DropPayload(digest=digest):
                self._store.drop_payload(digest)
            case EndRun():
                self._mailboxes.ended.set()

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def answer(self, call: str, key: bytes, session_id: bytes, request: Any) -> Any:
        """What the process answers to one call."""
        if call in {"Enrol", "OpenSession"}:
            await self._make_known(key, *request)
            if call == "Enrol":
                return None
            return self.sessions.open(key, worker_id_of(key), is_operator=False).session_id
        session = self.sessions.find(session_id)
        if session.public_key != key:
            raise Unauthenticated("this session is another key's")
        self._service.on_alive(session)
        match call:
            case "Heartbeat":
                return await self._service.heartbeat(session, request)
            case "AcquireLease":
                return await self._service.acquire_lease(session, request)
            case "CommitSubmission":
                return await self._service.commit_submission(session, request)
            case "ReturnLease":
                return await self._service.return_lease(session, request)
            case "Fetch":
                return self._fetch(session.worker, request)
        raise Refused(f"no such call: {call}")

    async def receive(
        self, key: bytes, session_id: bytes, header: pb.UploadHeader, frames: AsyncIterator[bytes]
    ) -> Any:
        """One upload."""
        session = self.sessions.find(session_id)
        if session.public_key != key:
            raise Unauthenticated("this session is another key's")
        self._service.on_alive(session)
        return await self._transfers.upload(session, header, frames, Patience("Upload", EdgeLimits(), self._loop.time))

    async def _make_known(self, key: bytes, name: str, max_columns: int, tokens_per_s: float) -> None:
        worker = worker_id_of(key)
        known = self._pump.engine.state.workers.get(worker)
        at_s = self._clock.now_s()
        if known is None:
            event: Event = WorkerEnrolled(
                at_s=at_s,
                worker=worker,
                name=name,
                trusted=False,
                max_columns=max_columns,
                tokens_per_s=tokens_per_s,
                owner=self._scenario.owners[key],
            )
        elif known.max_columns != max_columns:
            event = CapabilityChanged(at_s=at_s, worker=worker, max_columns=max_columns, tokens_per_s=tokens_per_s)
        else:
            return
        await self._pump.submit(event)

    def _fetch(self, worker: WorkerId, lease_id: str) -> Any:
        """The base blocks of a lease of one's own."""
        record = self._pump.engine.state.leases.get(cast(Any, lease_id))
        if record is None or record.lease.worker != worker:
            raise Refused(f"lease {lease_id} is not one of this worker's")
        if record.lease.base_version not in self.disk.versions:
            raise Refused(f"version {record.lease.base_version} is not kept here")
        return self.disk.manifests[self.disk.versions[record.lease.base_version].manifest]
