"""The round engine: `handle(event) -> commands`, and nothing else happens.

Decides, through the modules beside it, everything about rounds, leases and verdicts. Knows no clock, file, socket or
tensor. Holds always: an illegal event raises `IllegalEvent` and leaves the state as it was; the state is a pure
function of the run's secret and the journalled events, in order; time never goes back. See docs/engine.md for the
contract with the pump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from coordinator.engine import changes, explain, gaps, leases, records, results, rounds, telling
from coordinator.engine.commands import Command, EndRun, SlowCommand, ValidateVersion
from coordinator.engine.config import check_config
from coordinator.engine.draws import Draws
from coordinator.engine.events import (
    CapabilityChanged,
    CheckpointWritten,
    ClockStepped,
    CommandFailed,
    ContributionsTried,
    CoordinatorResumed,
    Event,
    LeaseRequested,
    LeaseReturned,
    RoundAggregated,
    RunCreated,
    RunStopped,
    SettingChanged,
    SettingsFixed,
    SubmissionCommitted,
    SubmissionMeasured,
    SubmissionUploaded,
    Ticked,
    VersionValidated,
    WorkerEnrolled,
    WorkerSeen,
    WorkerSilent,
)
from coordinator.engine.explain import Wait
from coordinator.engine.history import CalendarMark, remembered
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.presence import Presence, silence_limit_s
from coordinator.engine.reasons import Case, reason
from coordinator.engine.state import EngineState, LeaseRecord, RoundState, WorkerRecord
from coordinator.engine.turn import Turn
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import ConfigError, IllegalEvent
from protocol.ids import Digest, LeaseId, RoundNumber, Version, WorkerId

_EVERYWHERE = frozenset(Phase)
_BEFORE_THE_END = _EVERYWHERE - {Phase.OVER}

LEGAL_EVENTS: Mapping[type[Event], frozenset[Phase]] = {
    WorkerEnrolled: _EVERYWHERE,
    CapabilityChanged: _EVERYWHERE,
    WorkerSeen: _EVERYWHERE,
    WorkerSilent: _EVERYWHERE,
    CoordinatorResumed: _EVERYWHERE,
    ClockStepped: _EVERYWHERE,
    LeaseRequested: _EVERYWHERE,
    LeaseReturned: _EVERYWHERE,
    SubmissionCommitted: _BEFORE_THE_END,
    SubmissionUploaded: _BEFORE_THE_END,
    SubmissionMeasured: _EVERYWHERE,
    RoundAggregated: frozenset({Phase.AGGREGATING}),
    ContributionsTried: frozenset({Phase.AGGREGATING}),
    VersionValidated: _BEFORE_THE_END,
    CheckpointWritten: _BEFORE_THE_END,
    CommandFailed: _BEFORE_THE_END,
    Ticked: _EVERYWHERE,
    RunStopped: _BEFORE_THE_END,
    SettingsFixed: _EVERYWHERE,
    SettingChanged: _BEFORE_THE_END - {Phase.FINISHING},
}
"""Which events each phase takes at all; `RunCreated` only ever creates an engine."""


class Engine:
    """One run. Everything but heartbeats is in `state`."""

    def __init__(self, state: EngineState, secret: bytes) -> None:
        self._state = state
        self._draws = Draws(secret)
        self._presence = Presence(state)
        self._greeted = False
        """Whether this process has proposed `CoordinatorResumed` yet."""

    @classmethod
    def create(cls, event: RunCreated, secret: bytes) -> tuple[Engine, list[Command]]:
        """A run's first moment."""
        if event.engine_version != ENGINE_VERSION:
            raise ConfigError(f"the journal is of engine version {event.engine_version}, this is {ENGINE_VERSION}")
        check_config(event.config)
        calendar = () if event.wall_s is None else (CalendarMark(at_s=event.at_s, wall_s=event.wall_s),)
        state = EngineState(
            engine_version=event.engine_version,
            config=event.config,
            now_s=event.at_s,
            phase=Phase.GATHERING,
            version=Version(0),
            manifest=event.base_manifest,
            round=RoundState(round=RoundNumber(1), base_version=Version(0), opened_at_s=event.at_s),
            calendar=calendar,
            fixed_settings=dict(event.settings),
        )
        turn = Turn(state=state, draws=Draws(secret))
        if event.config.validate_every:
            turn.emit(ValidateVersion(command_id="validate:v0", version=Version(0), manifest=event.base_manifest))
        return cls(state, secret), turn.commands

    def handle(self, event: Event) -> list[Command]:
        """Apply one event. All that follows from it, and from time having passed, comes back as commands."""
        self._check_legal(event)
        if isinstance(event, WorkerSeen):
            self._worker(event.worker)
            self._presence.note(event)
            return []
        state = self._state
        undo = state.begin()
        turn = Turn(state=state, draws=self._draws)
        try:
            state.now_s = max(state.now_s, event.at_s)
            self._HANDLERS[type(event)](self, turn, event)
            rounds.advance(turn)
        except BaseException:
            state.take_back()
            raise
        state.end()
        for worker in undo.changed(state.workers):
            self._presence.watch(state.workers[worker])
        return turn.commands

    # ---- what the pump asks ------------------------------------------------------------------------

    def due(self, now_s: float) -> list[Event]:
        """Events that time calls for by `now_s`: to be journalled and handled like any other.

        In a new process that is the `greeting` first. Then come `WorkerSilent` for everybody over the silence limit,
        and one `Ticked` where a timer has run out.
        """
        greeting = self.greeting(now_s)
        if greeting:
            return greeting
        events: list[Event] = [
            WorkerSilent(at_s=now_s, worker=silence.worker, last_seen_at_s=silence.last_seen_at_s)
            for silence in self._presence.silent(now_s)
        ]
        if any(moment <= now_s for moment in rounds.timers_s(self._state)):
            events.append(Ticked(at_s=now_s))
        return events

    def greeting(self, now_s: float) -> list[Event]:
        """Once in a process: that it is there, and for how long none was. It goes before every other event.

        Heartbeats of before are not in the journal, and what happened since its last record nobody knows.
        """
        if self._greeted:
            return []
        self._greeted = True
        if not self._state.workers or self._state.phase is Phase.OVER:
            return []
        return [CoordinatorResumed(at_s=now_s, gap_s=max(0.0, now_s - self._state.now_s))]

    def next_wakeup_s(self) -> float | None:
        """When `due` will next have something; None while only an event from outside can change anything."""
        if not self._greeted:
            return self._state.now_s
        silence_s = self._presence.next_silence_s()
        moments = [*rounds.timers_s(self._state), *([] if silence_s is None else [silence_s])]
        return min(moments, default=None)

    @property
    def pending(self) -> tuple[SlowCommand, ...]:
        """Commands whose results have not come yet, oldest first: to be issued again after a restart."""
        return tuple(self._state.pending.values())

    def is_pending(self, command_id: str) -> bool:
        """Whether a result of this command is still wanted."""
        return command_id in self._state.pending

    # ---- what people and edges ask ------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """The present state, for reading. `handle` changes it: keep a `copy` to look at it later."""
        return self._state

    @property
    def last_seen(self) -> Mapping[WorkerId, WorkerSeen]:
        """The latest heartbeat of each worker heard by this process, for people to look at."""
        return self._presence.latest

    def explain(self, now_s: float | None = None) -> tuple[Wait, ...]:
        """Why the round is not closed, as of `now_s` (the last event's time by default)."""
        return explain.waits(self._state, self._state.now_s if now_s is None else now_s)

    def wait_reason(self, worker: WorkerId) -> str:
        """Why `worker` has no new lease."""
        return explain.wait_reason(self._state, self._worker(worker))

    def wait_sentence(self, worker: WorkerId, now_s: float) -> str:
        """The same, said to the volunteer, with when it is expected to be over. For replies to requests for a lease."""
        return telling.wait_sentence(self._state, self._worker(worker), now_s)

    def lease_ended(self, worker: WorkerId, lease_id: LeaseId) -> str | None:
        """Why going on with this lease is worth nothing; None while it is not. For replies to heartbeats."""
        return explain.lease_ended(self._state, worker, lease_id)

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON values."""
        snapshot = records.to_plain(self._state, EngineState)
        assert isinstance(snapshot, dict)
        return snapshot

    @classmethod
    def restore(cls, snapshot: dict[str, Any], secret: bytes) -> Engine:
        """The engine that `snapshot` was taken of; it knows of no heartbeats."""
        state = records.from_plain(snapshot, EngineState)
        if state.engine_version != ENGINE_VERSION:
            raise ConfigError(f"the snapshot is of engine version {state.engine_version}, this is {ENGINE_VERSION}")
        return cls(state, secret)

    # ---- events ---------------------------------------------------------------------------------------

    def on_worker_enrolled(self, turn: Turn, event: WorkerEnrolled) -> None:
        """A new worker; it is asked for nothing until it asks for a lease."""
        if event.worker in turn.state.workers:
            raise IllegalEvent(f"worker {event.worker} is enrolled already")
        turn.state.put_worker(
            WorkerRecord(
                worker=event.worker,
                name=event.name,
                trusted=event.trusted,
                max_columns=event.max_columns,
                tokens_per_s=event.tokens_per_s,
                heard_at_s=turn.state.now_s,
                owner=event.owner,
            )
        )

    def on_capability_changed(self, turn: Turn, event: CapabilityChanged) -> None:
        """Counts from the next lease on."""
        self._worker(event.worker)
        turn.hear(event.worker)
        turn.state.update_worker(event.worker, max_columns=event.max_columns, tokens_per_s=event.tokens_per_s)

    def on_worker_silent(self, turn: Turn, event: WorkerSilent) -> None:
        """Its open lease is lost; what it has committed to may still arrive."""
        state = turn.state
        if self._worker(event.worker).heard_at_s > event.last_seen_at_s:
            return  # it spoke while the finding was on its way to the journal
        leases.break_uploads(turn, event.worker)
        state.update_worker(event.worker, present=False, waiting_since_s=None, waits_until_s=None)
        record = state.open_lease_of(event.worker)
        if record is not None:
            limit_s, silent_s = silence_limit_s(state.config), state.now_s - event.last_seen_at_s
            leases.expire(turn, record.lease.lease_id, reason(Case.SILENT, silent_s=silent_s, most_s=limit_s))

    def on_coordinator_resumed(self, turn: Turn, event: CoordinatorResumed) -> None:
        """Nobody is blamed for a time in which nobody was here."""
        gaps.bridge(turn, event.gap_s)

    def on_clock_stepped(self, turn: Turn, event: ClockStepped) -> None:
        """A mark in the calendar."""
        mark = CalendarMark(at_s=turn.state.now_s, wall_s=event.wall_s)
        turn.state.calendar = remembered(turn.state.calendar, mark)

    def on_lease_requested(self, turn: Turn, event: LeaseRequested) -> None:
        """The worker is idle: it gets its open lease again, or a new one as soon as there is one for it."""
        state = turn.state
        self._worker(event.worker)
        turn.hear(event.worker)
        if state.phase is Phase.OVER:
            turn.emit(EndRun(why=state.ended or reason(Case.ENDED)))
            return
        waits_until_s = None if event.wait_s is None else state.now_s + event.wait_s
        leases.break_uploads(turn, event.worker)  # whoever is idle sends nothing
        since_s = state.workers[event.worker].waiting_since_s
        state.update_worker(
            event.worker, waiting_since_s=state.now_s if since_s is None else since_s, waits_until_s=waits_until_s
        )
        record = state.open_lease_of(event.worker)
        if record is None:
            return
        hopeless = leases.why_not_again(turn, record)
        if hopeless is None:
            leases.grant_again(turn, record)
        else:
            leases.expire(turn, record.lease.lease_id, hopeless)

    def on_lease_returned(self, turn: Turn, event: LeaseReturned) -> None:
        """Said twice, or after the lease was lost, it changes nothing."""
        record = self._lease(event.worker, event.lease_id)
        turn.hear(event.worker)
        if record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
            leases.hand_back(turn, record, event.reason)

    def on_submission_committed(self, turn: Turn, event: SubmissionCommitted) -> None:
        """A first commit is taken or refused; the same again is answered the same; another digest is illegal."""
        record = self._lease(event.worker, event.lease_id)
        if record.status is LeaseStatus.RETURNED:
            raise IllegalEvent(f"lease {event.lease_id} was handed back by {event.worker}; it takes no submission")
        undecided = record.status is LeaseStatus.EXPIRED and record.digest is None
        if record.status is LeaseStatus.GRANTED or undecided:
            turn.hear(event.worker)
            leases.commit(turn, record, event)
            return
        if record.digest is not None:
            self._check_digest(record, event.digest)
        turn.hear(event.worker)
        leases.break_uploads(turn, event.worker)  # it asks from which byte to go on
        results.repeat_verdict(turn, record)

    def on_submission_uploaded(self, turn: Turn, event: SubmissionUploaded) -> None:
        """Bytes of a commit; twice changes nothing, without one is illegal."""
        record = self._lease(event.worker, event.lease_id)
        if record.digest is None:
            raise IllegalEvent(f"lease {event.lease_id} of {event.worker} is {record.status}: nothing was committed")
        self._check_digest(record, event.digest)
        turn.hear(event.worker)
        if record.status is LeaseStatus.COMMITTED:
            leases.upload(turn, record)
        elif record.status is LeaseStatus.EXPIRED:
            results.refuse_lost_upload(turn, record)
        else:
            results.repeat_verdict(turn, record)

    def on_ticked(self, turn: Turn, event: Ticked) -> None:
        """Time passed; what it brings about is the same after every event, but that a wave of leases goes on."""
        if turn.state.round.granting:
            turn.state.update_round(granting=False)

    def on_run_stopped(self, turn: Turn, event: RunStopped) -> None:
        """Said twice it changes nothing."""
        if turn.state.stop_reason is None and turn.state.phase is not Phase.FINISHING:
            rounds.stop(turn, event.reason)

    # ---- legality -------------------------------------------------------------------------------------

    def _check_legal(self, event: Event) -> None:
        phases = LEGAL_EVENTS.get(type(event), frozenset())
        kind = type(event).__name__
        if self._state.phase not in phases:
            allowed = ", ".join(sorted(phases)) or "creation only"
            raise IllegalEvent(f"{kind} while the run is {self._state.phase}; allowed in: {allowed}")
        if not math.isfinite(event.at_s):
            raise IllegalEvent(f"{kind} with a time of {event.at_s}")
        if isinstance(event, CoordinatorResumed) and not 0.0 <= event.gap_s < math.inf:
            raise IllegalEvent(f"{kind} with a gap of {event.gap_s} s")
        if isinstance(event, ClockStepped) and not math.isfinite(event.wall_s):
            raise IllegalEvent(f"{kind} with a calendar time of {event.wall_s}")

    def _worker(self, worker: WorkerId) -> WorkerRecord:
        if worker not in self._state.workers:
            raise IllegalEvent(f"worker {worker} is not enrolled in run {self._state.config.run_id}")
        return self._state.workers[worker]

    def _lease(self, worker: WorkerId, lease_id: LeaseId) -> LeaseRecord:
        self._worker(worker)
        record = self._state.leases.get(lease_id)
        if record is None:
            raise IllegalEvent(f"lease {lease_id} is not known: never granted, or too many rounds ago")
        if record.lease.worker != worker:
            raise IllegalEvent(f"lease {lease_id} belongs to {record.lease.worker}, not to {worker}")
        return record

    @staticmethod
    def _check_digest(record: LeaseRecord, digest: Digest) -> None:
        if record.digest != digest:
            lease = record.lease
            raise IllegalEvent(f"{lease.worker} committed {lease.lease_id} to {record.digest} and now brings {digest}")

    _HANDLERS: ClassVar[dict[type[Event], Callable[[Engine, Turn, Any], None]]] = {
        WorkerEnrolled: on_worker_enrolled,
        CapabilityChanged: on_capability_changed,
        WorkerSilent: on_worker_silent,
        CoordinatorResumed: on_coordinator_resumed,
        ClockStepped: on_clock_stepped,
        LeaseRequested: on_lease_requested,
        LeaseReturned: on_lease_returned,
        SubmissionCommitted: on_submission_committed,
        SubmissionUploaded: on_submission_uploaded,
        SubmissionMeasured: lambda _, turn, event: results.on_submission_measured(turn, event),
        RoundAggregated: lambda _, turn, event: results.on_round_aggregated(turn, event),
        ContributionsTried: lambda _, turn, event: results.on_contributions_tried(turn, event),
        VersionValidated: lambda _, turn, event: results.on_version_validated(turn, event),
        CheckpointWritten: lambda _, turn, event: results.on_checkpoint_written(turn, event),
        CommandFailed: lambda _, turn, event: results.on_command_failed(turn, event),
        Ticked: on_ticked,
        RunStopped: on_run_stopped,
        SettingsFixed: lambda _, turn, event: changes.on_settings_fixed(turn, event),
        SettingChanged: lambda _, turn, event: changes.on_setting_changed(turn, event),
    }
