"""The pump: the only writer of a run's state.

Decides the order journal, apply, execute, answer. Always: an event is durable before the engine sees it, the engine has
seen it before a command is carried out, and the caller of `submit` is answered last; whatever queued up while a commit
was on its way shares the next one. Heartbeats alone are applied without a record.

An event that the engine finds illegal is in the journal by then, and is skipped: the engine raises and leaves its state
as it was, and does so again on every replay, so both sides of a restart agree. The submitter gets the `IllegalEvent`.
Any other exception from the engine may have left it half changed: the pump stops, and a restart reads the journal.

Slow commands are carried out beside all this (`coordinator/run/slow.py`), and their results come back as events.

A disk that takes no writes stops nothing and loses nothing: what could not be recorded was not applied either, its
submitter hears so and comes again, what the pump itself owes the journal is kept and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from coordinator.engine.commands import AnnounceVerdict, Command, SlowCommand
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event, RunCreated, Ticked, WorkerSeen, WorkerSilent
from coordinator.engine.records import event_from_json, event_to_json
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.clock import LOOK_EVERY_S
from coordinator.run.delegation import Delegation
from coordinator.run.migrations import MIGRATIONS, Migrations, migrated_snapshot
from coordinator.run.pump_limits import PumpLimits
from coordinator.run.queued import QueuedEvent, end_with, refuse
from coordinator.run.slow import SlowCommands
from coordinator.store.journal import JournalObserver, Moment, unobserved
from coordinator.store.ports import EventStore, Snapshot
from coordinator.work.port import Work
from protocol.errors import ConfigError, IllegalEvent, LocalError, StorageTrouble, Unavailable

MAX_BATCH = 256
"""Events in one commit: a bound on how long a reply waits behind others."""
LEAST_WAIT_S = 0.001
"""For a timer that is not due yet: two clocks differ by what a float rounds away, and no loop may spin meanwhile."""

_ASKED_ANEW = (Ticked, WorkerSilent)
"""What time calls for is asked again once a full disk has room: a lease that it grants begins then."""

_log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Told of each event after its commit and each command before it is carried out."""

    def event(self, event: Event) -> None:
        """`event` was applied."""

    def command(self, command: Command, at_s: float) -> None:
        """`command` follows from it."""


def load_engine(
    journal: EventStore, secret: bytes, migrations: Migrations = MIGRATIONS, *, only_read: bool = False
) -> tuple[Engine, list[AnnounceVerdict]]:
    """The engine as the journal leaves it, and the verdicts since the last snapshot.

    A journal of the release before is migrated; `only_read`: in memory alone.
    """
    if journal.engine_version == ENGINE_VERSION:
        snapshot = journal.latest_snapshot()
    else:
        snapshot = migrated_snapshot(journal, ENGINE_VERSION, migrations)
        if not only_read:
            journal.save_snapshot(snapshot)
    records = journal.read(snapshot.position if snapshot else 0)
    verdicts: list[AnnounceVerdict] = []
    if snapshot is not None:
        engine = Engine.restore(json.loads(snapshot.state), secret)
    else:
        first = next(records, None)
        created = event_from_json(first[1]) if first else None
        if not isinstance(created, RunCreated):
            raise ConfigError("the journal does not begin with the run's creation; it was cut or is another program's")
        engine, _ = Engine.create(created, secret)
    for _, record in records:
        with contextlib.suppress(IllegalEvent):
            commands = engine.handle(event_from_json(record))
            verdicts += [command for command in commands if isinstance(command, AnnounceVerdict)]
    return engine, verdicts


