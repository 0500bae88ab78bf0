"""A run that nobody serves, and what its operator orders of it meanwhile: events in its journal.

Decides that only a run which this folder leads takes any: a follower's journal is the leader's, record by record, and a
fenced one's is over. Always: under the folder's lock, so nobody begins to serve it. Touches a stopped run's journal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.engine.engine import Engine
from coordinator.engine.events import Event
from coordinator.engine.records import event_to_json
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.state import EngineState
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.lock import folder_lock
from coordinator.run.pump import load_engine
from coordinator.run.seats import require_leads
from coordinator.store.journal import Journal
from coordinator.store.ports import Snapshot

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedRun:
    """Its journal, and the engine as that leaves it."""

    journal: Journal
    engine: Engine

    @property
    def state(self) -> EngineState:
        """As the events so far leave it."""
        return self.engine.state

    @property
    def now_s(self) -> float:
        """Of the last event: how long nobody was here is for the next start to say."""
        return self.engine.state.now_s

    def record(self, event: Event) -> None:
        """Journal `event` and apply it; slow work that follows waits for a start."""
        snapshot = self.journal.latest_snapshot()
        was_clean = snapshot is not None and snapshot.position == self.journal.last_position
        self.journal.append([event_to_json(event)])
        self.engine.handle(event)
        if was_clean:  # so that the next release can go on with it, as before
            text = "".join(SnapshotText().pieces(self.engine.state))
            position = self.journal.last_position
            self.journal.save_snapshot(Snapshot(position=position, engine_version=ENGINE_VERSION, state=text))


@contextlib.contextmanager
def stopped_run(folder: RunFolder) -> Iterator[StoppedRun]:
    """Inside, nobody can begin to serve the run. ConfigError where somebody does, or where another machine leads it."""
    lock = folder_lock(folder.root)
    lock.acquire()
    try:
        require_leads(folder.root)
        journal = Journal.open(folder.journal_path)
        try:
            engine, _ = load_engine(journal, folder.draw_secret())
            yield StoppedRun(journal=journal, engine=engine)
        finally:
            journal.close()
    finally:
        lock.release()
