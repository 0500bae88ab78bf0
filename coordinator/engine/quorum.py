"""Where each column stands, whether the round may close, and why not yet.

Decides from leases and their statuses alone. A column is *settled* when its quorum is accepted, and above half of the
owners and of the sequences that it was leased to, or when nothing more is waited for; the trunk likewise, by all
leases of the round, unless it is frozen: then nobody sends anything of it. Whoever is silent or overdue (overdue.py) is
not waited for, nor whoever lost its last two leases, unless these are the larger part. With fewer workers than a quorum
needs, what was leased is all that is waited for.
When all is settled, stragglers get a grace that follows the round's own pace; at the round's deadline nobody is waited
for any more, except our own measuring of what has arrived. Audits that decide what a submission may count are waited
for until that deadline, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from coordinator.engine import audits, measuring
from coordinator.engine.ballots import Ballot
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import Case, Reason, reason
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.engine.tally import was_lost
from coordinator.engine.trust import trust_of
from protocol.ids import WorkerId
from protocol.recipe import FROZEN_TRUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStanding:
    """Leases of one column in the present round."""

    column: int
    leased: int = 0
    accepted: int = 0
    weighing: int = 0
    """Of these, the ones whose workers have a say: a quorum is made of them."""
    in_flight: int = 0
    in_time: int = 0
    """Of these, the ones that are waited for."""
    gone: int = 0
    """Leases that were lost, and submissions that were refused."""
    majority: bool = True
    """What was accepted is above half of what is waited for or here, by owners and by sequences."""


class Standings:
    """All columns of the present round, and what each worker holds in it: a view that changes as leases do."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._tally = state.index.tally
        self._config = state.config
        self.quorum = min(state.config.quorum, state.config.replicas)

    @property
    def columns(self) -> list[ColumnStanding]:
        """Each column's counts now."""
        tally = self._tally
        return [
            ColumnStanding(
                column=column,
                leased=tally.leased[column],
                accepted=tally.accepted[column],
                weighing=ballot.given_count,
                in_flight=tally.in_flight[column],
                in_time=ballot.awaited,
                gone=tally.gone[column],
                majority=self._has_majority(ballot),
            )
            for column, ballot in enumerate(tally.ballots)
        ]

    @property
    def coverage(self) -> list[int]:
        """For each column, replicas that have reported or are waited for."""
        return [ballot.due_count for ballot in self._tally.ballots]

    @property
    def trunk(self) -> Ballot:
        """The owners that have reported or are waited for."""
        return self._tally.trunk.ballot

    @property
    def standby(self) -> int:
        """Owners that are not waited for since they lost their last leases, and may be in time this once."""
        return len(self._tally.standby)

    def is_holder(self, worker: WorkerId) -> bool:
        """Whether the worker has a lease of this round that was not lost."""
        return worker in self._tally.holders

    def is_refused(self, worker: WorkerId) -> bool:
        """Whether screening refused its submission this round: it gets no second try in it."""
        return worker in self._tally.refused

    def open_to(self, worker: WorkerId) -> set[int]:
        """Columns of which neither the worker nor another machine of its owner has a lease that was not lost."""
        state, every = self._state, set(range(self._state.config.columns))
        seat, current = state.index.seated_as(state.workers[worker]), state.round.round
        if seat:
            return every - state.index.seats(current, seat)
        if not self.is_holder(worker):
            return every
        records = (r for r in state.leases_of(worker) if r.lease.round == current and not was_lost(r))
        records = (record for record in records if record.lease.audits is None)
        return every.difference(*(record.lease.columns for record in records))

    def at_risk(self) -> list[int]:
        """Columns that cannot reach the quorum with what is waited for."""
        return [column for column, ballot in enumerate(self._tally.ballots) if ballot.due_count < self.quorum]

    def replaceable(self) -> list[int]:
        """Columns at risk because something was lost, refused or is not waited for."""
        tally = self._tally
        return [
            column
            for column in self.at_risk()
            if tally.gone[column] or tally.in_flight[column] > tally.ballots[column].awaited
        ]

    def to_replace(self, worker: WorkerId) -> set[int]:
        """Of those, the ones that this worker, and its owner, have not held this round."""
        found = self.replaceable()
        return self.open_to(worker).intersection(found) if found else set()

    def is_short_of(self, worker: WorkerId) -> bool:
        """Whether a column at risk is open to this worker."""
        short = self.at_risk()
        return bool(short) and not self.open_to(worker).isdisjoint(short)

    def is_settled(self) -> bool:
        """Whether the trunk and every column have their quorum, or nothing more that is waited for.

        Where nothing is here and nothing is waited for, whatever is on its way is.
        """
        tally = self._tally
        if not self.trunk.due_count:
            return not any(tally.in_flight)
        if not self.is_trunk_settled() or self.standby > self.trunk.due_count:
            return False
        return all(
            not ballot.awaited or (ballot.given_count >= self.quorum and self._has_majority(ballot))
            for ballot in tally.ballots
        )

    def trunk_has_majority(self) -> bool:
        """Whether above half of the round's owners, and of their sequences, are accepted."""
        return self._has_majority(self.trunk)

    def is_trunk_settled(self) -> bool:
        """The same, where the trunk is in any submission; nobody waits for one that is frozen."""
        return self._config.inner.trunk == FROZEN_TRUNK or self.trunk_has_majority()

    def _has_majority(self, ballot: Ballot) -> bool:
        return ballot.has_majority(self._config.max_weight_ratio, self._config.max_owner_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the round still waits for."""

    standings: Standings
    awaited: int
    """Leases that workers have yet to deliver, and that are waited for."""
    stragglers: int
    """The same, and the overdue: a grace that has begun is for them, too."""
    out: int
    """All that workers have yet to deliver, waited for or not."""
    measuring: int
    """Submissions that we have yet to judge, or to measure again."""
    auditing: int
    """Audits that decide what a submission may count, and are under way."""
    settled: bool
    """All has its quorum, or nothing more that is waited for."""


def outlook_of(state: EngineState) -> Outlook:
    """Look at the present round."""
    standings, tally = Standings(state), state.index.tally
    return Outlook(
        standings=standings,
        awaited=tally.awaited_in_time,
        stragglers=tally.awaited_steady,
        out=tally.awaited,
        measuring=state.index.measuring + len(measuring.under_way_again(state)),
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
    """How long stragglers are waited for once every column is settled: a share of the median lease."""
    durations = lease_durations_s(state)
    share = state.config.grace_share * median(durations) if durations else 0.0
    return max(state.config.min_grace_s, share)


def lease_durations_s(state: EngineState) -> list[float]:
    """Grant to last byte, of the round's accepted leases, and so far, of those that are waited for.

    Without the latter a few fast machines would say what a usual lease takes. Time in which the coordinator was not
    there is left out.
    """
    now_s = state.now_s
    ends = ((record, record.uploaded_at_s if _is_in(record) else now_s) for record in state.leases_of_round())
    return [
        end_s - record.lease.granted_at_s - record.gap_s
        for record, end_s in ends
        if end_s is not None and (_is_in(record) or (state.is_awaited(record) and not record.overdue))
    ]


def _is_in(record: LeaseRecord) -> bool:
    return record.status is LeaseStatus.ACCEPTED


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
        return reason(Case.ROUND_DEADLINE, deadline_s=state.config.round_deadline_s, awaited=outlook.out)
    if not outlook.settled or outlook.auditing:
        return None
    if not outlook.awaited and not (state.phase is Phase.GRACE and outlook.stragglers):
        if waits_for_absent(state):
            return None
        short = outlook.standings.at_risk()
        waits_until = state.round.spare_wait_until_s
        if short and waits_until is not None and state.now_s < waits_until:
            return None
        if outlook.out:
            return reason(Case.NONE_IN_TIME, out=outlook.out, short=len(short))
        if short:
            return reason(Case.UNDER_QUORUM, columns=len(short))
        return reason(Case.ALL_RESOLVED)
    until = state.round.grace_until_s
    if until is not None and state.now_s >= until:
        return reason(Case.GRACE_OVER, stragglers=outlook.stragglers)
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
