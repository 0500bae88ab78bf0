"""What must hold after every event of a simulated run, whatever went wrong before.

Decides nothing about the run. It keeps its own book of what was promised (leases granted, submissions acknowledged,
versions published) outside of every simulated process, so no crash can make it forget, and holds the engine's state
against that book.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

from coordinator.engine.commands import AggregateRound, AnnounceVerdict, CancelLease, Command, DropPayload, GrantLease
from coordinator.engine.config import EngineConfig
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event, RoundAggregated, VersionRebuilt, WorkerSilent
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus, Phase
from coordinator.engine.presence import silence_limit_s
from coordinator.engine.records import event_from_json
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from protocol.errors import IllegalEvent
from protocol.ids import BlockId, Digest, LeaseId, WorkerId
from simulator.deterministic.attendance import Attendance
from simulator.deterministic.blame import check_blame
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.disk import Disk
from simulator.deterministic.memory import check_memory, counted_with, payloads_without_leases
from simulator.deterministic.trust_book import TrustBook
from worker.fetched import FetchedLease

if TYPE_CHECKING:
    from simulator.deterministic.settings_book import SettingsBook
    from simulator.deterministic.volunteer_spec import VolunteerSpec

EXPLAIN_EVERY = 8
"""Asking why the round is not closed costs as much as an event; every eighth is enough over thousands of seeds."""
_SAME = ("worker", "round", "columns", "base_version", "data", "seed", "inner_steps")
SLACK_S = 6.0
"""Between an event's time and its being applied: commits take their time."""


