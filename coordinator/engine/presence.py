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
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.timetable import Timetable
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
    """Latest sign of life of each worker, and who would be found silent first."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._latest: dict[WorkerId, WorkerSeen] = {}
        self._seen: Timetable[WorkerId] = Timetable()
        """Present workers by a time at which they were heard: a heartbeat is looked at only once its turn comes."""
        for record in state.workers.values():
            self.watch(record)

    def note(self, event: WorkerSeen) -> None:
        """Remember a sign of life; an older one than the latest changes nothing."""
        known = self._latest.get(event.worker)
        if known is None or event.at_s >= known.at_s:
            self._latest[event.worker] = event

    def watch(self, record: WorkerRecord) -> None:
        """A worker's record changed."""
        if not record.present:
            self._seen.discard(record.worker)
        elif record.worker not in self._seen:
            self._seen.set(record.worker, self.last_seen_s(record))

    @property
    def latest(self) -> Mapping[WorkerId, WorkerSeen]:
        """Last heartbeat of each worker, for people to look at."""
        return self._latest

    def last_seen_s(self, record: WorkerRecord) -> float:
        """The later of the last heartbeat and the last journalled event."""
        beat = self._latest.get(record.worker)
        return record.heard_at_s if beat is None else max(beat.at_s, record.heard_at_s)

    def silent(self, now_s: float) -> list[Silence]:
        """Workers that count as present and have been silent for the limit, in the order of their enrolment."""
        limit_s = silence_limit_s(self._state.config)
        found: list[Silence] = []
        while (first := self._longest_unseen()) is not None and now_s >= first.last_seen_at_s + limit_s:
            found.append(first)
            self._seen.discard(first.worker)
        for silence in found:  # until the finding is journalled they count as present
            self._seen.set(silence.worker, silence.last_seen_at_s)
        places = self._state.index.places
        return sorted(found, key=lambda silence: places[silence.worker])

    def next_silence_s(self) -> float | None:
        """When the next worker would be found silent."""
        first = self._longest_unseen()
        return None if first is None else first.last_seen_at_s + silence_limit_s(self._state.config)

    def _longest_unseen(self) -> Silence | None:
        while (first := self._seen.earliest()) is not None:
            noted_s, worker = first
            seen_s = self.last_seen_s(self._state.workers[worker])
            if seen_s <= noted_s:
                return Silence(worker=worker, last_seen_at_s=seen_s)
            self._seen.set(worker, seen_s)
        return None
