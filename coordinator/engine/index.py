"""What the engine would otherwise look for among all workers and leases after each event. Derived, never recorded.

Decides nothing. Holds always: everything here follows from the state's workers, leases and round alone, so a snapshot
leaves it out, and an index that is built anew from a state equals the one that was kept up to date with it
(`tests/coordinator/engine/conftest.py` compares the two after every event).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from coordinator.engine.config import EngineConfig
from coordinator.engine.lease import GrantedLease
from coordinator.engine.medians import NormMedian
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus
from coordinator.engine.rows import LeaseRecord, RoundState, WorkerRecord
from coordinator.engine.schedules import recipe_steps
from coordinator.engine.speeds import Speeds
from coordinator.engine.tally import RoundTally, Voice, was_lost
from coordinator.engine.timetable import Timetable
from coordinator.engine.trust import trust_of
from protocol.ids import Digest, LeaseId, RoundNumber, WorkerId

K = TypeVar("K", bound=Hashable)

LOSSES_NOT_WAITED_FOR = 2
"""Whoever lost so many leases in a row is leased like others and counts when it delivers, but no round waits for it."""
_NO_LEASES: dict[LeaseId, None] = {}


class Index:
    """Of two tables, which it reads. Kept by `EngineState`, which reports every row that it replaces."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        workers: Mapping[WorkerId, WorkerRecord],
        leases: Mapping[LeaseId, LeaseRecord],
        current: RoundState,
    ) -> None:
        self._config = config
        self._workers, self._leases = workers, leases
        self._round = current.round
        self.present: set[WorkerId] = set()
        self._tallies: dict[RoundNumber, RoundTally] = {}
        self._leases_of: dict[WorkerId, dict[LeaseId, None]] = {}
        self._resting_on: dict[Digest, set[LeaseId]] = {}
        self._served: tuple[object, frozenset[int]] = (None, frozenset())
        self.open_leases: dict[WorkerId, LeaseId] = {}
        """The granted, not yet committed lease of each worker that has one."""
        self.deadlines: Timetable[LeaseId] = Timetable()
        """Of granted leases."""
        self.overdue: Timetable[LeaseId] = Timetable()
        """Leases that workers have yet to deliver, by when they will be overdue."""
        self._voices: dict[WorkerId, Voice] = {}
        self.measuring = 0
        """Submissions, of whatever round, that we have yet to judge."""
        self.open_audits: dict[LeaseId, None] = {}
        """Leases that were drawn to be computed again, and have not been settled."""
        self._shadows: dict[LeaseId, dict[LeaseId, None]] = {}
        """By the lease that they audit."""
        self.places: dict[WorkerId, int] = {}
        """Enrolment order."""
        self.machines: dict[str, set[WorkerId]] = {}
        """Of each person that the operator named as an owner, or whose machine has several workers."""
        self.trusted: dict[WorkerId, None] = {}
        """The few whom the operator vouched for: audits look among them after every event."""
        self.idle: set[WorkerId] = set()
        """Here, and waiting for a lease."""
        self.queue: list[tuple[float, WorkerId]] = []
        """The idle and since when, ascending: first come first."""
        self.idle_fresh: set[WorkerId] = set()
        """Of those, the ones without a lease in the present round."""
        self.free: set[WorkerId] = set()
        """Here and without a lease, waiting or not, and not set aside: could be leased, when not cooling."""
        self.cooling: Timetable[WorkerId] = Timetable()
        """Workers that are leased again only later."""
        self.quarantines: Timetable[WorkerId] = Timetable()
        """By the time at which they end at the latest."""
        self.speeds = Speeds(recipe_steps(config, self._round))
        self.norms = NormMedian()
        for worker in workers.values():
            self.put_worker(None, worker)
        for lease in leases.values():
            self.put_lease(None, lease)

    def person_place(self, worker: WorkerId) -> int:
        """The place in which the first of this worker's owner's machines enrolled: one number a person."""
        several = self.machines.get(self._workers[worker].person)
        return min(self.places[one] for one in several) if several else self.places[worker]

    def seated_as(self, worker: WorkerRecord) -> str:
        """The person by whom its columns are counted; empty: it is the only one of its person."""
        return worker.person if worker.person in self.machines else ""

    # ---- keeping up ---------------------------------------------------------------------------------

    def put_worker(self, old: WorkerRecord | None, new: WorkerRecord) -> None:
        """`new` takes the place of `old`."""
        worker = new.worker
        if old is None:
            self.places[worker] = len(self.places)
            self._join_machines(new)
        _mark(self.trusted, worker, new.trusted)
        self._hear(new)
        self._queue_up(old, new)
        if new.cooling_until_s > 0 and (old is None or old.cooling_until_s != new.cooling_until_s):
            self.cooling.set(worker, new.cooling_until_s)
        if new.quarantine is not None:
            self.quarantines.set(worker, new.quarantine.until_s)
        else:
            self.quarantines.discard(worker)
        self.speeds.put(old, new)
        self._place(new)

    def put_lease(self, old: LeaseRecord | None, new: LeaseRecord | None) -> None:
        """`new` takes the place of `old`; None: there was, or is, no such lease."""
        record = new or old
        assert record is not None
        lease = record.lease
        worker, lease_id = lease.worker, lease.lease_id
        self._rest_on(old, new)
        _mark(self.open_audits, lease_id, new is not None and new.audit_due)
        if old is not None and new is not None and _counts_alike(old, new):
            return
        self._count(old, new)
        if new is None:
            self._forget(lease)
        elif old is None:
            self._leases_of.setdefault(worker, {})[lease_id] = None
            if lease.audits is not None:
                self._shadows.setdefault(lease.audits, {})[lease_id] = None
        if new is not None and new.status is LeaseStatus.GRANTED:
            self.open_leases[worker] = lease_id
            self.deadlines.set(lease_id, new.lease.deadline_s)
        elif old is not None and old.status is LeaseStatus.GRANTED:
            self.open_leases.pop(worker, None)
            self.deadlines.discard(lease_id)
        self._time(lease_id, new)
        self._place(self._workers[worker])

    def keep_leases(self, kept: Mapping[LeaseId, LeaseRecord]) -> None:
        """`kept` is the table of leases from now on; what is not in it is forgotten."""
        forgotten = [record for lease_id, record in self._leases.items() if lease_id not in kept]
        self._leases = kept
        for record in forgotten:
            self.put_lease(record, None)

    def turn_to(self, current: RoundState, config: EngineConfig) -> None:
        """Another round is the present one."""
        self._config, self._round = config, current.round
        self.speeds.turn_to(recipe_steps(config, self._round))
        for lease_round in [number for number, tally in self._tallies.items() if not tally.leases]:
            del self._tallies[lease_round]
        for record in self._workers.values():
            self._hear(record)
            self._place(record)

    def forget_cooled(self, now_s: float) -> None:
        """Who has cooled by now needs no looking at any more."""
        for worker in self.cooling.due(now_s):
            self.cooling.discard(worker)

    # ---- looking ------------------------------------------------------------------------------------

    @property
    def tally(self) -> RoundTally:
        """Counts of the present round."""
        return self._tally(self._round)

    def leases_of(self, worker: WorkerId) -> Iterable[LeaseId]:
        """All known leases of a worker, oldest first."""
        return self._leases_of.get(worker, _NO_LEASES)

    def shadows_of(self, lease_id: LeaseId) -> Iterable[LeaseId]:
        """Leases, whatever became of them, that were granted to audit this one."""
        return self._shadows.get(lease_id, _NO_LEASES)

    def resting_on(self, digest: Digest) -> AbstractSet[LeaseId]:
        """Leases whose submission is these bytes: live and not counted yet, or still to be audited."""
        return self._resting_on.get(digest, frozenset())

    def seats(self, number: RoundNumber, person: str) -> AbstractSet[int]:
        """Columns that machines of `person` have in round `number`, by leases that were not lost."""
        tally = self._tallies.get(number)
        return tally.seats[person].keys() if tally is not None and person in tally.seats else frozenset()

    def served_columns(self, sticky: dict[WorkerId, tuple[int, ...]]) -> frozenset[int]:
        """All columns that somebody held in the round before."""
        if self._served[0] is not sticky:
            self._served = (sticky, frozenset(column for columns in sticky.values() for column in columns))
        return self._served[1]

    # ---- parts --------------------------------------------------------------------------------------

    def _join_machines(self, new: WorkerRecord) -> None:
        """The first sibling of a worker makes two of them: what the first has is counted by person from then on."""
        person = new.person
        if person in self.machines or new.owner:
            self.machines.setdefault(person, set()).add(new.worker)
        elif new.sibling_of:
            self.machines[person] = {new.worker, new.sibling_of} & (self._workers.keys() | {new.worker})
            for lease_id in self.leases_of(new.sibling_of):
                record = self._leases[lease_id]
                if record.lease.audits is None and not was_lost(record):
                    self._tally(record.lease.round).seat(person, record.lease.columns, 1)

    def _tally(self, number: RoundNumber) -> RoundTally:
        if number not in self._tallies:
            self._tallies[number] = RoundTally(self._config.columns)
        return self._tallies[number]

    def _count(self, old: LeaseRecord | None, new: LeaseRecord | None) -> None:
        record = new or old
        assert record is not None
        if record.lease.audits is not None:
            return  # a shadow has no seat in a round
        worker, tally = self._workers[record.lease.worker], self._tally(record.lease.round)
        seat, person, voice = self.seated_as(worker), worker.person, self._voices[worker.worker]
        if old is not None:
            tally.count(old, seat=seat, person=person, voice=voice, by=-1)
            self.measuring -= old.status is LeaseStatus.UPLOADED
        if new is None:
            tally.leases.pop(record.lease.lease_id, None)
            return
        tally.count(new, seat=seat, person=person, voice=voice, by=1)
        tally.leases[new.lease.lease_id] = None
        self.measuring += new.status is LeaseStatus.UPLOADED

    def _forget(self, lease: GrantedLease) -> None:
        _drop(self._leases_of, lease.worker, lease.lease_id)
        if lease.audits is not None:
            _drop(self._shadows, lease.audits, lease.lease_id)

    def _rest_on(self, old: LeaseRecord | None, new: LeaseRecord | None) -> None:
        before, after = _live_digest(old), _live_digest(new)
        if before == after:
            return
        record = new or old
        assert record is not None
        if before is not None:
            self._resting_on[before].discard(record.lease.lease_id)
            if not self._resting_on[before]:
                del self._resting_on[before]
        if after is not None:
            self._resting_on.setdefault(after, set()).add(record.lease.lease_id)

    def _hear(self, worker: WorkerRecord) -> None:
        """Count the worker's leases as its record now says; see `RoundTally.count`."""
        voice = Voice(
            present=worker.present,
            votes=trust_of(self._config, worker).weight > 0.0,
            steady=worker.lost_in_row < LOSSES_NOT_WAITED_FOR,
        )
        before = self._voices.get(worker.worker)
        if voice == before:
            return
        self._voices[worker.worker] = voice
        _put(self.present, worker.worker, voice.present)
        if before is None:
            return
        seat, person = self.seated_as(worker), worker.person
        for lease_id in self.leases_of(worker.worker):
            record = self._leases[lease_id]
            if record.lease.audits is not None:
                continue  # a shadow has no seat in a round
            tally = self._tally(record.lease.round)
            tally.count(record, seat=seat, person=person, voice=before, by=-1)
            tally.count(record, seat=seat, person=person, voice=voice, by=1)

    def _time(self, lease_id: LeaseId, record: LeaseRecord | None) -> None:
        """Note when the lease will be overdue, where it may be."""
        out = record is not None and record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}
        if record is not None and out and record.overdue_at_s is not None and not record.overdue:
            self.overdue.set(lease_id, record.overdue_at_s)
        else:
            self.overdue.discard(lease_id)

    def _queue_up(self, old: WorkerRecord | None, new: WorkerRecord) -> None:
        """Put a worker into the queue where it belongs now."""
        worker = new.worker
        before = None if old is None or worker not in self.idle else old.waiting_since_s
        now = new.waiting_since_s if new.present else None
        if before == now:
            return
        if before is not None:
            del self.queue[bisect_left(self.queue, (before, worker))]
        if now is not None:
            insort(self.queue, (now, worker))
        _put(self.idle, worker, now is not None)

    def _place(self, record: WorkerRecord) -> None:
        """Put a worker into the sets where it belongs now."""
        worker, holds = record.worker, record.worker in self.tally.holders
        _put(self.idle_fresh, worker, worker in self.idle and not holds)
        eligible = record.present and trust_of(self._config, record).may_hold and offers_enough(self._config, record)
        _put(self.free, worker, eligible and not holds and worker not in self.open_leases)