class Book:
    """Everything that was ever promised in one simulated run."""

    def __init__(
        self,
        disk: Disk,
        config: EngineConfig,
        people: Mapping[WorkerId, VolunteerSpec],
        attendance: Attendance,
        changes: SettingsBook,
        note: Callable[[str], None],
    ) -> None:
        self._disk = disk
        self._people = people
        self._trust = TrustBook(config, disk, people)
        self.attendance = attendance
        self.changes = changes
        self._granted: dict[LeaseId, tuple[float, float]] = {}
        """When each lease was granted, by the coordinator's attendance, and how long it was given."""
        self._spoke_s: dict[WorkerId, float] = {}
        """When an event of each worker was applied last, by the coordinator's attendance."""
        self._note = note
        self._leases: dict[LeaseId, GrantedLease] = {}
        self._positions: dict[tuple[int, int], LeaseId] = {}
        """(seed of the epoch, position) to the lease that names it."""
        self._open_acks: dict[LeaseId, Digest] = {}
        self._fates: dict[LeaseId, str] = {}
        self._judged: dict[LeaseId, str] = {}
        """What became of each submission that was refused or counted, whether or not its worker knew it had arrived."""
        self._counted: dict[LeaseId, int] = {}
        self._published: dict[int, Digest] = {}
        self._version = 0
        self._events = 0
        self._payloads_beyond = 0
        self._aggregations: dict[str, AggregateRound] = {}
        self.last: tuple[Engine, int] | None = None
        """The engine of the process that died last, and the journal position that it had applied."""
        self._refused: set[LeaseId] = set()
        """Submissions that the coordinator refused for good."""
        self._identities: dict[int, bytes] = {}
        self._signed: dict[int, dict[BlockId, Digest]] = {}
        """By version: its blocks, as its manifest named them."""

    @property
    def acknowledged(self) -> int:
        """Submissions that a worker was told are safe."""
        return len(self._open_acks) + len(self._fates)

    @property
    def fates(self) -> Counter[str]:
        """What became of them: `counted`, `refused: REASON`, `open`."""
        told = Counter("counted" if fate.startswith("counted") else fate for fate in self._fates.values())
        return told + Counter(open=len(self._open_acks))

    @property
    def published(self) -> int:
        """Outer steps taken."""
        return len(self._published)

    # ---- what the simulation reports -----------------------------------------------------------------------------

    def acknowledge(self, lease_id: LeaseId, digest: Digest) -> None:
        """A worker was told that its submission is safe, and forgot it."""
        if lease_id not in self._fates:
            self._open_acks.setdefault(lease_id, digest)
        if lease_id in self._judged:  # the answer to its upload came after the verdict, maybe long after
            self._fates.setdefault(lease_id, self._judged[lease_id])
            self._open_acks.pop(lease_id, None)

    def forgotten(self, lease_id: LeaseId, state: EngineState | None) -> None:
        """A worker threw its submission away: only when it was told that it is safe, or of no use any more."""
        if lease_id in self._open_acks or lease_id in self._fates or lease_id in self._refused:
            return
        record = None if state is None else state.leases.get(lease_id)
        shown = "not known" if record is None else record.status
        _broken(f"the worker of lease {lease_id} ({shown}) forgot its submission, which nobody has the bytes of")

    def refused(self, lease_id: str) -> None:
        """A worker was told that this submission will never be taken."""
        self._refused.add(LeaseId(lease_id))

    def identity(self, worker: int, public_key: bytes) -> None:
        """A worker's process signs with this key: the one that its invite went to."""
        if self._identities.setdefault(worker, public_key) != public_key:
            _broken(f"volunteer {worker} has another key than before: its invite, and its record, are another's")

    def trains(self, fetched: FetchedLease, held: Mapping[BlockId, Digest]) -> None:
        """A worker begins to train a lease, from blocks with these contents."""
        lease = fetched.lease
        signed = self._disk.leased(lease, self._signed.get(lease.base_version, {}))
        for block, digest in held.items():
            if signed.get(block) != digest:
                _broken(f"lease {lease.lease_id} is trained from a {block} that version {lease.base_version} has not")

    def aggregated(self, command: AggregateRound, manifest: Digest) -> None:
        """An outer step was computed; it is not the run's before its event."""
        self._aggregations[command.command_id] = command
        self._check_votes(command)
        parent, child = self._disk.manifests[command.parent_manifest], self._disk.manifests[manifest]
        self._signed[command.version] = child
        for block, digest in child.items():
            if digest != parent[block] and self._disk.blocks[digest].parent != parent[block]:
                _broken(f"version {command.version}: {block} does not descend from version {command.parent_version}'s")

    def created(self, blocks: Mapping[BlockId, Digest]) -> None:
        """Version 0 is on disk."""
        self._signed[0] = dict(blocks)

    def restarted(self, engine: Engine, journal_position: int) -> None:
        """A new process has read the journal: it must know at least what the dead one knew, and agree with it."""
        if self.last is not None:
            dead, applied = self.last
            if journal_position < applied:
                _broken(f"events {journal_position + 1} to {applied} were acted on and are not in the journal")
            self._catch_up(dead, applied)
            before, after = dead.snapshot(), engine.snapshot()
            if before != after:
                differing = ", ".join(name for name in before if before[name] != after.get(name))
                _broken(f"the journal's replay does not give the state that was acted on: {differing} differ")
            self.last = None
        self._check(engine.state)
        for lease_id, record in engine.state.leases.items():
            if record.status is LeaseStatus.UPLOADED and record.digest not in self._disk.payloads:
                _broken(f"lease {lease_id} is uploaded, but its bytes are not on disk after the restart")

    def _catch_up(self, dead: Engine, applied: int) -> None:
        """What was durable and not applied yet when the process died happened nonetheless."""
        for position, record in self._disk.records:
            if position > applied:
                event = event_from_json(record)
                try:
                    commands = dead.handle(event)
                except IllegalEvent:
                    continue
                self.applied(event, dead)
                for command in commands:
                    self.commanded(command, dead.state)

    def applied(self, event: Event, engine: Engine) -> None:
        """`event` was journalled and handled."""
        state = engine.state
        self.changes.applied(event)
        if isinstance(event, RoundAggregated):
            self._on_published(event, state)
        elif isinstance(event, VersionRebuilt) and event.manifest == state.manifest:
            self._published[event.version] = event.manifest
            self._signed[event.version] = self._disk.manifests[event.manifest]
        self._trust.applied(event, state)
        self._check(state)
        self._check_silence(event, state)
        self._events += 1
        if self._events % EXPLAIN_EVERY == 0 and state.phase is not Phase.OVER and not engine.explain():
            _broken(f"round {state.round.round} is {state.phase} and does not say why it is not closed")

    def commanded(self, command: Command, state: EngineState) -> None:
        """`command` follows from an event."""
        self._trust.commanded(command, state)
        self.changes.commanded(command)
        if isinstance(command, GrantLease):
            self._on_granted(command.lease)
        if isinstance(command, AnnounceVerdict) and not command.accepted:
            self._judged[command.lease_id] = f"refused: {command.verdict.key}"
        if isinstance(command, DropPayload):
            self._judged.update(counted_with(command.digest, state))
        if isinstance(command, CancelLease | AnnounceVerdict) and "deadline" in command.reason:
            self._check_patience(command.lease_id, command.reason)

    def over(self, engine: Engine) -> None:
        """The run ended: nothing that was acknowledged may still be open."""
        for lease_id in self._open_acks:
            record = engine.state.leases.get(lease_id)
            shown = "is not known" if record is None else f"is {record.status}, counted in {record.counted_in}"
            _broken(f"the run is over, and acknowledged lease {lease_id} {shown}: neither counted nor refused")

    # ---- checks --------------------------------------------------------------------------------------------------

    def _check(self, state: EngineState) -> None:
        if state.version < self._version:
            _broken(f"the version went back from {self._version} to {state.version}")
        if state.version > self._version + 1:
            _broken(f"the version went from {self._version} to {state.version} at once")
        self._version = state.version
        if state.version in self._published and self._published[state.version] != state.manifest:
            _broken(f"version {state.version} has another manifest than when it was published")
        self.changes.check(state)
        self._check_acks(state)
        self._check_shares(state)
        check_memory(state, self._disk)
        beyond, self._payloads_beyond = self._payloads_beyond, payloads_without_leases(state, self._disk)
        if beyond and self._payloads_beyond:
            _broken(f"{self._payloads_beyond} payloads are kept for no lease, and the event before left {beyond}")

    def _check_acks(self, state: EngineState) -> None:
        for lease_id, digest in list(self._open_acks.items()):
            if (record := state.leases.get(lease_id)) is None and lease_id not in self._counted:
                _broken(f"acknowledged lease {lease_id} was forgotten without having been counted or refused")
            fate = self._fate(record, digest) if record is not None else f"counted in round {self._counted[lease_id]}"
            if fate is not None:
                self._fates[lease_id] = fate
                del self._open_acks[lease_id]

    def _fate(self, record: LeaseRecord, digest: Digest) -> str | None:
        lease_id = record.lease.lease_id
        if record.status is LeaseStatus.REJECTED:
            if record.verdict is None or not record.verdict.reason:
                _broken(f"lease {lease_id} was refused without a reason")
            check_blame(record, record.verdict.key, self._people)
            return f"refused: {record.verdict.key}"
        if record.digest != digest:
            _broken(f"lease {lease_id} was acknowledged with {digest[:12]}, the state has {record.digest}")
        if record.status not in {LeaseStatus.UPLOADED, LeaseStatus.ACCEPTED}:
            _broken(f"lease {lease_id} was acknowledged and is now {record.status}: {record.end_reason or 'no reason'}")
        if record.counted_in is None:
            return None
        if lease_id not in self._counted and not record.ended:
            _broken(f"lease {lease_id} is said to count in round {record.counted_in}, but entered no outer step")
        return f"counted in round {record.counted_in}"

    def _check_shares(self, state: EngineState) -> None:
        held: dict[tuple[int, str], set[int]] = {}
        for record in state.leases.values():
            if record.status not in LIVE_STATUSES or record.lease.audits is not None:
                continue
            number, person = record.lease.round, self._person(record.lease.worker)
            theirs = held.setdefault((number, person), set())
            if twice := theirs.intersection(record.lease.columns):
                _broken(f"{person} holds column {min(twice)} twice in round {number}")
            theirs.update(record.lease.columns)

    def _person(self, worker: WorkerId) -> str:
        """Whose machine it is; a worker without an owner is its own."""
        return self._people[worker].owner or f"worker {worker[:8]}"

    def _check_votes(self, command: AggregateRound) -> None:
        """One person has one vote on each block."""
        voted: set[tuple[str, object]] = set()
        for one in command.contributions:
            person = self._person(self._leases[one.lease_id].worker)
            for block in (*one.columns, *(["the trunk"] if one.include_trunk else [])):
                if (person, block) in voted:
                    _broken(f"{person} votes twice on {block} in version {command.version}")
                voted.add((person, block))

    def _check_silence(self, event: Event, state: EngineState) -> None:
        """Nobody is taken for absent sooner than after the silence limit of a coordinator that listens.

        Of a run that is over nothing more is expected, and a restart does not wait for anybody.
        """
        if state.phase is Phase.OVER:
            return
        present_s, limit_s = self.attendance.present_s, silence_limit_s(state.config)
        if isinstance(event, WorkerSilent) and not state.workers[event.worker].present:
            silent_s = present_s - self._spoke_s.get(event.worker, present_s - limit_s)
            if silent_s < limit_s - SLACK_S:
                _broken(f"worker {event.worker[:8]} was found silent after {silent_s:.1f} of {limit_s:.0f} s")
        elif hasattr(event, "worker") and not hasattr(event, "by"):  # from it, not the operator's word about it
            self._spoke_s[event.worker] = present_s

    def _check_patience(self, lease_id: LeaseId, reason: str) -> None:
        """A lease's time is over only after the coordinator was there for so long."""
        granted_s, given_s = self._granted.get(lease_id, (-math.inf, 0.0))
        held_s = self.attendance.present_s - granted_s
        if held_s < given_s - SLACK_S:
            _broken(f"lease {lease_id} ended after {held_s:.1f} of {given_s:.1f} s: {reason}")

    def _on_granted(self, lease: GrantedLease) -> None:
        given_s = lease.deadline_s - lease.granted_at_s
        self._granted.setdefault(lease.lease_id, (self.attendance.present_s, given_s))
        before = self._leases.get(lease.lease_id)
        if before is not None:
            if any(getattr(before, name) != getattr(lease, name) for name in _SAME):
                _broken(f"lease {lease.lease_id} was granted again with other contents")
            return
        self._leases[lease.lease_id] = lease
        if lease.audits is not None:
            return  # the same positions once more, to be compared and not counted
        for position in range(lease.data.start, lease.data.start + lease.data.count):
            other = self._positions.setdefault((lease.data.seed, position), lease.lease_id)
            if other != lease.lease_id:
                _broken(f"leases {other} and {lease.lease_id} name the same training sequence {position}")

    def _on_published(self, event: RoundAggregated, state: EngineState) -> None:
        if any(one.gain < -1e-6 for one in event.compared[:1]):
            if event.manifest == state.manifest:
                _broken(f"version {event.version} is worse than its parent, and was published")
            return
        if event.version in self._published:
            _broken(f"version {event.version} was published twice")
        if event.version != state.version or event.manifest != state.manifest:
            _broken(f"version {event.version} was taken, but the state has {state.version}")
        rounds = [row.round for row in state.history]
        if len(set(rounds)) != len(rounds):
            _broken(f"round {event.round} took its outer step twice")
        if event.manifest not in self._disk.manifests:
            _broken(f"version {event.version} was published before its manifest was on disk")
        self._published[event.version] = event.manifest
        self._trust.published(self._aggregations[event.command_id], state)
        for one in self._aggregations[event.command_id].contributions:
            if one.lease_id in self._counted:
                _broken(f"lease {one.lease_id} counts in version {event.version} and in {self._counted[one.lease_id]}")
            self._counted[one.lease_id] = event.version


def _broken(what: str) -> NoReturn:
    raise InvariantBroken(what)
