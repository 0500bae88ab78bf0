"""The coordinator as one process: opens a run folder, serves it, and puts it away again.

Decides the order of starting and stopping, and who is told what the engine commands. Always: workers are served only
after the journal has been read; at a stop, calls end first, then the pump commits what is queued.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from coordinator.edge.auth import Authenticator
from coordinator.edge.desk import Desk
from coordinator.edge.dispatching import dispatched
from coordinator.edge.health import check_health
from coordinator.edge.mailboxes import Mailboxes
from coordinator.edge.membership import Membership
from coordinator.edge.operator_calls import operator_handlers
from coordinator.edge.operator_keys import KeyKeeper
from coordinator.edge.operator_service import OperatorService
from coordinator.edge.pages import Page, Query, StatusReader, put_together
from coordinator.edge.retention import forget_addresses
from coordinator.edge.rpc import Endpoint
from coordinator.edge.served import ArchiveFacts, RunContext
from coordinator.edge.service import WorkerService
from coordinator.edge.sessions import SessionTable
from coordinator.edge.standby_desk import StandbyDesk
from coordinator.edge.standby_service import StandbyEndpoint, StandbyService
from coordinator.edge.status import RunStatus, RunSummary
from coordinator.edge.throttle import Throttle
from coordinator.edge.transfers import Transfers
from coordinator.edge.whereabouts import Whereabouts
from coordinator.edge.witnessing import witness_for
from coordinator.edge.worker_calls import worker_handlers
from coordinator.engine.phases import Phase
from coordinator.page.access import Access
from coordinator.page.address import PageAddress
from coordinator.run.audit_trail import Observers
from coordinator.run.clock import Clocks
from coordinator.run.eventlog import configure_logging
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import InviteTerms
from coordinator.run.lease_length import LeaseLengths
from coordinator.run.opened import OpenedRun
from coordinator.run.pump import Observer, Pump
from coordinator.run.pump_limits import PumpLimits
from coordinator.run.reaching import control_path, last_port, write_endpoint
from coordinator.run.receipts import ReceiptBook
from coordinator.settings import RunSettings
from coordinator.store.journal import JournalObserver, unobserved
from coordinator.store.registry import DEFAULT_INVITE_LIFE_S
from coordinator.work.port import Replay
from coordinator.work.replaying import NO_REPLAY
from protocol import local_socket
from protocol.errors import ConfigError, LocalError
from protocol.file_lock import FileLock
from protocol.hosts import address_text
from protocol.limits import MAX_CONCURRENT_RPCS, server_options
from protocol.services import COORDINATOR_SERVICE, OPERATOR_SERVICE, STANDBY_SERVICE

if TYPE_CHECKING:
    from coordinator.edge.showing import Showing

HEALTH_SERVICE = "grpc.health.v1.Health"

GOODBYE_S = 5.0
"""After the run's end, workers that are there get this long to ask once more and hear that it is over."""

_log = structlog.get_logger("coordinator")