def offers_enough(config: EngineConfig, record: WorkerRecord) -> bool:
    """Whether a worker may hold as many columns as a lease needs; an offer of 0 means all."""
    offered = config.columns if record.max_columns <= 0 else min(record.max_columns, config.columns)
    return offered >= config.min_columns


def _put(workers: set[WorkerId], worker: WorkerId, belongs: bool) -> None:
    if belongs:
        workers.add(worker)
    else:
        workers.discard(worker)


def _mark(among: dict[K, None], key: K, belongs: bool) -> None:
    if belongs:
        among[key] = None
    else:
        among.pop(key, None)


def _drop(leases_by: dict[K, dict[LeaseId, None]], key: K, lease_id: LeaseId) -> None:
    left = leases_by[key]
    del left[lease_id]
    if not left:
        del leases_by[key]


def _counts_alike(old: LeaseRecord, new: LeaseRecord) -> bool:
    """Whether nothing that is counted, or timed, differs."""
    same = old.status is new.status and old.verdict is new.verdict
    same = same and (old.overdue_at_s, old.overdue) == (new.overdue_at_s, new.overdue)
    same = same and (old.heldout_gain, old.part_spread) == (new.heldout_gain, new.part_spread)
    return same and old.lease.deadline_s == new.lease.deadline_s


def _live_digest(record: LeaseRecord | None) -> Digest | None:
    if record is None:
        return None
    if record.audit_due:
        return record.digest
    if record.status not in LIVE_STATUSES or record.counted_in is not None:
        return None
    return record.digest
