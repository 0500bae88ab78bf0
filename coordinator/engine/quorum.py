"""Where each column stands, whether the round may close, and why not yet.

Decides from leases and their statuses alone. A column is *settled* when its quorum is accepted, or nothing more is on
its way. With fewer workers than a quorum needs, what was leased is all that is waited for. When all columns are
settled, stragglers get a grace that follows the round's own pace; at the round's deadline nobody is waited for any
more, except our own measuring of what has arrived. Audits that decide what a submission may count are waited for until
that deadline, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from statistics import median

from coordinator.engine import audits
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import Case, Reason, reason
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.engine.tally import was_lost
from coordinator.engine.trust import trust_of
from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStanding:
    """Leases of one column in the present round."""

    column: int
    leased: int = 0
    accepted: int = 0
    in_flight: int = 0
    gone: int = 0
    """Leases that were lost, and submissions that were refused."""


class Standings:
    """All columns of the present round, and what each worker holds in it: a view that changes as leases do."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._tally = state.index.tally
        self.quorum = min(state.config.quorum, state.config.replicas)

    @property
    def columns(self) -> list[ColumnStanding]:
        """Each column's counts now."""
        tally = self._tally
        rows = zip(tally.leased, tally.accepted, tally.in_flight, tally.gone, strict=True)
        return [
            ColumnStanding(column=column, leased=leased, accepted=accepted, in_flight=in_flight, gone=gone)
            for column, (leased, accepted, in_flight, gone) in enumerate(rows)
        ]

    @property
    def coverage(self) -> list[int]:
        """For each column, replicas that have reported or may still report."""
        return list(map(add, self._tally.accepted, self._tally.in_flight))

    def is_holder(self, worker: WorkerId) -> bool:
        """Whether the worker has a lease of this round that was not lost."""
        return worker in self._tally.holders

    def is_refused(self, worker: WorkerId) -> bool:
        """Whether screening refused its submission this round: it gets no second try in it."""
        return worker in self._tally.refused

    def open_to(self, worker: WorkerId) -> set[int]:
        """Columns of which neither the worker nor another machine of its owner has a lease that was not lost."""
        state, every = self._state, set(range(self._state.config.columns))
        owner, current = state.workers[worker].owner, state.round.round
        if owner:
            return every - state.index.seats(current, owner)
        if not self.is_holder(worker):
            return every
        records = (r for r in state.leases_of(worker) if r.lease.round == current and not was_lost(r))
        records = (record for record in records if record.lease.audits is None)
        return every.difference(*(record.lease.columns for record in records))

    def at_risk(self) -> list[int]:
        """Columns that cannot reach the quorum with what is out."""
        replicas = map(add, self._tally.accepted, self._tally.in_flight)
        return [column for column, count in enumerate(replicas) if count < self.quorum]

    def replaceable(self) -> list[int]:
        """Columns at risk because something was lost or refused."""
        return [column for column in self.at_risk() if self._tally.gone[column]]

    def to_replace(self, worker: WorkerId) -> set[int]:
        """Of those, the ones that this worker, and its owner, have not held this round."""
        found = self.replaceable()
        return self.open_to(worker).intersection(found) if found else set()

    def is_short_of(self, worker: WorkerId) -> bool:
        """Whether a column at risk is open to this worker."""
        short = self.at_risk()
        return bool(short) and not self.open_to(worker).isdisjoint(short)

    def is_settled(self) -> bool:
        """Whether every column has its quorum, or nothing more on its way."""
        counts = zip(self._tally.accepted, self._tally.in_flight, strict=True)
        return not any(in_flight and accepted < self.quorum for accepted, in_flight in counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the round still waits for."""

    standings: Standings
    awaited: int
    """Leases that workers have yet to deliver."""
    measuring: int
    """Submissions that we have yet to judge."""
    auditing: int
    """Audits that decide what a submission may count, and are under way."""
    settled: bool
    """Every column has its quorum, or nothing more on its way."""


def outlook_of(state: EngineState) -> Outlook:
    """Look at the present round."""
    standings = Standings(state)
    return Outlook(
        standings=standings,
        awaited=state.index.tally.awaited,
        measuring=state.index.measuring,
        auditing=sum(1 for _ in audits.awaited(state)),
        settled=standings.is_settled(),
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
    """How long stragglers are waited for once every column is settled: a share of the median time, grant to upload."""
    durations = [
        record.uploaded_at_s - record.lease.granted_at_s - record.gap_s
        for record in state.leases_of_round()
        if record.uploaded_at_s is not None and record.status is LeaseStatus.ACCEPTED
    ]
    share = state.config.grace_share * median(durations) if durations else 0.0
    return max(state.config.min_grace_s, share)


def has_spare_candidates(state: EngineState, standings: Standings) -> bool:
    """Whether somebody is here who could take a column at risk, but has not asked for a lease yet."""
    return bool(standings.at_risk()) and any(
        trust_of(state.config, record).may_hold
        and record.cooling_until_s <= state.now_s
        and record.worker not in state.index.open_leases
        and record.waiting_since_s is None
        and not standings.is_refused(record.worker)
        and (standings.to_replace if standings.is_holder(record.worker) else standings.is_short_of)(record.worker)
        for record in map(state.workers.__getitem__, state.index.present)
    )


def why_close(state: EngineState, outlook: Outlook) -> Reason | None:
    """Why the round closes now; None while it stays open. Assumes that idle workers were leased what there was."""
    if state.phase not in {Phase.TRAINING, Phase.GRACE} or outlook.measuring:
        return None
    if is_past_deadline(state):
        return reason(Case.ROUND_DEADLINE, deadline_s=state.config.round_deadline_s, awaited=outlook.awaited)
    if not outlook.settled or outlook.auditing:
        return None
    if not outlook.awaited:
        if waits_for_absent(state):
            return None
        short = outlook.standings.at_risk()
        waits_until = state.round.spare_wait_until_s
        if short and waits_until is not None and state.now_s < waits_until:
            return None
        if short:
            return reason(Case.UNDER_QUORUM, columns=len(short))
        return reason(Case.ALL_RESOLVED)
    until = state.round.grace_until_s
    if until is not None and state.now_s >= until:
        return reason(Case.GRACE_OVER, stragglers=outlook.awaited)
    return None


def waits_for_absent(state: EngineState) -> bool:
    """Whether nothing is accepted and somebody who fell silent has committed: worth waiting for until the deadline."""
    tally = state.index.tally
    return tally.absent_commits > 0 and not tally.accepted_leases


def absent_commits(state: EngineState) -> list[LeaseRecord]:
    """The commits that `waits_for_absent` means."""
    if not waits_for_absent(state):
        return []
    return [r for r in state.leases_of_round() if r.status is LeaseStatus.COMMITTED and not state.is_awaited(r)]
