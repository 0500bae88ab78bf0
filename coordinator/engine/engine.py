"""The round engine: `handle(event) -> commands`, and nothing else happens.

Decides, through the modules beside it, everything about rounds, leases and verdicts. Knows no clock, file, socket or
tensor. Holds always: an illegal event raises `IllegalEvent` and leaves the state as it was; the state is a pure
function of the run's secret and the journalled events, in order; time never goes back. See docs/engine.md for the
contract with the pump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from coordinator.engine import explain, orders, records, rounds, telling
from coordinator.engine.commands import Command, SlowCommand, ValidateVersion
from coordinator.engine.config import check_config
from coordinator.engine.draws import Draws
from coordinator.engine.event_table import EVENT_TABLE
from coordinator.engine.events import (
    ClockStepped,
    CoordinatorResumed,
    Event,
    RunCreated,
    Ticked,
    WorkerSeen,
    WorkerSilent,
)
from coordinator.engine.explain import Wait
from coordinator.engine.handlers import enrolled
from coordinator.engine.history import CalendarMark
from coordinator.engine.order_events import Ordered
from coordinator.engine.phases import Phase
from coordinator.engine.presence import Presence
from coordinator.engine.rows import RoundState
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import ConfigError, IllegalEvent
from protocol.ids import LeaseId, RoundNumber, WorkerId


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
            version=event.version,
            manifest=event.base_manifest,
            round=RoundState(round=RoundNumber(event.round + 1), base_version=event.version, opened_at_s=event.at_s),
            calendar=calendar,
            fixed_settings=dict(event.settings),
            frozen=event.frozen,
        )
        turn = Turn(state=state, draws=Draws(secret))
        if event.config.validate_every:
            turn.emit(
                ValidateVersion(
                    command_id=f"validate:v{event.version}", version=event.version, manifest=event.base_manifest
                )
            )
        return cls(state, secret), turn.commands

    def handle(self, event: Event) -> list[Command]:
        """Apply one event. All that follows from it, and from time having passed, comes back as commands."""
        self._check_legal(event)
        if isinstance(event, WorkerSeen):
            enrolled(self._state, event.worker)
            self._presence.note(event)
            return []
        state = self._state
        undo = state.begin()
        turn = Turn(state=state, draws=self._draws)
        try:
            if not state.paused:  # its time stands
                state.now_s = max(state.now_s, event.at_s)
            EVENT_TABLE[type(event)].apply(turn, event)
            rounds.advance(turn)
            if isinstance(event, Ordered):
                orders.note(state, event)
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
        if self._state.paused:
            return []
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
        if self._state.paused:
            return None
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
        return explain.wait_reason(self._state, enrolled(self._state, worker))

    def wait_sentence(self, worker: WorkerId, now_s: float) -> str:
        """The same, said to the volunteer, with when it is expected to be over. For replies to requests for a lease."""
        sentence = telling.wait_sentence(self._state, enrolled(self._state, worker), now_s)
        said = self._state.announcement
        return f"{sentence} The operator says: {said.text}" if said else sentence

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

    # ---- legality -------------------------------------------------------------------------------------

    def _check_legal(self, event: Event) -> None:
        row = EVENT_TABLE.get(type(event))
        phases = frozenset() if row is None else row.phases
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