class CoordinatorServer:
    """One run, served. `start` once, `stop` once."""

    def __init__(
        self,
        run_folder: RunFolder | Path,
        *,
        clocks: Clocks | None = None,
        throttle: Throttle | None = None,
        journal_observer: JournalObserver = unobserved,
        pump_limits: PumpLimits | None = None,
        replay: Replay | None = None,
        page: PageAddress | None = None,
        lock: FileLock | None = None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        """`replay`: how this process computes a lease again to audit it; None: it cannot. `page`: where the run's page
        is shown; None: nowhere. `lock`: the folder's, where this process has it already."""
        self._folder = run_folder if isinstance(run_folder, RunFolder) else RunFolder.open(run_folder)
        self._clocks = clocks or Clocks()
        self._throttle = throttle or Throttle()
        self._journal_observer = journal_observer
        self._pump_limits = pump_limits
        self._replay = replay
        self._page, self._lock, self._observers = page, lock, observers
        self._access = Access()
        self._showing: Showing | None = None
        self._run: RunContext | None = None
        self._parts: OpenedRun | None = None
        self._grpc: Any = None
        self._local: local_socket.LocalServer | None = None
        self._retention: asyncio.Task[None] | None = None
        self.port = 0
        self.page_url = ""
        """Where the run's page is; empty where it is shown nowhere."""

    async def start(self) -> int:
        """Read the journal, listen, and answer with the port."""
        configure_logging()
        # Reading settings, keys, data and journal blocks; nothing else runs in this loop yet.
        parts = await asyncio.to_thread(
            partial(OpenedRun.open, lock=self._lock, ask=witness_for(self._folder)),
            *(self._folder, self._clocks, self._journal_observer, self._replay),
        )
        try:
            self._parts, self._run = parts, self._assemble(parts)
            audits = parts.engine.state.chosen_config.audits
            if audits.budget > 0 and audits.by_coordinator and self._replay is None:
                _log.warning("audits_not_by_coordinator", reason=NO_REPLAY)
            return await self._serve(parts, self._run)
        except BaseException:
            # The folder is let go of however far this came: the next start must find it free.
            await self.stop(0.0) if self._run is not None else parts.close()
            raise

    async def _serve(self, parts: OpenedRun, run: RunContext) -> int:
        if run.pump.engine.state.phase is Phase.OVER:
            run.mailboxes.ended.set()
        parts.replication.start()
        run.pump.start()
        self._retention = asyncio.create_task(forget_addresses(run.registry.people, run.wall_time))
        self._grpc = grpc.aio.server(options=server_options(), maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
        self._add_services(self._grpc, run, parts)
        self.port = self._listen(run.settings)
        await self._grpc.start()
        if run.whereabouts is not None:
            await run.whereabouts.start(self.port)
        standby = StandbyDesk(self._folder, parts.replication)
        desk = Desk(self._operator, KeyKeeper(run, self._access.end_of), standby)
        self._local = await local_socket.serve(control_path(self._folder), desk.answer)
        await asyncio.to_thread(write_endpoint, self._folder, run.settings.host, self.port)
        if self._page is not None:
            from coordinator.edge.showing import Showing

            self._showing = Showing(self._page, self._folder, run, self._status, self._access, desk)
            self.page_url = await self._showing.start()
            self._operator.page_login = self._showing.login_urls
        _log.info("coordinator_started", run_id=run.run_id, port=self.port, round=run.pump.engine.state.round.round)
        return self.port

    async def stop(self, grace: float | None = 1.0) -> None:
        """End calls (those under way get `grace` seconds), commit what is queued, close everything."""
        run, parts = self._run, self._parts
        if run is None or parts is None:
            return
        self._run = self._parts = None
        if self._local is not None:
            await self._local.close()
        if self._showing is not None:
            await self._showing.stop()
        if self._retention is not None:
            self._retention.cancel()
        if run.whereabouts is not None:
            await run.whereabouts.stop()
        run.sessions.close_all()  # answers the long polls, which would otherwise use up the whole grace
        if self._grpc is not None:
            await self._grpc.stop(grace)
        parts.replication.close()  # whoever waits for a follower is told so, or the pump would wait for ever
        await run.pump.stop()
        await asyncio.to_thread(parts.close)
        _log.info("coordinator_stopped", run_id=run.run_id)

    async def finished(self) -> None:
        """Wait for the run's end, and until the workers that are there have heard of it; raises what broke the pump."""
        run = self._opened()
        ended = asyncio.ensure_future(run.mailboxes.ended.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {ended, run.pump.failed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if run.pump.failed.done() and not run.pump.failed.cancelled():
                run.pump.failed.result()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._everybody_told(run), GOODBYE_S)
        finally:
            ended.cancel()

    def summary(self) -> RunSummary:
        """The run at this moment, in short."""
        self._opened()
        return self._status.summary()

    async def status(self) -> RunStatus:
        """The run with everything that is known of it; between the pages other calls go on."""
        self._opened()

        async def ask(query: Query) -> Page:
            await asyncio.sleep(0)
            return self._status.page(query)

        return await put_together(self._status.summary(), ask)

    async def create_invites(
        self, *, count: int = 1, trusted: bool = False, expires_in_s: float = DEFAULT_INVITE_LIFE_S
    ) -> list[str]:
        """Join links, for whoever runs the coordinator in their own process."""
        self._opened()
        terms = InviteTerms.checked(count=count, trusted=trusted, life_s=expires_in_s, owner="", uses=1)
        return await asyncio.to_thread(self._operator.make_links, terms)

    def _opened(self) -> RunContext:
        if self._run is None:
            raise LocalError("the coordinator is not running: call start() first")
        return self._run

    def _assemble(self, parts: OpenedRun) -> RunContext:
        mailboxes, sessions = Mailboxes(), SessionTable()
        engine = parts.engine
        for verdict in parts.verdicts:
            mailboxes.of(verdict.worker).verdicts.append(verdict)
        dispatch = partial(dispatched, mailboxes, sessions, parts)
        pump = Pump(
            engine,
            parts.journal,
            work=parts.executor,
            dispatch=dispatch,
            observer=Observers(parts.event_log, parts.audit_trail, parts.credit_trail, parts.traffic, *self._observers),
            clock=parts.clock.now_s,
            clock_news=parts.clock.news,
            journal_observer=self._journal_observer,
            limits=self._pump_limits,
            settled=parts.replication.settled,
        )
        folder = self._folder
        return RunContext(
            run_id=folder.run_id,
            settings=parts.settings,
            layout=parts.layout,
            dataset=parts.dataset,
            store=parts.store,
            versions=parts.versions,
            registry=parts.registry,
            sessions=sessions,
            mailboxes=mailboxes,
            pump=pump,
            authority=folder.authority(),
            manifest_identity=folder.manifest_identity(),
            operator_key=folder.operator_identity().public_key,
            run_time=parts.clock.now_s,
            wall_time=parts.clock.wall_s,
            replication=parts.replication,
            lease_length=LeaseLengths(parts.settings, parts.layout).planned,
            receipts=ReceiptBook(
                run_id=folder.run_id,
                ledger=parts.ledger,
                identity=folder.manifest_identity(),
                tokens_a_sequence=parts.settings.sequence_length,
            ),
            archive_facts=ArchiveFacts(
                settings=folder.settings,
                dtype=folder.export_dtype,
                companions=partial(folder.companions, parts.dataset),
            ),
            whereabouts=Whereabouts.of(folder, parts.settings, parts.clock.wall_s, parts.replication.epoch),
        )

    def _add_services(self, server: Any, run: RunContext, parts: OpenedRun) -> None:
        traffic, replication = parts.traffic, parts.replication
        auth = Authenticator(run.sessions, bytes.fromhex(run.authority.fingerprint))
        self._service = service = WorkerService(run)
        self._status = StatusReader(
            run.pump.engine,
            run_id=run.run_id,
            name=run.settings.name,
            run_time=run.run_time,
            wall_time=run.wall_time,
            traffic=traffic,
            connected=run.sessions.has,
            lease_length=LeaseLengths(run.settings, run.layout).told,
            stalled=lambda: run.pump.stalled,
            standby=lambda: replication.state,
            elsewhere=partial(service.sources.kept_elsewhere, lambda: replication.state, service.archives),
        )
        self._operator = operator = OperatorService(run, parts.settings_file, lambda: self.port, self._status)
        gate = replication.gate
        standby = StandbyService(self._folder, replication, auth)
        standby_calls = StandbyEndpoint(STANDBY_SERVICE, auth, traffic, self._throttle)
        worker_calls = Endpoint(COORDINATOR_SERVICE, auth, traffic, self._throttle, service.on_alive, gate)
        operator_calls = Endpoint(OPERATOR_SERVICE, auth, traffic, self._throttle)
        health_calls = Endpoint(HEALTH_SERVICE, auth, traffic, self._throttle)
        handlers = {
            COORDINATOR_SERVICE: worker_handlers(worker_calls, Membership(run, auth), service, Transfers(run, service)),
            OPERATOR_SERVICE: operator_handlers(operator_calls, operator),
            STANDBY_SERVICE: standby.handlers(standby_calls),
            # Check alone: Watch is a stream that a stranger could hold for ever.
            HEALTH_SERVICE: dict(
                [health_calls.anonymous("Check", health_pb2.HealthCheckRequest, partial(check_health, run.pump.engine))]
            ),
        }
        for name, methods in handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))

    def _listen(self, settings: RunSettings) -> int:
        chain, key = self._folder.leaf()
        credentials = grpc.ssl_server_credentials([(key, chain)])
        wanted = settings.port or last_port(self._folder)
        for port in dict.fromkeys((wanted, settings.port)):
            try:
                return int(self._grpc.add_secure_port(address_text(settings.host, port), credentials))
            except RuntimeError:
                continue  # gRPC does not say which of the two it was
        raise ConfigError(
            f"cannot listen on {address_text(settings.host, wanted)}: another program (another coordinator?) has that "
            "port, or this machine does not have that address; end that program, or set another host or port in "
            f"{self._folder.root / 'settings.toml'}"
        )

    async def _everybody_told(self, run: RunContext) -> None:
        while True:
            there = {
                w.worker for w in run.pump.engine.state.workers.values() if w.present and run.sessions.has(w.worker)
            }
            if there <= self._service.told_over:
                return
            await asyncio.sleep(0.05)
