"""What must hold of who is trusted, audited, banned and taken back, whoever lies and whatever breaks in between.

Decides nothing about the run. Keeps, outside of every simulated process, what each auditor said of each lease, and
knows from the scenario who lies: what the engine makes of that is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from coordinator.engine.bans import BY_ENGINE
from coordinator.engine.commands import AggregateRound, Command, RebuildVersion
from coordinator.engine.config import EngineConfig
from coordinator.engine.events import Event, LeaseReplayed, VersionRebuilt
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from protocol.arithmetic import arithmetic_class
from protocol.ids import LeaseId, WorkerId
from simulator.arithmetic import ROUNDING_GROWS_FROM, matched
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.disk import Disk
from simulator.deterministic.measuring import MeasuringBook
from simulator.deterministic.work import Spoils

if TYPE_CHECKING:
    from simulator.deterministic.volunteer_spec import VolunteerSpec

COORDINATOR = ""
INDEPENDENT = 2
"""People who must have contradicted one lease before its worker may be banned for it."""
_OPEN = frozenset({LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED})


class TrustBook:
    """Everything that was said of anybody in one simulated run."""

    def __init__(self, config: EngineConfig, disk: Disk, people: Mapping[WorkerId, VolunteerSpec]) -> None:
        self._config, self._disk, self._people = config, disk, people
        self._measuring = MeasuringBook(people)
        self._said: dict[LeaseId, dict[str, bool]] = {}
        """By lease and person: whether an auditor came to what was sent."""
        self._liars = {self._person(worker) for worker, spec in people.items() if spec.liar or spec.lies_as_auditor}
        self._worker_of: dict[LeaseId, WorkerId] = {}
        self._rebuilds: dict[str, RebuildVersion] = {}
        self._aggregated: set[str] = set()
        self._banned: set[tuple[WorkerId, float]] = set()
        """Bans by the engine that were looked at already."""

    def applied(self, event: Event, state: EngineState) -> None:
        """`event` was handled."""
        self._measuring.applied(event, state)
        if isinstance(event, LeaseReplayed) and not event.error:
            self._hear(event, state)
        elif isinstance(event, VersionRebuilt):
            self._check_rebuilt(event, state)
        self.check(state)

    def check(self, state: EngineState) -> None:
        """Bans, what the banned hold, and what audits need."""
        for record in state.workers.values():
            if record.ban is not None:
                self._check_ban(record, state)
        for lease_id in state.index.open_audits:
            self._check_kept(state, lease_id)
        window = state.config.rollback_rounds
        for one, other in pairwise(row.round for row in state.rollbacks if row.by == BY_ENGINE):
            if other - one < window:
                _broken(f"the engine rolled back at the ends of rounds {one} and {other}, within {window}")

    def commanded(self, command: Command, state: EngineState) -> None:
        """`command` follows from an event."""
        self._measuring.commanded(command, state)
        if isinstance(command, RebuildVersion):
            self._rebuilds[command.command_id] = command
        elif isinstance(command, AggregateRound) and command.command_id not in self._aggregated:
            self._aggregated.add(command.command_id)
            self._check_entering(command, state)

    def published(self, command: AggregateRound, state: EngineState) -> None:
        """A version was published that is made of this."""
        for one in command.contributions:
            assert one.worker is not None
            if one.weight <= 0.0:
                _broken(f"lease {one.lease_id} weighs nothing and counts in version {command.version}")
            if state.workers[one.worker].ban is not None:
                _broken(f"worker {one.worker[:8]} is banned, and lease {one.lease_id} counts in {command.version}")

    # ---- checks --------------------------------------------------------------------------------------------------

    def _hear(self, event: LeaseReplayed, state: EngineState) -> None:
        record = state.leases.get(event.lease_id)
        if record is None:
            return
        self._worker_of[event.lease_id] = record.lease.worker
        person = COORDINATOR if event.auditor is None else self._person(event.auditor)
        alike = max(event.trunk, event.columns) <= self._config.audits.tolerance
        if alike or self._could_tell(event, record):
            self._said.setdefault(event.lease_id, {}).setdefault(person, alike)

    def _could_tell(self, event: LeaseReplayed, record: LeaseRecord) -> bool:
        """Whether who computed it again rounds as its worker does, or the lease is too short for that to matter."""
        own = self._people[record.lease.worker].arithmetic
        again = matched(own) if event.auditor is None else self._people[event.auditor].arithmetic
        most = min(self._config.audits.decisive_steps, ROUNDING_GROWS_FROM)
        kinds = [arithmetic_class(own), arithmetic_class(again)]
        if any(kind is None or not kind.is_repeatable for kind in kinds):
            return False
        return own == again or record.lease.inner_steps <= most

    def _person(self, worker: WorkerId) -> str:
        owner = self._people[worker].owner
        return f"owner {owner}" if owner else worker

    def _accusers(self, lease_id: LeaseId) -> set[str]:
        return {person for person, alike in self._said.get(lease_id, {}).items() if not alike}

    def _check_ban(self, record: WorkerRecord, state: EngineState) -> None:
        assert record.ban is not None
        worker, ban = record.worker, (record.worker, record.ban.at_s)
        if record.ban.by == BY_ENGINE and ban not in self._banned:
            self._banned.add(ban)
            self._check_proven(worker)
        for lease in state.leases_of(worker):
            uncounted = lease.status is LeaseStatus.ACCEPTED and lease.counted_in is None
            if lease.status in _OPEN or uncounted:
                _broken(f"worker {worker[:8]} is banned, and its lease {lease.lease.lease_id} is {lease.status}")

    def _check_proven(self, worker: WorkerId) -> None:
        own = self._person(worker)
        accused = [self._accusers(lease_id) - {own} for lease_id, whose in self._worker_of.items() if whose == worker]
        if max(map(len, accused), default=0) < INDEPENDENT:
            _broken(f"worker {worker[:8]} was banned on one person's word, or on nobody's")
        spec = self._people[worker]
        honest = not spec.liar and spec.spoils is not Spoils.REPLAY
        if honest and all(len(people & self._liars) < INDEPENDENT for people in accused):
            _broken(f"worker {worker[:8]} is honest and was banned, and no two of its auditors lie")

    def _check_kept(self, state: EngineState, lease_id: LeaseId) -> None:
        record = state.leases[lease_id]
        if record.digest not in self._disk.payloads:
            _broken(f"lease {lease_id} is to be audited, and its bytes are gone")
        if record.lease.base_version not in self._disk.versions:
            _broken(f"lease {lease_id} is to be audited, and version {record.lease.base_version} is gone")

    def _check_entering(self, command: AggregateRound, state: EngineState) -> None:
        for one in command.contributions:
            assert one.worker is not None
            record = state.workers[one.worker]
            if record.ban is not None:
                _broken(f"worker {one.worker[:8]} is banned, and lease {one.lease_id} is to be aggregated")
            said = self._said.get(one.lease_id, {})
            if self._accusers(one.lease_id) and sum(said.values()) < INDEPENDENT:
                _broken(f"lease {one.lease_id} was contradicted and not cleared, and is to be aggregated")
            if not self._may_weigh(one.worker):
                _broken(f"worker {one.worker[:8]} is new to an open run, and lease {one.lease_id} weighs {one.weight}")

    def _may_weigh(self, worker: WorkerId) -> bool:
        config = self._config
        if not config.open_run or config.audits.budget <= 0.0 or self._people[worker].trusted:
            return True
        own = [said for lease_id, said in self._said.items() if self._worker_of[lease_id] == worker]
        return sum(any(said.values()) for said in own) >= config.reputation.vouched_after

    def _check_rebuilt(self, event: VersionRebuilt, state: EngineState) -> None:
        row, command = state.rollbacks[-1], self._rebuilds[event.command_id]
        for step in command.steps:
            for one in step.contributions:
                assert one.worker is not None
                if one.worker in row.without:
                    _broken(f"the rollback without worker {one.worker[:8]} took its lease {one.lease_id} again")
                if one.weight <= 0.0:
                    _broken(f"lease {one.lease_id} weighs nothing and is taken again")


def _broken(what: str) -> NoReturn:
    raise InvariantBroken(what)
