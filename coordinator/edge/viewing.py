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
from coordinator.edge.publicly import (
    PublicReasons,
    display_name,
    lease_of,
    public_credit,
    public_standing,
    public_state,
    round_reasons,
)
from coordinator.edge.served import RunContext
from coordinator.edge.standing import state_of
from coordinator.edge.status import RunSummary, WorkerState
from coordinator.engine.history import RoundRecord
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus, Phase
from coordinator.engine.quorum import Standings, deadline_s
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.tally import was_lost
from coordinator.page.view import (
    BytesMoved,
    ClosedRow,
    ColumnCell,
    ColumnHealth,
    Health,
    Judged,
    LeaseBar,
    LossPoint,
    OpenReason,
    OpenRound,
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
MOST_BARS = 60
MOST_ROUNDS = 200
_MISSING_NAMES = 4

_log = structlog.get_logger(__name__)
_UNDER_WAY = LIVE_STATUSES - {LeaseStatus.ACCEPTED}
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
        at, later_s = state.seen_at(max(state.now_s, now_s)), wall_s - now_s
        summary = self._status.summary()
        closed, losses = _closed(state, self._run.settings.sequence_length)
        current = _open_round(at, summary, later_s, self._names(state), self._steps_done)
        columns = _columns(at, self._names(state))
        spent_s = time.perf_counter() - began_s
        rows: list[tuple[int, WorkerRow, bool]] = []
        everybody = iter(list(state.workers.items()))
        while batch := list(islice(everybody, SLICE)):
            await asyncio.sleep(0)
            slice_s = time.perf_counter()
            rows += self._rows(batch)
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
            losses=losses,
            enrolled=summary.enrolled,
            connected=summary.connected,
            worker_states={name.value: count for name, count in summary.worker_states.items()},
            workers=shown,
            more_workers=len(rows) - len(shown),
            moved=self._moved(summary, wall_s),
            judged=_judged(state, summary),
            tokens_counted=state.totals.sequences * self._run.settings.sequence_length,
            credit=public_credit(state, self._run.registry.people.teams, self._run.settings.sequence_length),
            health=self._health(state, disk.free, disk.total),
        )

    def _names(self, state: EngineState) -> Callable[[WorkerId], str]:
        places = state.index.places
        return lambda worker: display_name(state, worker, places[worker] + 1)

    def _rows(self, batch: list[tuple[WorkerId, WorkerRecord]]) -> Iterator[tuple[int, WorkerRow, bool]]:
        engine, run = self._run.pump.engine, self._run
        state, now_s = engine.state, run.run_time()
        at, places = state.seen_at(max(state.now_s, now_s)), state.index.places
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

    def _health(self, state: EngineState, free: int, size: int) -> Health:
        return Health(
            stalled="the coordinator cannot record anything" if self._run.pump.stalled is not None else "",
            paused="the run is over" if state.phase is Phase.OVER else "",
            pending_commands=len(state.pending),
            failing_commands=len(state.failures),
            withheld_rounds=state.withheld_in_row,
            disk_free_bytes=free,
            disk_size_bytes=size,
            certificate_expires_at_s=self._certificate_expires_at_s,
            snapshot_cost_s=self._cost_s,
        )


def _closed(state: EngineState, sequence_length: int) -> tuple[tuple[ClosedRow, ...], tuple[LossPoint, ...]]:
    """Closed rounds, and each validated version with the tokens that were counted up to it."""
    history = state.history
    tokens, left = {}, state.totals.sequences
    by_version: dict[int, RoundRecord] = {}
    for record in reversed(history):
        tokens[record.round] = max(0, left) * sequence_length
        left -= record.sequences
        if record.version is not None:
            by_version[record.version] = record
    began_s = history[0].opened_at_s if history else 0.0
    losses = [
        LossPoint(
            version=one.version,
            round=int(made.round) if made else 0,
            tokens=tokens[made.round] if made else 0,
            hours=(made.closed_at_s - began_s) / 3600.0 if made else 0.0,
            loss=one.val_loss,
            standard_error=one.val_loss_se,
        )
        for one in state.validations
        for made in (by_version.get(one.version),)
        if made is not None or one.version == 0
    ]
    rows = (_closed_row(state, record, sequence_length) for record in history[-MOST_ROUNDS:])
    return tuple(rows), tuple(sorted(losses, key=lambda one: one.version))


