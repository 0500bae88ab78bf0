"""Notes what the operator did to a run that nobody serves: an event in its journal, while its lock is held.

Decides nothing. Touches the journal of a stopped run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from coordinator.engine.event import Event
from coordinator.run.changing import record_while_stopped
from coordinator.run.lock import folder_lock
from coordinator.run.pump import load_engine
from coordinator.store.journal import Journal

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

EventAt = Callable[[float], Event]
"""Makes an event of a moment in run time: the last one that the journal knows."""


@contextlib.contextmanager
def noting(folder: RunFolder) -> Iterator[Callable[[EventAt], None]]:
    """Inside, nobody can begin to serve the run; what is given writes one event. ConfigError where somebody does."""
    lock = folder_lock(folder.root)
    lock.acquire()
    try:
        journal = Journal.open(folder.journal_path)
        try:
            engine, _ = load_engine(journal, folder.draw_secret())
            yield lambda event_at: record_while_stopped(journal, engine, event_at(engine.state.now_s))
        finally:
            journal.close()
    finally:
        lock.release()
