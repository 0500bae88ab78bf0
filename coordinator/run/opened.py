"""A run that is opened to be served: its lock, journal, stores and engine, and how they are put away again.

Decides the order: nobody else may be in, then the journal is read, then everything it names must be here, and only then
is cleared away what an interrupted process left half done. Touches the run folder.
"""

from __future__ import annotations

import structlog
import torch

from coordinator.engine.engine import Engine
from coordinator.engine.events import SettingsFixed
from coordinator.engine.phases import LIVE_STATUSES
from coordinator.engine.records import event_to_json
from coordinator.run.backup import clear_pins
from coordinator.run.changing import SETTINGS_WRITTEN, SettingsFile
from coordinator.run.clock import Clocks, RunClock
from coordinator.run.eventlog import EventLog
from coordinator.run.folder import RunFolder
from coordinator.run.lock import FolderLock
from coordinator.run.pump import load_engine
from coordinator.run.traffic import TRAFFIC, Traffic
from coordinator.run.verify import lost_payloads, require_version
from coordinator.store.journal import Journal, JournalObserver, unobserved
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from protocol.errors import StorageTrouble
from protocol.ids import Digest, LeaseId

_log = structlog.get_logger("coordinator")


class OpenedRun:
    """One run's files and stores, from `open` to `close`."""

    def __init__(self, folder: RunFolder, lock: FolderLock, clocks: Clocks, observer: JournalObserver) -> None:
        self._lock = lock
        self.journal = Journal.open(folder.journal_path, observer=observer)
        self.engine, self.verdicts = load_engine(self.journal, folder.draw_secret())
        self.settings_file = self._checked_settings(folder)
        self.settings = folder.settings()
        self.layout = folder.layout()
        self.dataset = folder.dataset()
        self.store = folder.artifacts()
        self.versions = Versions(folder.root / "versions", self.store, self.layout)
        self.registry = folder.registry()
        self.traffic = Traffic.from_json(self.journal.meta(TRAFFIC))
        state = self.engine.state
        self.clock = RunClock(clocks, last_s=state.now_s, last_wall_s=state.wall_at_s(state.now_s))
        self.event_log = EventLog(folder.events_path, self._wall_at_s)
        torch.set_num_threads(self.settings.executor_threads)
        self.executor = Executor(
            settings=self.settings,
            layout=self.layout,
            store=self.store,
            versions=self.versions,
            dataset=self.dataset,
            companions=folder.companions(self.dataset),
            dtype=folder.export_dtype,
            checkpoints=folder.checkpoints,
            clock=self.clock.now_s,
            wall_clock=self.clock.wall_s,
            tokens_of=self._tokens_of,
            oldest_needed=self._oldest_needed,
        )

    @classmethod
    def open(cls, folder: RunFolder, clocks: Clocks, observer: JournalObserver = unobserved) -> OpenedRun:
        """Open everything, and clear away what an interrupted process left half done."""
        lock = FolderLock(folder.root)
        lock.acquire()
        try:
            parts = cls(folder, lock, clocks, observer)
            parts._check_and_clear(folder)
        except BaseException:
            lock.release()
            raise
        return parts

    def _check_and_clear(self, folder: RunFolder) -> None:
        """Everything that the journal names must be here, before anything that it does not name is thrown away."""
        state = self.engine.state
        require_version(self.versions, self.store, int(state.version), state.manifest)
        for lost in lost_payloads(state, self.store):
            _log.error("payload_missing", reason=lost)
        clear_pins(folder.root)
        self.store.blocks.remove_temporaries()
        self.store.payloads.remove_temporaries()
        self.store.keep_submissions(submissions_kept(self.engine))

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
        self._lock.release()

    def _wall_at_s(self, at_s: float) -> float | None:
        return self.engine.state.wall_at_s(at_s)

    def _tokens_of(self, lease_id: LeaseId) -> int:
        record = self.engine.state.leases.get(lease_id)
        return 0 if record is None else record.lease.sequences * self.settings.sequence_length

    def _oldest_needed(self) -> int:
        """The oldest version that a lease or a pending command still needs."""
        return oldest_version_needed(self.engine)


def submissions_kept(engine: Engine) -> list[tuple[LeaseId, Digest]]:
    """Lease and digest of what may still be sent, measured or counted: a restart clears away every other submission.

    One that was counted is not among them: its process may have died after the outer step and before it dropped it.
    """
    return [
        (record.lease.lease_id, record.digest)
        for record in engine.state.leases.values()
        if record.digest is not None and record.status in LIVE_STATUSES and record.counted_in is None
    ]


def oldest_version_needed(engine: Engine) -> int:
    """The oldest version that the engine may still speak of."""
    state = engine.state
    needed = [int(state.version)]
    needed += [record.lease.base_version for record in state.leases.values() if record.status in LIVE_STATUSES]
    for command in engine.pending:
        for name in ("version", "parent_version"):
            needed += [getattr(command, name)] if hasattr(command, name) else []
    return min(needed)
