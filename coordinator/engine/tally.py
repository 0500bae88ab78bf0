"""One round's leases, counted by column, by worker and by what became of them, as their records change.

Decides what a lease counts as while its own round is open: on its way, accepted, or gone; and whether the round waits
for it (`Voice`, `LeaseRecord.overdue`). Holds always: the counts are what counting all of the round's leases anew would
give, and keeping them costs an event the same however many leases there are.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from typing import NamedTuple, TypeVar

from coordinator.engine.ballots import Ballot, TrunkBallot
from coordinator.engine.history import UsualGain
from coordinator.engine.phases import LIVE_STATUSES, LOST_STATUSES, LeaseStatus
from coordinator.engine.reasons import AUDIT_FAILED, BLAMED_KEYS
from coordinator.engine.rows import LeaseRecord
from protocol.ids import LeaseId, WorkerId

K = TypeVar("K", bound=Hashable)


class Voice(NamedTuple):
    """What of a worker's record decides how its leases count."""

    present: bool
    votes: bool
    """Its submissions weigh something."""
    steady: bool
    """It has not lost its last leases, one after the other: it is waited for."""


def was_lost(record: LeaseRecord) -> bool:
    """Whether nothing came of a lease without its worker being to blame: its columns may be leased to it again."""
    blamed = BLAMED_KEYS | {AUDIT_FAILED}
    late = record.verdict is not None and not record.verdict.accepted and record.verdict.key not in blamed
    return record.status in LOST_STATUSES or late


class RoundTally:
    """Counts of one round."""

    __slots__ = (
        "absent_commits",
        "accepted",
        "accepted_leases",
        "awaited",
        "awaited_in_time",
        "awaited_steady",
        "ballots",
        "gains",
        "gone",
        "holders",
        "in_flight",
        "leased",
        "leases",
        "live",
        "lost",
        "refused",
        "seats",
        "spreads",
        "standby",
        "trunk",
        "untimed",
    )

    def __init__(self, columns: int) -> None:
        self.leases: dict[LeaseId, None] = {}
        """In the order in which they were granted."""
        self.leased, self.accepted, self.in_flight, self.gone = ([0] * columns for _ in range(4))
        """By column. Gone: leases that were lost, and submissions that were refused."""
        self.holders: dict[WorkerId, int] = {}
        """Leases of each worker that were not lost."""
        self.seats: dict[str, dict[int, int]] = {}
        """Of the same leases, those of each owner's machines by column: never above 1."""
        self.refused: dict[WorkerId, int] = {}
        """Submissions of each worker that screening refused."""
        self.lost = 0
        self.live = 0
        self.accepted_leases = 0
        self.ballots = [Ballot() for _ in range(columns)]
        """By column: votes that are here, and that are waited for."""
        self.trunk = TrunkBallot()
        self.standby: dict[str, int] = {}
        """Leases of each person, neither overdue nor waited for: their workers lost the last ones."""
        self.untimed = 0
        """Leases that workers have yet to deliver, and of which nobody has said yet when they are overdue."""
        self.awaited = 0
        """Leases that workers have yet to deliver."""
        self.awaited_steady = 0
        """Of these, the ones of workers that have not lost their last ones."""
        self.awaited_in_time = 0
        """Of these, the ones that are not overdue: they are waited for."""
        self.absent_commits = 0
        """Commits of workers that fell silent."""
        self.gains: list[float] = []
        """Held-out gains of the accepted, ascending; nan (screening is off) is left out."""
        self.spreads: list[float] = []
        """Standard deviations of the gains of those that weigh something, over sequences, ascending."""

    def count(self, record: LeaseRecord, *, seat: str, person: str, voice: Voice, by: int) -> None:
        """Count a lease in (`by` 1) or out again (`by` -1): a machine whose vote is `person`'s, with columns
        counted as those of `seat`, the same or, where that is the only machine, empty."""
        status, worker = record.status, record.lease.worker
        tallies = [self.leased]
        self.live += by * (status in LIVE_STATUSES)
        if was_lost(record):
            self.lost += by
            tallies.append(self.gone)
        else:
            _add(self.holders, worker, by)
            if seat:
                self.seat(seat, record.lease.columns, by)
            if status is LeaseStatus.REJECTED:
                _add(self.refused, worker, by)
                tallies.append(self.gone)
            elif status is LeaseStatus.ACCEPTED:
                self.accepted_leases += by
                _count_in(self.gains, record.heldout_gain, by)
                if voice.votes:
                    _count_in(self.spreads, record.part_spread, by)
                tallies.append(self.accepted)
                if voice.votes:
                    self._vote(record, person, by, given=True)
            elif status is LeaseStatus.COMMITTED and not voice.present:
                self.absent_commits += by
            else:
                tallies.append(self.in_flight)
                self._expect(record, person, voice, by)
        for tally in tallies:
            for column in record.lease.columns:
                tally[column] += by

    def gains_median(self, least: int) -> float | None:
        """Of the accepted submissions' gains; None where there are fewer than `least`."""
        return None if len(self.gains) < least else _middle(self.gains)

    def usual_gain(self, least: int) -> UsualGain | None:
        """Of the accepted submissions; None where fewer than `least` of them say how much theirs differs."""
        if min(len(self.gains), len(self.spreads)) < least:
            return None
        return UsualGain(gain=_middle(self.gains), spread=_middle(self.spreads))

    def _expect(self, record: LeaseRecord, person: str, voice: Voice, by: int) -> None:
        """Something may still come of the lease."""
        here = record.status is LeaseStatus.UPLOADED  # ours to judge: neither late nor lost any more
        self.awaited += by * (not here)
        self.untimed += by * (not here and record.overdue_at_s is None)
        in_time = here or (voice.steady and not record.overdue)
        self.awaited_steady += by * (voice.steady and not here)
        self.awaited_in_time += by * (in_time and not here)
        if not voice.votes:
            return
        if in_time:
            self._vote(record, person, by, given=False)
        elif not record.overdue:
            _add(self.standby, person, by)

    def _vote(self, record: LeaseRecord, person: str, by: int, *, given: bool) -> None:
        sequences = record.lease.sequences
        self.trunk.put(person, sequences, by, given=given)
        for column in record.lease.columns:
            self.ballots[column].put(sequences, by, given=given)

    def seat(self, person: str, columns: tuple[int, ...], by: int) -> None:
        """Count one machine's columns for its person."""
        seats = self.seats.setdefault(person, {})
        for column in columns:
            _add(seats, column, by)
        if not seats:
            del self.seats[person]


def _count_in(values: list[float], value: float, by: int) -> None:
    """Into the values, which ascend, or (`by` -1) out again; what is no number is in none."""
    if not math.isfinite(value):
        return
    if by > 0:
        insort(values, value)
    else:
        del values[bisect_left(values, value)]


def _middle(values: list[float]) -> float:
    """The median of values in order."""
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _add(counts: dict[K, int], key: K, by: int) -> None:
    left = counts.get(key, 0) + by
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)
