"""What the public page says of a worker and of a wait, in words that anybody may read.

Decides what is left out (docs/decisions/0061-what-a-public-page-leaves-out.md). Always: no key, owner, address, path or
free text of an operator; of what was measured the kind and never the figure, as its worker is told (engine/stages.py);
nothing that says which leases audit others, who computes them, or who stands accused before that is settled.
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.edge.standing import current_lease, state_of
from coordinator.edge.status import WaitStatus, WorkerState
from coordinator.engine import dispatch, pacing, quorum, rounds
from coordinator.engine.commands import (
    AggregateRound,
    FindHarmful,
    RebuildVersion,
    SlowCommand,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.credit import ranking
from coordinator.engine.dispatch import Hindrance
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.stages import told_to_worker
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from coordinator.page.view import Contributor
from protocol.ids import WorkerId
from protocol.text import printable

MAX_NAME_CHARACTERS = 48
MOST_CREDITED = 50
"""Lines of the ranking; `barnraise coordinator credit` has all."""

_STATES: Mapping[WorkerState, str] = {WorkerState.MEASURING: "checking", WorkerState.QUARANTINED: "set aside"}
"""Where the engine's word is not a reader's."""
_ROUND_SUBJECTS = ("column", "columns", "trunk", "round")
_MAKING: Mapping[type[SlowCommand], str] = {
    AggregateRound: "the round's work is being merged into the next version",
    TryContributions: "submissions are tried one by one, since not all of them go together",
    FindHarmful: "the new version is worse than the last: what made it so is being looked for",
    RebuildVersion: "versions are made again without work that was taken back",
    ValidateVersion: "the new version's loss is being measured on held-out text",
    WriteCheckpoint: "the new version is being exported",
}


def display_name(state: EngineState, worker: WorkerId, place: int) -> str:
    """Under which name a worker is shown; one without a name by its place in the order of enrolment, from 1."""
    name = printable(state.called(worker)).strip()
    if not name or name == worker:
        return f"worker {place}"
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1]}…"


def public_state(record: WorkerRecord, lease: LeaseRecord | None) -> str:
    """What a worker is doing, in a word or two."""
    state = state_of(record, lease)
    return _STATES.get(state, state.value)


def public_standing(state: EngineState, record: WorkerRecord) -> str:
    """How much its work weighs. An accusation shows here like any other loss of weight: nothing is settled yet."""
    if record.ban is not None:
        return "banned"
    if record.quarantine is not None:
        return "set aside"
    weight = trust_of(state.config, record).weight
    if weight <= 0.0:
        return "on probation"
    return "counts in part" if weight < 1.0 else "counts in full"


def round_reasons(state: EngineState, waits: tuple[WaitStatus, ...]) -> list[tuple[str, str]]:
    """Of an operator's reasons why the round is open, what anybody may read: subject and words."""
    found: list[tuple[str, str]] = []
    for wait in waits:
        command = state.pending.get(wait.subject)
        if command is not None and (doing := _MAKING.get(type(command))):
            again = "; it failed and is tried again" if wait.subject in state.failures else ""
            found.append((f"version {getattr(command, 'version', state.version)}", doing + again))
        elif command is None and wait.subject.split(" ", 1)[0] in _ROUND_SUBJECTS:
            found.append((wait.subject, wait.reason))
    return found


class PublicReasons:
    """Why each worker does what it does, as of one moment; what all have in common is worked out once."""

    def __init__(self, at: EngineState) -> None:
        self._at = at
        self._standings, self._pace = quorum.Standings(at), pacing.pace_of(at)

    def of(self, record: WorkerRecord, lease: LeaseRecord | None, inner_step: int) -> str:
        """Of one worker: what its lease does, or why it has none."""
        if record.present and lease is not None and record.ban is None:
            done = _on_its_way(self._at, lease, inner_step)
            if done:
                return done
        return self._waits(record)

    def _waits(self, record: WorkerRecord) -> str:
        at, number = self._at, self._at.round.round
        if not record.present and record.ban is None:
            return "not here; it may come back at any time"
        hindrance = dispatch.hindrance_of(at, record)
        if hindrance is None and at.phase not in rounds.RUNNING_PHASES:
            return _between(at)
        hindrance = hindrance or dispatch.refusal_now(at, self._standings, self._pace, record)
        if hindrance is None:
            return f"round {number} has work for it as soon as it asks"
        aside = told_to_worker(record.quarantine.why) if record.quarantine else ""
        words = {
            Hindrance.BANNED: "takes no part any more",
            Hindrance.PAUSED: "the run is paused",
            Hindrance.DRAINING: "no more work is given out for now",
            Hindrance.SET_ASIDE: f"set aside for now: {aside}",
            Hindrance.OFFERS_TOO_LITTLE: f"offers {record.max_columns} columns; this run needs {at.config.min_columns}",
            Hindrance.COOLING: f"lost more than one lease; the next in {record.cooling_until_s - at.now_s:.0f} s",
            Hindrance.REFUSED: f"its work for round {number} was not accepted; it may take part in the next",
            Hindrance.PAST_DEADLINE: f"the time for round {number} is over; the next opens soon",
            Hindrance.PART_IS_DONE: f"has done its part of round {number}",
            Hindrance.SAME_OWNER: f"what it could take of round {number} is taken; it may take part in the next",
            Hindrance.QUORUM_REACHED: f"round {number} has all the work that it needs; the next opens soon",
            Hindrance.TOO_LITTLE_TIME: f"too little of round {number} is left for one lease; the next opens soon",
        }
        return words[hindrance]


def lease_of(state: EngineState, record: WorkerRecord) -> LeaseRecord | None:
    """The lease that a worker is shown with."""
    return current_lease(state, record.worker)


def _on_its_way(at: EngineState, record: LeaseRecord, inner_step: int) -> str:
    lease = record.lease
    if record.status is LeaseStatus.GRANTED:
        left_s = max(0.0, lease.deadline_s - at.now_s)
        done = f"{inner_step} of {lease.inner_steps} steps done" if inner_step else f"{lease.inner_steps} steps to do"
        return f"{done}, {left_s:.0f} s left"
    if record.status is LeaseStatus.COMMITTED:
        return "its work is on its way"
    return "its work is being checked" if record.status is LeaseStatus.UPLOADED else ""


def _between(at: EngineState) -> str:
    number = at.round.round
    if at.phase is Phase.GATHERING:
        return f"waits for round {number} to begin"
    if at.phase is Phase.AGGREGATING:
        return f"round {number} is being merged; the next opens soon"
    return "the run is over" if at.phase is Phase.OVER else "the run took its last step; the model is being saved"


def public_credit(state: EngineState, teams: Mapping[WorkerId, str], sequence_length: int) -> tuple[Contributor, ...]:
    """Who trained it, and for which team: validated tokens, the most first, at most MOST_CREDITED of them."""
    places = state.index.places
    rows = ranking(
        state.workers.values(),
        tokens_a_sequence=sequence_length,
        name_of=lambda worker: display_name(state, worker, places[worker] + 1),
    )
    return tuple(
        Contributor(
            name=row.name,
            team=printable(teams.get(WorkerId(row.key), "")).strip()[:MAX_NAME_CHARACTERS],
            tokens=row.tokens,
            accepted=row.leases,
        )
        for row in [one for one in rows if one.tokens][:MOST_CREDITED]
    )
