"""The simulated coordinator's machine: one process at a time, which can die and be started again.

Decides nothing about rounds: engine, pump, calls and transfers are the real ones, put together as
`coordinator/edge/server.py` does it, on a disk in memory: enrolment with invites, sessions, signatures, limits. TLS
alone is left out.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

from coordinator.edge.auth import Authenticator
from coordinator.edge.mailboxes import Mailboxes
from coordinator.edge.membership import Membership
from coordinator.edge.rpc import Endpoint
from coordinator.edge.served import RunContext
from coordinator.edge.service import WorkerService
from coordinator.edge.sessions import SessionTable
from coordinator.edge.throttle import Throttle
from coordinator.edge.worker_calls import worker_handlers
from coordinator.engine import commands as cmd
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event, RunCreated, RunStopped, SettingChanged, WorkerSeen
from coordinator.engine.phases import Phase
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.clock import Clocks, RunClock
from coordinator.run.needed import needed_by
from coordinator.run.pump import Pump, load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.run.traffic import Traffic
from coordinator.store.registry import Registry
from coordinator.work import port
from protocol.identity import PrivateIdentity
from protocol.ids import LeaseId, RunId
from protocol.services import COORDINATOR_SERVICE
from protocol.tls import CertificateAuthority
from simulator.deterministic.calls import CallContext
from simulator.deterministic.disk import Disk, MemoryJournal, MemoryStore, OnAppend
from simulator.deterministic.invariants import Book
from simulator.deterministic.loop import PROCESS, Process, VirtualLoop
from simulator.deterministic.peers import PeerLines
from simulator.deterministic.scenario import Scenario
from simulator.deterministic.sharing_book import CountedTransfers, SharingBook, WatchedSources
from simulator.deterministic.work import SimulatedWork, Site, Spoils, arithmetic_said

INVITE_LIFE_S = 1e9
MANIFEST_KEY = PrivateIdentity.from_seed(b"the key that signs manifests....")


class _Told(port.Work):
    """SimulatedWork whose every result is told of before it is handed back."""

    def __init__(self, work: port.Work, tell: Callable[[cmd.SlowCommand], None]) -> None:
        self._work, self._tell = work, tell

    def execute(self, command: cmd.SlowCommand) -> Event:
        result = self._work.execute(command)
        self._tell(command)
        return result


class CoordinatorNode:
    """The machine. `boot` starts a process on it, `crash` ends it."""

    def __init__(
        self,
        loop: VirtualLoop,
        scenario: Scenario,
        work: SimulatedWork,
        secret: bytes,
        book: Book,
        disk: Disk,
        *,
        on_append: OnAppend,
        on_execute: Callable[[cmd.SlowCommand], bool],
        on_executed: Callable[[cmd.SlowCommand], None],
        on_died: Callable[[BaseException | None], None],
        sharing: Callable[[], tuple[SharingBook, PeerLines]],
        rots: Callable[[], bool],
        note: Callable[..., None],
    ) -> None:
        self._rots, self._sharing = rots, sharing
        self.disk = disk
        self._work = work
        self.process: Process | None = None
        self.boots = 0
        self.wall_ahead_s = 0.0
        """By how much the machine's wall clock is ahead of virtual time."""
        self._loop, self._scenario, self._secret, self._book, self._note = loop, scenario, secret, book, note
        self._on_append, self._on_execute = on_append, on_execute
        self._on_executed, self._on_died = on_executed, on_died
        self._people = scenario.people
        self.on_command: Callable[[cmd.Command], None] = lambda _: None
        self._registry = Registry.in_memory()  # as durable as the disk
        manifest = work.first_version(disk)
        book.created(disk.manifests[manifest])
        config = replace(scenario.config, codec=work.codec)
        created = RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=manifest, wall_s=loop.now_s
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
            arithmetic=lambda lease_id: arithmetic_said(engine.state, lease_id),
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
            limits=PumpLimits(snapshot_every=self._scenario.snapshot_every),
        )
        pump.failed.add_done_callback(lambda failed: self._on_failed(process, failed))
        self._handlers = self._served()
        pump.start()

    def _wall_s(self) -> float:
        return self._loop.now_s + self.wall_ahead_s

    def _context(self) -> RunContext:
        work: Any = self._work
        return RunContext(
            run_id=self._scenario.config.run_id,
            settings=work,  # it has what the calls read of them
            layout=work.layout,
            dataset=work.texts,
            versions=cast(Any, work.served(self.disk)),
            registry=self._registry,
            authority=authority(),
            manifest_identity=MANIFEST_KEY,
            store=self._store,
            sessions=self.sessions,
            mailboxes=self._mailboxes,
            pump=self._pump,
            operator_key=b"",
            run_time=self._clock.now_s,
            wall_time=self._clock.wall_s,
            lease_length=lambda _config: "",
        )

    def _served(self) -> dict[str, Any]:
        run, limits = self._context(), Throttle(clock=self._loop.time)
        auth = Authenticator(run.sessions, bytes.fromhex(authority().fingerprint))
        service, (book, lines) = WorkerService(run), self._sharing()
        service.sources = WatchedSources(run, book, lines)
        endpoint = Endpoint(COORDINATOR_SERVICE, auth, Traffic(), limits, service.on_alive)
        transfers = CountedTransfers(run, service, self._work.frame_bytes, self._rots, book, self.disk)
        return worker_handlers(endpoint, Membership(run, auth), service, transfers)

    def invite(self, owner: str, *, trusted: bool) -> str:
        """A new invite for a machine of `owner`."""
        expires_at_s = self._loop.now_s + INVITE_LIFE_S
        return self._registry.create_invite(trusted=trusted, expires_at_s=expires_at_s, owner=owner)

    def _count_applied(self, engine: Engine) -> None:
        """Know which position the process has applied: a crash may come between the commit and that."""
        handle, self._applied = engine.handle, itertools.count(self.disk.last_position + 1)
        self.applied_position = self.disk.last_position

        def counted(event: Event) -> list[cmd.Command]:
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

    async def stop_run(self, reason: str) -> None:
        """The operator ends the run."""
        await self._pump.submit(RunStopped(at_s=self._clock.now_s(), reason=reason))

    async def change_setting(self, key: str, value: float) -> None:
        """The operator changes a setting."""
        event = SettingChanged(at_s=self._clock.now_s(), key=key, value=json.dumps(value))
        await self._pump.submit(event)
        self._book.changes.acknowledge(event)

    async def order(self, event: Callable[[Engine, float], Event]) -> None:
        """The operator says something about a worker, or about the run."""
        await self._pump.submit(event(self._pump.engine, self._clock.now_s()))

    # ---- the pump's surroundings ---------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """The pump's observer."""
        self._note("applied", event)
        self._book.applied(event, self._pump.engine)

    def command(self, command: cmd.Command, at_s: float) -> None:
        """The pump's observer."""
        self._note("  ->", command)
        self._book.commanded(command, self._pump.engine.state)
        self.on_command(command)

    async def submit_result(self, command: cmd.SlowCommand) -> None:
        """The result of `command` once more, as of an executor that was slow to notice that it is not needed."""

        site = Site(
            disk=self.disk,
            clock=self._clock.now_s,
            is_wanted=lambda _: False,
            fails=lambda _: False,
            spoils=self._spoils,
            arithmetic=lambda lease_id: arithmetic_said(self._pump.engine.state, lease_id),
            on_aggregated=lambda *_: None,
        )
        await self._pump.submit(self._work.executor(site).execute(command))

    def _spoils(self, lease_id: LeaseId) -> Spoils:
        record = self._pump.engine.state.leases.get(lease_id)
        if record is None:
            return Spoils.NOTHING
        spec = self._people[record.lease.worker]
        if record.lease.audits is None:
            sleeps = spec.spoils is Spoils.REPLAY and record.lease.round < spec.lies_from
            return Spoils.NOTHING if sleeps else spec.spoils
        return Spoils.REPLAY if spec.lies_as_auditor else Spoils.NOTHING

    def _dispatch(self, command: cmd.Command) -> None:
        match command:
            case cmd.GrantLease(lease=lease):
                self._mailboxes.of(lease.worker).deliver(lease)
            case cmd.AnnounceVerdict():
                self._mailboxes.of(command.worker).verdicts.append(command)
            case cmd.ShutOut(worker=worker):
                self.sessions.close_of(worker)
            case cmd.OpenResiduals(worker=worker):
                self._mailboxes.of(worker).asked.set()
            case cmd.DropPayload(digest=digest):
                self._store.drop_payload(digest)
            case cmd.EndRun():
                self._mailboxes.ended.set()

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def answer(self, name: str, messages: AsyncIterator[bytes], context: CallContext) -> None:
        """One call, by the real handlers."""
        await self._handlers[name].stream_stream(messages, context)


@functools.cache
def authority() -> CertificateAuthority:
    """One for all simulated runs of a process: making one costs more than a seed, and nothing depends on its key."""
    return CertificateAuthority.create(RunId("simulated"))