class Pump:
    """Drives one engine. `start` once, `stop` once."""

    def __init__(
        self,
        engine: Engine,
        journal: EventStore,
        *,
        work: Work,
        dispatch: Callable[[Command], None],
        observer: Observer,
        clock: Callable[[], float],
        clock_news: Callable[[], list[Event]] = list,
        journal_observer: JournalObserver = unobserved,
        limits: PumpLimits | None = None,
        settled: Callable[[Sequence[str], int], Awaitable[None]] | None = None,
    ) -> None:
        """`settled` returns when what was committed may be answered for: at once, or when a follower has it, too."""
        self.engine = engine
        self._limits = limits = limits or PumpLimits()
        self._journal = journal
        self._dispatch = dispatch
        self._observer = observer
        self._settled = settled
        self._clock = clock
        self._clock_news = clock_news
        self._at = journal_observer
        self.stalled: str | None = None
        """Why nothing can be recorded at present; None while all is well."""
        self._owed: list[QueuedEvent] = []
        """What the pump itself could not record yet."""
        self._stop_asked = asyncio.Event()
        self._queue: list[QueuedEvent] = []
        self._wake = asyncio.Event()
        self.delegation = Delegation(engine)
        self._slow = SlowCommands(
            work,
            is_wanted=engine.is_pending,
            report=self._report,
            clock=clock,
            retry_first_s=limits.retry_first_s,
            delegation=self.delegation,
        )
        self._since_snapshot = 0
        self._snapshot_text = SnapshotText()
        self._snapshot: asyncio.Task[None] | None = None
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._writer = ThreadPoolExecutor(1, "journal")
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin, with what an earlier process left unfinished."""
        for command in self.engine.pending:
            self._slow.push(command)
        self._tasks = [
            asyncio.create_task(self._run(self._write_loop())),
            asyncio.create_task(self._run(self._slow.run())),
        ]

    async def stop(self) -> None:
        """Commit what is queued, let the running command end, snapshot, and leave the rest to the next start."""
        self._stopping = True
        self._stop_asked.set()
        self._wake.set()
        self._slow.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._snapshot_saved()
        if not self.failed.done():
            self._begin_snapshot()
            await self._snapshot_saved()
            self.failed.cancel()
        self._writer.shutdown()
        self._slow.close()

    async def submit(self, event: Event) -> list[Command]:
        """Record and apply `event`; the answer means that it is durable. Raises IllegalEvent where it is one."""
        if self._stopping:
            raise Unavailable("the coordinator is stopping; try again when it is back")
        done: asyncio.Future[list[Command]] = asyncio.get_running_loop().create_future()
        self._queue.append(QueuedEvent(event, done))
        self._wake.set()
        # A caller that goes away (its connection broke) must not take the event with it.
        return await asyncio.shield(done)

    def seen(self, event: WorkerSeen) -> None:
        """Apply a heartbeat; nothing is recorded."""
        if self._stopping:
            return
        try:
            commands = self.engine.handle(event)
        except IllegalEvent as error:
            _log.warning("heartbeat_ignored", worker=event.worker, error=str(error))
            return
        if commands:
            raise LocalError(f"a heartbeat is not journalled and may cause nothing, got {commands}")

    async def _run(self, loop: Awaitable[None]) -> None:
        try:
            await loop
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _log.error("pump_failed", error=repr(error))
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._stopping = True
        self._stop_asked.set()
        end_with(self.failed, error)
        refuse(self._queue, error)
        self._queue.clear()
        self._wake.set()
        self._slow.stop()

    async def _write_loop(self) -> None:
        while True:
            await self._wait_for_work()
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            if not self._stopping:
                batch = self._with_proposals(batch)
            if not batch and self._stopping:
                return
            await self._commit(batch)

    def _with_proposals(self, batch: list[QueuedEvent]) -> list[QueuedEvent]:
        """`batch` and what time calls for; nothing new of that while earlier proposals are owed to the journal.

        A gap goes before whatever came after it, which would be late otherwise. Who was not heard during a gap is asked
        only after it is applied.
        """
        gaps = [QueuedEvent(event, None) for event in (*self.engine.greeting(self._clock()), *self._clock_news())]
        due = [] if self._owed or gaps else [QueuedEvent(event, None) for event in self.engine.due(self._clock())]
        return [*self._owed, *gaps, *batch, *due]

    async def _wait_for_work(self) -> None:
        if self._queue or self._stopping:
            return
        self._wake.clear()
        wakeup_s = self.engine.next_wakeup_s()
        left_s = LOOK_EVERY_S if wakeup_s is None else min(LOOK_EVERY_S, wakeup_s - self._clock())
        delay_s = max(left_s, LEAST_WAIT_S) if left_s > 0.0 else 0.0
        if self.stalled is not None:
            delay_s = self._limits.stall_retry_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), delay_s)

    async def _commit(self, batch: Sequence[QueuedEvent]) -> None:
        if not batch:
            return
        try:
            records = [event_to_json(queued.event) for queued in batch]
            try:
                await asyncio.get_running_loop().run_in_executor(self._writer, self._journal.append, records)
            except StorageTrouble as error:
                self._stall(batch, error)
                return
            self._go_on()
            if self._settled is not None:
                await self._settled(records, self._journal.last_position)
            for queued, record in zip(batch, records, strict=True):
                self._at(Moment.APPLYING, (record,))
                self._apply(queued, record)
        except BaseException as error:
            refuse(batch, error)
            raise
        self._since_snapshot += len(batch)
        # a snapshot costs what the state holds: of a large one it comes after more events
        if self._since_snapshot >= max(self._limits.snapshot_every, self.engine.state.records // 2):
            self._begin_snapshot()

    def _stall(self, batch: Sequence[QueuedEvent], error: StorageTrouble) -> None:
        """Nothing of `batch` is recorded, so nothing of it has happened: whoever sent it is told to send it again."""
        if self.stalled is None:
            _log.error("journal_stalled", reason=str(error))
        self.stalled = str(error)
        self._owed = [queued for queued in batch if queued.done is None and not isinstance(queued.event, _ASKED_ANEW)]
        told = f"the coordinator cannot record anything now ({error}); what it has accepted is safe, try again later"
        refuse(batch, Unavailable(told))

    def _go_on(self) -> None:
        if self.stalled is not None:
            _log.info("journal_goes_on", after=self.stalled)
        self.stalled, self._owed = None, []

    def _apply(self, queued: QueuedEvent, record: str) -> None:
        try:
            commands = self.engine.handle(queued.event)
        except IllegalEvent as error:
            _log.warning("event_refused", event_kind=type(queued.event).__name__, error=str(error))
            refuse([queued], error)
            return
        self._observer.event(queued.event)
        for command in commands:
            self._observer.command(command, queued.event.at_s)
            if isinstance(command, SlowCommand):
                self._slow.push(command)
            else:
                self._dispatch(command)
        self._at(Moment.APPLIED, (record,))
        if queued.done is not None and not queued.done.done():
            queued.done.set_result(commands)

    def _begin_snapshot(self) -> None:
        """Of this very moment, at which all that is in the journal is applied; it is written beside what comes next."""
        if self._snapshot is not None and not self._snapshot.done():
            return
        self._since_snapshot = 0
        saving = self._save_snapshot(self._journal.last_position, self._snapshot_text.pieces(self.engine.state))
        self._snapshot = asyncio.create_task(self._run(saving))

    async def _snapshot_saved(self) -> None:
        if self._snapshot is not None:
            await asyncio.gather(self._snapshot, return_exceptions=True)

    async def _save_snapshot(self, position: int, pieces: Iterator[str]) -> None:
        written: list[str] = []
        while piece := list(itertools.islice(pieces, self._limits.snapshot_slice)):
            written += piece
            await asyncio.sleep(0)
        snapshot = Snapshot(position=position, engine_version=ENGINE_VERSION, state="".join(written))
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._journal.save_snapshot, snapshot)
        except StorageTrouble as error:
            # The events are all there; only the next start reads more of them. Tried again after as many more.
            _log.warning("snapshot_put_off", reason=str(error))

    async def _report(self, result: Event) -> None:
        """Submit a result; where it cannot be recorded, again and again: the work is done and must not be lost."""
        while not self._stopping:  # at a stop it stays pending and is done again after the restart
            try:
                await self.submit(result)
            except Unavailable:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop_asked.wait(), self._limits.stall_retry_s)
            except (IllegalEvent, LocalError):
                return  # the submitter of a result has nobody to tell
            else:
                return
