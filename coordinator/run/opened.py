"""A run that is opened to be served: its lock, journal, stores and engine, and how they are put away again.

Decides the order: nobody else may be in, then the journal is read, then everything it names must be here, and only then
is cleared away what an interrupted process left half done. Touches the run folder.
"""

from __future__ import annotations

import structlog
import torch

from coordinator.engine.events import SettingsFixed
from coordinator.engine.records import event_to_json
from coordinator.run.audit_trail import AuditTrail
from coordinator.run.changing import SETTINGS_WRITTEN, SettingsFile
from coordinator.run.clock import Clocks, RunClock
from coordinator.run.credit_trail import CreditTrail
from coordinator.run.eventlog import EventLog
from coordinator.run.folder import RunFolder
from coordinator.run.lock import folder_lock
from coordinator.run.needed import needed_by
from coordinator.run.pump import load_engine
from coordinator.run.replication import AskHer, Replication
from coordinator.run.seats import require_leads
from coordinator.run.traffic import TRAFFIC, Traffic
from coordinator.run.verify import lost_payloads, require_version
from coordinator.settings import RunSettings
from coordinator.store.audit_log import AuditLog
from coordinator.store.credit_ledger import CreditLedger
from coordinator.store.journal import Journal, JournalObserver, unobserved
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from coordinator.work.gains import WorkSettings
from coordinator.work.port import Replay
from protocol.errors import StorageTrouble
from protocol.file_lock import FileLock

_log = structlog.get_logger("coordinator")


class OpenedRun:
    """One run's files and stores, from `open` to `close`."""

    def __init__(
        self,
        folder: RunFolder,
        lock: FileLock,
        clocks: Clocks,
        observer: JournalObserver,
        replay: Replay | None = None,
        ask: AskHer | None = None,
    ) -> None:
        self._lock = lock
        self.journal = Journal.open(folder.journal_path, observer=observer)
        self.engine, self.verdicts = load_engine(self.journal, folder.draw_secret())
        self.settings_file = self._checked_settings(folder)
        self.settings = folder.settings()
        self.layout = folder.layout()
        self.dataset = folder.dataset()
        if not self.dataset.has_secret_split:
            _log.warning("screening_in_public", reason="submissions are measured on the public held-out part")
        self.store = folder.artifacts()
        self.versions = Versions(folder.root / "versions", self.store.blocks, self.layout)
        self.registry = folder.registry()
        self.engine.state.names = self.registry.people.names
        self.traffic = Traffic.from_json(self.journal.meta(TRAFFIC))
        self.replication = Replication(folder, self.journal, self.store, self.versions, ask)
        state = self.engine.state
        self.clock = RunClock(clocks, last_s=state.now_s, last_wall_s=state.wall_at_s(state.now_s))
        self.event_log = EventLog(folder.events_path, self._wall_at_s)
        self._audit_log = AuditLog.open(folder.audit_path)
        self.audit_trail = AuditTrail(self._audit_log, lambda: self.engine.state, self._wall_at_s)
        self.ledger = CreditLedger.open(folder.credit_path)
        self.credit_trail = CreditTrail(self.ledger, lambda: self.engine.state, self._wall_at_s)
        torch.set_num_threads(self.settings.executor_threads)
        self.executor = Executor(
            settings=work_settings(self.settings),
            layout=self.layout,
            payloads=self.store.payloads,
            versions=self.versions,
            dataset=self.dataset,
            companions=folder.companions(self.dataset),
            dtype=folder.export_dtype,
            checkpoints=folder.checkpoints,
            clock=self.clock.now_s,
            wall_clock=self.clock.wall_s,
            replay=replay,
        )

    @classmethod
    def open(
        cls,
        folder: RunFolder,
        clocks: Clocks,
        observer: JournalObserver = unobserved,
        replay: Replay | None = None,
        lock: FileLock | None = None,
        ask: AskHer | None = None,
    ) -> OpenedRun:
        """Open everything, and clear away what an interrupted process left half done.

        `replay`: how this process computes leases again, where it can. `lock`: the folder's, where it has it already.
        `ask` asks the witness, where there is one.
        """
        if lock is None:
            lock = folder_lock(folder.root)
            lock.acquire()
        try:
            require_leads(folder.root)
            parts = cls(folder, lock, clocks, observer, replay, ask)
            parts.journal.fence()
            parts._check_and_clear()
        except BaseException:
            lock.release()
            raise
        return parts

    def _check_and_clear(self) -> None:
        """Everything that the journal names must be here, before anything that it does not name is thrown away."""
        needed = needed_by(self.engine.state)
        require_version(self.versions, self.store, needed)
        for lost in lost_payloads(needed, self.store):
            _log.error("payload_missing", reason=lost)
        self.store.blocks.remove_temporaries()
        self.store.payloads.remove_temporaries()
        self.store.keep_submissions(needed.submissions)
        self.audit_trail.catch_up()
        self.credit_trail.catch_up()

    def _checked_settings(self, folder: RunFolder) -> SettingsFile:
        """The file agrees with the journal, or is brought into line where a process died between both."""
        state = self.engine.state
        try:
            file = SettingsFile(folder, self.journal)
            unfixed = file.unfixed(state)
            if unfixed:
                fixed = SettingsFixed(at_s=state.now_s, settings=unfixed)
                self.journal.append([event_to_json(fixed)])
                self.engine.handle(fixed)
            file.check(state)
            was_written = file.written
            file.write(state)
            if file.written != was_written:
                self.journal.set_meta(SETTINGS_WRITTEN, str(file.written))
        except BaseException:
            self.journal.close()
            raise
        return file

    def close(self) -> None:
        """Close files. What was counted is kept."""
        try:
            self.journal.set_meta(TRAFFIC, self.traffic.to_json())
            self.journal.set_meta(SETTINGS_WRITTEN, str(self.settings_file.written))
        except StorageTrouble as error:
            _log.warning("traffic_not_kept", reason=str(error))
        self.journal.close()
        self.registry.close()
        self.event_log.close()
        self._audit_log.close()
        self.ledger.close()
        self._lock.release()

    def _wall_at_s(self, at_s: float) -> float | None:
        return self.engine.state.wall_at_s(at_s)


def work_settings(settings: RunSettings) -> WorkSettings:
    """What slow work must know of a run's settings."""
    return WorkSettings(
        sequence_length=settings.sequence_length,
        heldout_limit=settings.heldout_limit,
        screening_sequences=settings.screening_sequences,
        evaluation_batch=settings.evaluation_batch,
        evaluation_device=settings.evaluation_device,
        keep_checkpoints=settings.keep_checkpoints,
    )