def _closed_row(state: EngineState, record: RoundRecord, sequence_length: int) -> ClosedRow:
    return ClosedRow(
        number=int(record.round),
        version=record.version,
        closed_at_s=state.wall_at_s(record.closed_at_s) or record.closed_at_s,
        lasted_s=record.lasted_s,
        accepted=record.accepted,
        refused=record.rejected,
        lost=record.expired + record.returned,
        tokens=record.sequences * sequence_length,
        loss=record.val_loss,
        why=record.close_reason,
    )


def _open_round(
    at: EngineState,
    summary: RunSummary,
    later_s: float,
    name: Callable[[WorkerId], str],
    done: Callable[[LeaseRecord], int],
) -> OpenRound:
    current, closes_s = at.round, deadline_s(at)
    reasons = round_reasons(at, summary.waits)
    ours = [one for one in at.leases.values() if one.lease.round == current.round or one.status in _UNDER_WAY]
    ours.sort(key=lambda one: (one.status not in _UNDER_WAY, one.lease.granted_at_s))
    return OpenRound(
        number=int(current.round),
        phase=at.phase,
        base_version=int(current.base_version),
        opened_at_s=current.opened_at_s + later_s,
        closes_at_s=None if closes_s is None else closes_s + later_s,
        grace_until_s=None if current.grace_until_s is None else current.grace_until_s + later_s,
        accepted=current.accepted,
        refused=current.rejected,
        lost=current.expired + current.returned,
        reasons=tuple(OpenReason(subject=subject, text=text) for subject, text in reasons),
        more_reasons=summary.more_waits if len(reasons) == len(summary.waits) else 0,
        leases=tuple(_bar(one, later_s, name(one.lease.worker), done(one)) for one in ours[:MOST_BARS]),
        more_leases=max(0, len(ours) - MOST_BARS),
    )


def _bar(record: LeaseRecord, later_s: float, name: str, done: int) -> LeaseBar:
    lease = record.lease

    def moment(run_s: float | None) -> float | None:
        return None if run_s is None else run_s + later_s

    return LeaseBar(
        worker=name,
        columns=len(lease.columns),
        state=record.status,
        steps=lease.inner_steps,
        done=done,
        granted_at_s=lease.granted_at_s + later_s,
        committed_at_s=moment(record.committed_at_s),
        arrived_at_s=moment(record.uploaded_at_s),
        deadline_at_s=lease.deadline_s + later_s,
    )


def _columns(at: EngineState, name: Callable[[WorkerId], str]) -> tuple[ColumnCell, ...]:
    standings = Standings(at)
    missing: dict[int, list[str]] = {}
    for record in at.leases_of_round():
        if was_lost(record) or record.status is LeaseStatus.REJECTED:
            for column in record.lease.columns:
                missing.setdefault(column, []).append(name(record.lease.worker))
    cells = []
    for one in standings.columns:
        if not one.leased:
            health = ColumnHealth.UNHELD
        elif one.weighing >= standings.quorum and one.majority:
            health = ColumnHealth.WHOLE
        else:
            enough = one.weighing + one.in_time >= standings.quorum
            health = ColumnHealth.COMING if enough else ColumnHealth.SHORT
        cells.append(
            ColumnCell(
                column=one.column,
                health=health,
                leased=one.leased,
                accepted=one.accepted,
                coming=one.in_flight,
                gone=one.gone,
                missing=tuple(missing.get(one.column, ())[:_MISSING_NAMES]),
            )
        )
    return tuple(cells)


def _judged(state: EngineState, summary: RunSummary) -> Judged:
    workers = state.workers.values()
    return Judged(
        accepted=summary.submissions_accepted,
        refused=dict(sorted(summary.submissions_rejected.items())),
        leases_granted=summary.leases_granted,
        leases_expired=summary.leases_expired,
        leases_returned=summary.leases_returned,
        audits_passed=sum(one.audits_passed for one in workers),
        audits_failed=sum(one.audits_failed for one in workers),
        audited=state.config.audits.budget > 0.0,
    )
