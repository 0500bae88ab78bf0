"""Having submissions measured: on which sequences, by whom, and which of them twice.

Decides which gains trusted workers may measure in the coordinator's place: in the first epoch alone, and only
where somebody of another person than the submission's is here who offers it. Holds always: what they are given to
measure on is training text that no lease names, and is given for submissions that were committed before anybody had
it; all these, by whomever they are measured, are measured on it, so that their gains can be compared; nobody can tell
which are measured twice. See docs/decisions/0040.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import pacing
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import MeasureSubmission, SlowCommand
from coordinator.engine.early_stops import early_stop
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import may_audit
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId
from protocol.lease import DataRange

_PARTS = 10_000
"""Of which a share is drawn."""
_AGAIN = "again:"


def measure(turn: Turn, record: LeaseRecord) -> None:
    """A submission's bytes are all here."""
    rows, lease = _rows_for(turn, record), record.lease
    drawn = is_checked(turn, lease.round, lease.lease_id)
    command = _command(turn, record, measure_id(lease.lease_id))
    turn.emit(command if rows is None else replace(command, rows=rows, delegate=True, check=drawn))


def measure_here(turn: Turn, command: MeasureSubmission, answers: tuple[GainAnswer, ...]) -> None:
    """What trusted workers said of it is not to be taken on their word."""
    turn.emit(replace(command, delegate=False, answers=answers))


def measure_again(turn: Turn, record: LeaseRecord) -> None:
    """It was accepted on a worker's word that is worth nothing any more, or would not stand on it."""
    if again_id(record.lease.lease_id) not in turn.state.pending:
        turn.emit(_command(turn, record, again_id(record.lease.lease_id)))


def _command(turn: Turn, record: LeaseRecord, command_id: str) -> MeasureSubmission:
    state, lease = turn.state, record.lease
    assert record.digest is not None
    return MeasureSubmission(
        command_id=command_id,
        lease=lease,
        digest=record.digest,
        payload_bytes=record.payload_bytes,
        codec=record.codec,
        # one draw for the whole round, so that its gains can be compared
        heldout_seed=turn.draws.seed(lease.round, "heldout"),
        measure_gain=state.config.screening.enabled,
        taken=pacing.taken(state.config),
        part=pacing.part_measured(state.config, lease),
        own_data=_is_own_drawn(turn, lease.round),
        early=early_stop(state, lease),
        tolerance=state.config.delegation.tolerance,
    )


def _is_own_drawn(turn: Turn, round_number: int) -> bool:
    """Whether gains on leases' own sequences are measured in this round: of all of it, so that they can be compared."""
    share = turn.state.config.screening.own_data_share
    return turn.draws.stream(round_number, "own-data").below(_PARTS) < share * _PARTS


# ---- by others ------------------------------------------------------------------------------------------


def may_measure(worker: WorkerRecord) -> bool:
    """Whether this worker's word for others' gains is taken: it offers to measure, and may audit."""
    return worker.measures and may_audit(worker)


def is_checked(turn: Turn, round_number: int, what: str) -> bool:
    """Secret draw: whether an item is measured twice, should others measure it."""
    share = turn.state.config.delegation.checked_share
    return turn.draws.stream(round_number, "checked", what).below(_PARTS) < share * _PARTS


def measurers(state: EngineState, person: str) -> list[WorkerRecord]:
    """Who is here and may measure what is `person`'s: nobody of its own."""
    trusted = (state.workers[worker] for worker in state.index.trusted)
    return [one for one in trusted if one.present and may_measure(one) and one.person != person]


def _rows_for(turn: Turn, record: LeaseRecord) -> DataRange | None:
    """What others are to measure it on; None where they are not to."""
    state, config = turn.state, turn.state.config
    wanted = config.delegation.enabled and config.screening.enabled
    if not wanted or not measurers(state, state.person_of(record.lease)):
        return None
    current, committed_s = state.round, record.committed_at_s
    if current.rows is not None and committed_s is not None and committed_s < current.rows_since_s:
        return current.rows
    count = config.delegation.sequences
    if state.data_epoch or state.next_sequence + count > config.train_sequences:
        return None  # in a later epoch somebody was leased every text before
    rows = take_data(turn, count)
    state.update_round(rows=rows, rows_since_s=state.now_s)
    return rows


def take_data(turn: Turn, count: int) -> DataRange:
    """The next `count` positions of this epoch's permutation; a new epoch where they do not fit."""
    state = turn.state
    if state.next_sequence + count > state.config.train_sequences:
        state.data_epoch += 1
        state.next_sequence = 0
    data = DataRange(seed=turn.draws.seed(0, "data", state.data_epoch), start=state.next_sequence, count=count)
    state.next_sequence += count
    return data


# ---- commands' ids --------------------------------------------------------------------------------------


def measure_id(lease_id: LeaseId) -> str:
    """Id of the command that measures a lease's submission."""
    return f"measure:{lease_id}"


def again_id(lease_id: LeaseId) -> str:
    """Id of the command that measures it again, once it was accepted."""
    return f"{_AGAIN}{lease_id}"


def under_way_again(state: EngineState) -> list[SlowCommand]:
    """Of accepted submissions that are being measured again: no round closes without what comes of it."""
    return [command for command_id, command in state.pending.items() if command_id.startswith(_AGAIN)]
