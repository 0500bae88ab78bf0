"""Where each column stands, whether the round may close, and why not yet.

Decides from leases and their statuses alone. A column is *settled* when its quorum is accepted, or nothing more is on
its way. With fewer workers than a quorum needs, what was leased is all that is waited for. When all columns are
settled, stragglers get a grace that follows the round's own pace; at the round's deadline nobody is waited for any
more, except our own measuring of what has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from coordinator.engine.phases import LOST_STATUSES, LeaseStatus, Phase
from coordinator.engine.screening import BLAMED_KEYS
from coordinator.engine.state import EngineState, LeaseRecord
from protocol.ids import WorkerId


@dataclass(slots=True, kw_only=True)
class ColumnStanding:
    """Leases of one column in the present round."""

    column: int
    leased: int = 0
    accepted: int = 0
    in_flight: int = 0
    gone: int = 0
    """Leases that were lost, and submissions that were refused."""


@dataclass(slots=True, kw_only=True)
class Standings:
    """All columns of the present round, and what each worker holds in it."""

    quorum: int
    columns: list[ColumnStanding]
    held: dict[WorkerId, set[int]] = field(default_factory=dict)
    refused: set[WorkerId] = field(default_factory=set)
    """Workers whose submission screening refused this round: they get no second try in it."""

    @property
    def coverage(self) -> dict[int, int]:
        """Replicas that have reported or may still report."""
        return {standing.column: standing.accepted + standing.in_flight for standing in self.columns}

    def at_risk(self) -> list[int]:
        """Columns that cannot reach the quorum with what is out."""
        return [s.column for s in self.columns if s.accepted + s.in_flight < self.quorum]

    def to_replace(self, worker: WorkerId) -> set[int]:
        """Columns at risk because something was lost or refused, and that this worker has not held this round."""
        held = self.held.get(worker, set())
        return {column for column in self.at_risk() if self.columns[column].gone and column not in held}

    def unsettled(self) -> list[ColumnStanding]:
        """Columns below quorum that something is on its way for."""
        return [s for s in self.columns if s.accepted < self.quorum and s.in_flight > 0]

    def add_lease(self, worker: WorkerId, columns: tuple[int, ...]) -> None:
        """Count one more granted lease."""
        self.held.setdefault(worker, set()).update(columns)
        for column in columns:
            self.columns[column].leased += 1
            self.columns[column].in_flight += 1


def was_lost(record: LeaseRecord) -> bool:
    """Whether nothing came of a lease without its worker being to blame: its columns may be leased to it again."""
    late = record.verdict is not None and not record.verdict.accepted and record.verdict.key not in BLAMED_KEYS
    return record.status in LOST_STATUSES or late


def standings_of(state: EngineState) -> Standings:
    """Count the present round's leases."""
    config = state.config
    leased, accepted, in_flight, gone = ([0] * config.columns for _ in range(4))
    held: dict[WorkerId, set[int]] = {}
    refused: set[WorkerId] = set()
    for record in state.leases_of_round():
        worker, columns = record.lease.worker, record.lease.columns
        tallies = [leased]
        if was_lost(record):
            tallies.append(gone)
        else:
            held.setdefault(worker, set()).update(columns)
            if record.status is LeaseStatus.REJECTED:
                refused.add(worker)
                tallies.append(gone)
            elif record.status is LeaseStatus.ACCEPTED:
                tallies.append(accepted)
            elif state.is_awaited(record):
                tallies.append(in_flight)
        for tally in tallies:
            for column in columns:
                tally[column] += 1
    rows = enumerate(zip(leased, accepted, in_flight, gone, strict=True))
    return Standings(
        quorum=min(config.quorum, config.replicas),
        columns=[ColumnStanding(column=c, leased=n, accepted=a, in_flight=f, gone=g) for c, (n, a, f, g) in rows],
        held=held,
        refused=refused,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the round still waits for."""

    standings: Standings
    awaited: tuple[LeaseRecord, ...]
    """Leases that workers have yet to deliver."""
    measuring: tuple[LeaseRecord, ...]
    """Submissions that we have yet to judge."""

    @property
    def settled(self) -> bool:
        """Every column has its quorum, or nothing more on its way."""
        return not self.standings.unsettled()


def outlook_of(state: EngineState) -> Outlook:
    """Look at the present round."""
    awaited = [record for record in state.leases.values() if state.is_awaited(record)]
    return Outlook(
        standings=standings_of(state),
        awaited=tuple(record for record in awaited if record.status is not LeaseStatus.UPLOADED),
        measuring=tuple(record for record in awaited if record.status is LeaseStatus.UPLOADED),
    )


def deadline_s(state: EngineState) -> float | None:
    """When the round closes at the latest; None before its first lease."""
    first = state.round.first_lease_at_s
    return None if first is None else first + state.config.round_deadline_s


def is_past_deadline(state: EngineState) -> bool:
    """Whether the round's deadline has passed."""
    limit = deadline_s(state)
    return limit is not None and state.now_s >= limit


def grace_s(state: EngineState) -> float:
    """How long stragglers are waited for once every column is settled: a share of the round's median lease."""
    durations = [
        record.committed_at_s - record.lease.granted_at_s
        for record in state.leases_of_round()
        if record.committed_at_s is not None and record.status is LeaseStatus.ACCEPTED
    ]
    share = state.config.grace_share * median(durations) if durations else 0.0
    return max(state.config.min_grace_s, share)


def spare_candidates(state: EngineState, standings: Standings) -> list[WorkerId]:
    """Workers that are here and could take a column at risk, but have not asked for a lease yet."""
    at_risk = bool(standings.at_risk())
    busy = {record.lease.worker for record in state.leases.values() if record.status is LeaseStatus.GRANTED}
    return [
        record.worker
        for record in state.workers.values()
        if record.present
        and record.quarantine is None
        and record.cooling_until_s <= state.now_s
        and record.worker not in busy
        and record.waiting_since_s is None
        and record.worker not in standings.refused
        and (at_risk if record.worker not in standings.held else standings.to_replace(record.worker))
    ]


def why_close(state: EngineState, outlook: Outlook) -> str | None:
    """Why the round closes now; None while it stays open. Assumes that idle workers were leased what there was."""
    if state.phase not in {Phase.TRAINING, Phase.GRACE} or outlook.measuring:
        return None
    if is_past_deadline(state):
        lacking = f", {len(outlook.awaited)} still out" if outlook.awaited else ""
        return f"the round's deadline of {state.config.round_deadline_s:.0f} s has passed{lacking}"
    if not outlook.settled:
        return None
    if not outlook.awaited:
        if absent_commits(state):
            return None
        short = outlook.standings.at_risk()
        waits_until = state.round.spare_wait_until_s
        if short and waits_until is not None and state.now_s < waits_until:
            return None
        if short:
            return f"every lease is resolved; {len(short)} columns stay under quorum and nobody idle can serve them"
        return "every lease is resolved and every column has its quorum"
    until = state.round.grace_until_s
    if until is not None and state.now_s >= until:
        return f"every column is settled and the grace for {len(outlook.awaited)} stragglers is over"
    return None


def absent_commits(state: EngineState) -> list[LeaseRecord]:
    """Where nothing is accepted: commits of workers that fell silent, worth waiting for until the round's deadline."""
    records = list(state.leases_of_round())
    if any(record.status is LeaseStatus.ACCEPTED for record in records):
        return []
    return [record for record in records if record.status is LeaseStatus.COMMITTED and not state.is_awaited(record)]
