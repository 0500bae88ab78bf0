"""Pictures of the run for the page: made in the event loop, from the engine's state, a slice at a time.

Decides how often, and how many rows a picture holds. Always: no slice keeps the loop longer than a page of status does,
making pictures takes at most a fiftieth of the loop's time (or comes every `SLOWEST_S`), and what is given away is
immutable and public (`publicly.py`). Touches the disk's statistics in a thread, nothing else.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import structlog

from coordinator.edge.headline import headline_of
from coordinator.edge.pages import StatusReader
from coordinator.edge.pictured import (
    closed_rounds,
    columns_of,
    energy_of,
    judged_of,
    open_round_of,
    trained_seconds,
)
from coordinator.edge.publicly import (
    PublicReasons,
    display_name,
    lease_of,
    public_credit,
    public_standing,
    public_state,
)
from coordinator.edge.served import RunContext
from coordinator.edge.standing import state_of
from coordinator.edge.status import RunSummary, WorkerState
from coordinator.engine.phases import Phase
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.page.view import (
    BytesMoved,
    Health,
    RunCard,
    RunView,
    WorkerRow,
)
from protocol.ids import WorkerId

SOONEST_S = 1.0
SLOWEST_S = 4.0
"""Credit is to be seen within 5 s of acceptance."""
SHARE_OF_LOOP = 0.02
SLICE = 100
"""Workers that are looked at before others have a turn."""
MOST_WORKERS = 2000

_log = structlog.get_logger(__name__)
_LOOKED_AT_FIRST = {state: place for place, state in enumerate(WorkerState)}


@dataclass(slots=True)
class _Counted:
    """Bytes at a moment, to tell rates by."""

    at_s: float
    up: int
    down: int


class RunViews:
    """Makes pictures of one run and gives them away."""

    def __init__(
        self, run: RunContext, status: StatusReader, card: RunCard, *, certificate_expires_at_s: float, folder: str
    ) -> None:
        self._run = run
        self._status = status
        self._card = card
        self._certificate_expires_at_s = certificate_expires_at_s
        self._folder = folder
        self._cost_s = 0.0
        self._counted: list[_Counted] = []

    async def publish_for_ever(self, give: Callable[[RunView], None]) -> None:
        """Give away one picture after another, until cancelled. What cannot be made is logged, and made again."""
        while True:
            try:
                give(await self.picture())
            except Exception as error:  # a page that shows nothing must not end a run
                _log.error("page_not_made", error=repr(error))
            await asyncio.sleep(min(SLOWEST_S, max(SOONEST_S, self._cost_s / SHARE_OF_LOOP)))

    async def picture(self) -> RunView:
        """The run at this moment; workers' rows may be a few milliseconds younger."""
        began_s = time.perf_counter()
        state, wall_s, now_s = self._run.pump.engine.state, self._run.wall_time(), self._run.run_time()
        at, later_s = _as_time_goes(state, now_s), wall_s - now_s
        summary = self._status.summary()
        closed, losses = closed_rounds(state, self._run.settings.sequence_length)
        ahead_s = wall_s - at.now_s if state.paused else later_s
        current = open_round_of(at, summary, later_s, ahead_s, self._names(state), self._steps_done)
        columns = columns_of(at, self._names(state))
        spent_s = time.perf_counter() - began_s
        rows: list[tuple[int, WorkerRow, bool]] = []
        trained_s = 0.0
        everybody = iter(list(state.workers.items()))
        while batch := list(islice(everybody, SLICE)):
            await asyncio.sleep(0)
            slice_s = time.perf_counter()
            rows += self._rows(batch)
            trained_s += sum(trained_seconds(state.workers[worker]) for worker, _ in batch)
            spent_s += time.perf_counter() - slice_s
        rows.sort(key=lambda row: (row[0], row[1].place))
        shown = tuple(row for _, row, _ in rows[:MOST_WORKERS])
        disk = await asyncio.to_thread(shutil.disk_usage, self._folder)
        self._cost_s = spent_s
        return RunView(
            at_s=wall_s,
            headline=headline_of(state, summary, self._run.pump.stalled),
            card=self._card.model_copy(
                update={
                    "version": state.version,
                    "exported_version": summary.latest_checkpoint.version if summary.latest_checkpoint else None,
                    "started_at_s": summary.started_at_s or wall_s,
                    "max_rounds": state.config.max_rounds,
                }
            ),
            open_round=current,
            columns=columns,
            closed=closed,
            rounds_closed=summary.rounds_closed,
            left_s=summary.left_s,
            losses=losses,
            enrolled=summary.enrolled,
            connected=summary.connected,
            worker_states={name.value: count for name, count in summary.worker_states.items()},
            workers=shown,
            more_workers=len(rows) - len(shown),
            moved=self._moved(summary, wall_s),
            energy=energy_of(trained_s, self._run.settings.watts),
            judged=judged_of(state, summary),
            tokens_counted=state.totals.sequences * self._run.settings.sequence_length,
            credit=public_credit(state, self._run.registry.people.teams, self._run.settings.sequence_length),
            health=self._health(state, summary, disk.free, disk.total),
        )

    def _names(self, state: EngineState) -> Callable[[WorkerId], str]:
        places = state.index.places
        return lambda worker: display_name(state, worker, places[worker] + 1)

    def _rows(self, batch: list[tuple[WorkerId, WorkerRecord]]) -> Iterator[tuple[int, WorkerRow, bool]]:
        engine, run = self._run.pump.engine, self._run
        state, now_s = engine.state, run.run_time()
        at, places = _as_time_goes(state, now_s), state.index.places
        reasons = PublicReasons(at)
        for worker, _ in batch:
            record, beat = state.workers[worker], engine.last_seen.get(worker)
            lease = lease_of(state, record)
            fresh = beat if beat and lease and beat.lease_id == lease.lease.lease_id else None
            heard_s = max(record.heard_at_s, beat.at_s) if beat else record.heard_at_s
            row = WorkerRow(
                place=places[worker] + 1,
                name=display_name(state, worker, places[worker] + 1),
                state=public_state(record, lease),
                why=reasons.of(record, lease, fresh.inner_step if fresh else 0),
                standing=public_standing(state, record),
                connected=record.present and run.sessions.has(worker),
                columns=len(lease.lease.columns) if lease else 0,
                accepted=record.accepted,
                refused=sum(record.rejected.values()),
                lost=record.leases_expired,
                tokens_per_s=fresh.tokens_per_s if fresh else record.tokens_per_s,
                silent_s=max(0.0, now_s - heard_s),
            )
            yield _LOOKED_AT_FIRST[state_of(record, lease)], row, record.present

    def _steps_done(self, record: LeaseRecord) -> int:
        """Of a lease under way, by its worker's last heartbeat."""
        beat = self._run.pump.engine.last_seen.get(record.lease.worker)
        ours = beat is not None and beat.lease_id == record.lease.lease_id
        return beat.inner_step if beat is not None and ours else 0

    def _moved(self, summary: RunSummary, wall_s: float) -> BytesMoved:
        """Rates are over the last minute, or since this process began."""
        now = _Counted(wall_s, summary.bytes_up, summary.bytes_down)
        self._counted = [one for one in self._counted if 0.0 <= wall_s - one.at_s <= 60.0] + [now]
        first = self._counted[0]
        past_s = max(now.at_s - first.at_s, 1e-9) if len(self._counted) > 1 else float("inf")
        return BytesMoved(
            received_bytes=now.up,
            sent_bytes=now.down,
            received_bytes_per_s=(now.up - first.up) / past_s,
            sent_bytes_per_s=(now.down - first.down) / past_s,
            calls=summary.calls,
            refused_calls=summary.refused_calls,
        )

    def _health(self, state: EngineState, summary: RunSummary, free: int, size: int) -> Health:
        return Health(
            stalled="the coordinator cannot record anything" if self._run.pump.stalled is not None else "",
            paused=_gives_nothing(state),
            held=state.hold is not None,
            pending_commands=len(state.pending),
            failing_commands=len(state.failures),
            failed_commands=summary.failed_commands,
            withheld_rounds=state.withheld_in_row,
            disk_free_bytes=free,
            disk_size_bytes=size,
            certificate_expires_at_s=self._certificate_expires_at_s,
            snapshot_cost_s=self._cost_s,
        )


def _as_time_goes(state: EngineState, now_s: float) -> EngineState:
    """The state at this moment; of a run that is paused at the moment when its time came to a stand."""
    return state.seen_at(state.hold.since_s if state.paused and state.hold else max(state.now_s, now_s))


def _gives_nothing(state: EngineState) -> str:
    """Why no work is given out; empty while it is."""
    if state.phase is Phase.OVER:
        return "the run is over"
    return f"the run is {state.hold.kind}" if state.hold is not None else ""
