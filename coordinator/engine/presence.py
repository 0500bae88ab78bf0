"""Who was heard of when: the one thing the engine holds that is not journalled.

Decides nothing by itself. Heartbeats come every few seconds from everybody and would fill the journal, so they stay
out of the state, out of snapshots, and out of every decision that `handle` takes. They only serve to *propose* a
`WorkerSilent` event; that one is journalled, and what it brings about is therefore the same in every replay. In a new
process this memory is empty, which is why `CoordinatorResumed` gives everybody a full silence limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.engine.config import EngineConfig
from coordinator.engine.events import WorkerSeen
from coordinator.engine.state import EngineState, WorkerRecord
from protocol.ids import WorkerId


def silence_limit_s(config: EngineConfig) -> float:
    """So long may a worker say nothing before its lease is lost."""
    return config.heartbeat_interval_s * config.heartbeat_misses


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A worker and when it was last heard."""

    worker: WorkerId
    last_seen_at_s: float


class Presence:
    """Latest sign of life of each worker."""

    def __init__(self) -> None:
        self._latest: dict[WorkerId, WorkerSeen] = {}

    def note(self, event: WorkerSeen) -> None:
        """Remember a sign of life; an older one than the latest changes nothing."""
        known = self._latest.get(event.worker)
        if known is None or event.at_s >= known.at_s:
            self._latest[event.worker] = event

    @property
    def latest(self) -> Mapping[WorkerId, WorkerSeen]:
        """Last heartbeat of each worker, for people to look at."""
        return self._latest

    def last_seen_s(self, record: WorkerRecord) -> float:
        """The later of the last heartbeat and the last journalled event."""
        beat = self._latest.get(record.worker)
        return record.heard_at_s if beat is None else max(beat.at_s, record.heard_at_s)

    def silent(self, state: EngineState, now_s: float) -> list[Silence]:
        """Workers that count as present and have been silent for the limit."""
        limit_s = silence_limit_s(state.config)
        seen = ((record.worker, self.last_seen_s(record)) for record in state.workers.values() if record.present)
        return [Silence(worker=worker, last_seen_at_s=at_s) for worker, at_s in seen if now_s >= at_s + limit_s]

    def next_silence_s(self, state: EngineState) -> float | None:
        """When the next worker would be found silent."""
        present = [self.last_seen_s(record) for record in state.workers.values() if record.present]
        return min(present) + silence_limit_s(state.config) if present else None
