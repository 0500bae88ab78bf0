"""The parts of a picture of the run that are made of the engine's state alone: pure functions, one for each panel.

Decides how many rows each has, and how an expert column stands. Always: what they give is public (`publicly.py`).
`later_s` is what run time lags behind the calendar, and `ahead_s` the same for what lies ahead: more in a pause, in
which deadlines move on with the clock; `name` is under which name a worker is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from coordinator.edge.publicly import round_reasons
from coordinator.edge.status import RunSummary
from coordinator.engine.history import RoundRecord
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus, Phase
from coordinator.engine.quorum import Standings, deadline_s
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.stages import told_to_worker
from coordinator.engine.state import EngineState
from coordinator.engine.tally import was_lost
from coordinator.page.view import (
    ClosedRow,
    ColumnCell,
    ColumnHealth,
    Energy,
    Judged,
    LeaseBar,
    LossPoint,
    OpenReason,
    OpenRound,
)
from protocol.ids import WorkerId

MOST_BARS = 60
MOST_ROUNDS = 200
_MISSING_NAMES = 4
_UNDER_WAY = LIVE_STATUSES - {LeaseStatus.ACCEPTED}


def trained_seconds(record: WorkerRecord) -> float:
    """What a worker's judged submissions took it to train, as its latest reports have it: at most from grant to commit,
    by the coordinator's own clock."""
    if not record.reports:
        return 0.0
    judged = record.accepted + sum(record.rejected.values())
    return judged * median(report.train_s for report in record.reports)


def energy_of(trained_s: float, watts: int) -> Energy:
    """At so many watts a machine."""
    hours = trained_s / 3600.0
    return Energy(machine_hours=hours, watts_assumed=watts, kwh=hours * watts / 1000.0)


def closed_rounds(state: EngineState, sequence_length: int) -> tuple[tuple[ClosedRow, ...], tuple[LossPoint, ...]]:
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
        why="; ".join(told_to_worker(why) for why in (record.unpublished, *record.withheld, record.closed) if why),
    )


def open_round_of(
    at: EngineState,
    summary: RunSummary,
    later_s: float,
    ahead_s: float,
    name: Callable[[WorkerId], str],
    done: Callable[[LeaseRecord], int],
) -> OpenRound:
    """The round that is open, why it is, and its leases; `done` tells the steps that a worker says it has taken."""
    current, closes_s = at.round, None if at.phase is Phase.OVER else deadline_s(at)
    reasons = round_reasons(at, summary.waits)
    ours = [one for one in at.leases.values() if one.lease.round == current.round or one.status in _UNDER_WAY]
    ours.sort(key=lambda one: (one.status not in _UNDER_WAY, one.lease.granted_at_s))
    return OpenRound(
        number=int(current.round),
        phase=at.phase,
        base_version=int(current.base_version),
        opened_at_s=current.opened_at_s + later_s,
        closes_at_s=None if closes_s is None else closes_s + ahead_s,
        grace_until_s=None if current.grace_until_s is None else current.grace_until_s + ahead_s,
        accepted=current.accepted,
        refused=current.rejected,
        lost=current.expired + current.returned,
        reasons=tuple(OpenReason(subject=subject, text=text) for subject, text in reasons),
        more_reasons=summary.more_waits if len(reasons) == len(summary.waits) else 0,
        leases=tuple(_bar(one, later_s, ahead_s, name(one.lease.worker), done(one)) for one in ours[:MOST_BARS]),
        more_leases=max(0, len(ours) - MOST_BARS),
    )


def _bar(record: LeaseRecord, later_s: float, ahead_s: float, name: str, done: int) -> LeaseBar:
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
        deadline_at_s=lease.deadline_s + ahead_s,
    )


def columns_of(at: EngineState, name: Callable[[WorkerId], str]) -> tuple[ColumnCell, ...]:
    """How each expert column stands in the open round, and who is missing there."""
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


def judged_of(state: EngineState, summary: RunSummary) -> Judged:
    """What came of leases and submissions, over the whole run."""
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
