"""What an operator sees of a run: the schema of what goes over the wire as JSON, and is printed as such.

Decides nothing. `RunSummary` is of constant size, whatever the run's (GetStatus); workers, rounds, validations and
checkpoints come in pages (ListStatus); `RunStatus` is the two put together, complete or in part, for whoever asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, WrapSerializer

from coordinator.engine.history import RoundRecord
from coordinator.engine.reasons import told


class _Data(BaseModel):
    # a loss may be infinite, which plain JSON has no number for; as a string it is a float again on the other side
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


def _in_words(record: RoundRecord, as_plain: Callable[[RoundRecord], dict[str, Any]]) -> dict[str, Any]:
    """The record's own fields, and what a person would make of them; a reader of the record skips the latter."""
    plain = as_plain(record)
    plain["lasted_s"], plain["close_reason"] = record.lasted_s, record.close_reason
    for entry, one in zip(plain["left_out"], record.left_out, strict=True):
        entry["told"] = told(one.why)
    return plain


ClosedRound = Annotated[RoundRecord, WrapSerializer(_in_words)]
"""A closed round as JSON: in a status and in a simulation's report alike."""


class _Rounds(_Data):
    rounds: tuple[ClosedRound, ...]


def rounds_as_plain(records: tuple[RoundRecord, ...]) -> list[dict[str, Any]]:
    """Closed rounds as values that any JSON can hold."""
    plain: list[dict[str, Any]] = json.loads(_Rounds(rounds=records).model_dump_json())["rounds"]
    return plain


def by_calendar(record: RoundRecord, wall_at_s: Callable[[float], float | None]) -> RoundRecord:
    """`record` with its close by the calendar, and its opening as long before as it lasted by the run's own clock."""
    closed_at_s = wall_at_s(record.closed_at_s)
    if closed_at_s is None:
        return record
    return replace(record, opened_at_s=closed_at_s - record.lasted_s, closed_at_s=closed_at_s)


class WorkerState(StrEnum):
    """What a worker is doing, those first that an operator may have to look at."""

    BANNED = "banned"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    IDLE = "idle"
    WAITING = "waiting"
    UPLOADING = "uploading"
    MEASURING = "measuring"
    TRAINING = "training"
    ACCEPTED = "accepted"
    ABSENT = "absent"


class WaitStatus(_Data):
    """One reason why the round is not closed."""

    subject: str
    reason: str


class WorkerStatus(_Data):
    """One worker: what it is doing, and why."""

    worker: str
    name: str
    trusted: bool
    owner: str
    """Whose machine it is, as the operator said with its invite; empty: nobody's but its own."""
    state: WorkerState
    why: str
    connected: bool
    max_columns: int
    columns: tuple[int, ...]
    lease_id: str | None
    inner_step: int
    inner_steps: int
    train_loss: float | None
    tokens_per_s: float
    silent_s: float | None
    leases_granted: int
    leases_expired: int
    leases_returned: int
    accepted: int
    rejected: dict[str, int]
    weight: float
    """What its submissions weigh now, 0 to 1."""
    standing: str
    """How far it is trusted, in a word or two."""
    audits_passed: int
    audits_failed: int
    invite: str
    """Short digest of the invite that it came with: what `coordinator ban --invite` takes."""


class ValidationStatus(_Data):
    """Held-out loss of one version, nats a token."""

    version: int
    val_loss: float
    val_loss_se: float


class CheckpointStatus(_Data):
    """An exported version."""

    version: int
    path: str


class StandbyStatus(_Data):
    """Another machine that holds the run, too."""

    mode: str
    """`async`, or `sync`: every answer waits for the follower; `entering` and `leaving` do, too."""
    epoch: int
    follower: str
    attached: bool
    behind: int
    """Records that it has not acknowledged: what is lost with the leader's machine, at the most."""
    trouble: str
    """Why answers wait; empty where they do not."""


class KeptStatus(_Data):
    """What of the present version other machines hold in full precision."""

    version: int
    blocks: int
    nowhere_else: int
    """Of these, how many no other machine has, as far as workers have told."""
    named: tuple[str, ...]
    """The first of them."""
    told: str
    """The same in words, and what of momentum and masters."""


class RunSummary(_Data):
    """A run at one moment, in a size that does not grow with it: of what may be many, the first or latest few."""

    sentence: str = ""
    """How it is, in one sentence: coordinator/edge/headline.py."""
    answering: bool = True
    """Whether a coordinator said so. False: this is the journal's last record, and nobody is at work on it."""
    trouble: str | None = None
    """Why nobody answered, and what to do."""
    last_record_s: float | None = None
    """Where nobody answered: when something was last recorded, in seconds of wall time since 1970."""
    run_id: str
    name: str
    at_s: float
    """Calendar time, in seconds since the epoch, like all moments here."""
    started_at_s: float | None
    round: int
    max_rounds: int
    version: int
    phase: str
    over: bool
    end_reason: str | None
    waits: tuple[WaitStatus, ...]
    """Why the round is not closed: the first of the reasons."""
    more_waits: int
    """How many there are besides."""
    enrolled: int
    connected: int
    worker_states: dict[WorkerState, int]
    """How many workers are in each state; a state that nobody is in is left out."""
    rounds_closed: int
    left_s: float | None = None
    """Until the planned rounds are over, at the pace of the latest ones; None where none has closed, or all have."""
    latest_rounds: tuple[ClosedRound, ...]
    latest_validations: tuple[ValidationStatus, ...]
    latest_checkpoint: CheckpointStatus | None
    left_out: tuple[str, ...]
    """Submissions that were accepted in the latest rounds and could not be aggregated: round, whose, and why."""
    lease_length: str = ""
    """How many inner steps a lease has, why, and what share of their time workers train."""
    audit_plan: str
    """How much is computed again, and by whom."""
    gains: str = ""
    """Who measures what submissions gain, and how surely it is known."""
    rollback: str
    """How far back a rollback reaches, in words; empty where it is off."""
    rolled_back: tuple[str, ...]
    """What came of the latest ones."""
    substitutes: tuple[str, ...]
    """Blocks of the latest version that the run's rule did not answer for: which, why, and what would mend it."""
    audits: tuple[str, ...] = ()
    """What audits could not be paid for, and what they leave to the operator."""
    cautions: tuple[str, ...] = ()
    """What keeps from taking the versions on trust: rounds withheld, blocks that too few people train."""
    screened_in_public: bool = False
    """Submissions are measured on text that workers may know: the run began before there was a choice, or chose it."""
    working_on: tuple[str, ...]
    """Slow commands that are pending, e.g. `aggregate:r3`, with an error where one failed."""
    standby: StandbyStatus | None = None
    """None: nobody follows the run."""
    elsewhere: KeptStatus | None = None
    """What would be left if this machine were gone; None where nobody serves the run."""
    leases_granted: int
    leases_expired: int
    leases_returned: int
    submissions_accepted: int
    submissions_rejected: dict[str, int]
    bytes_up: int
    bytes_down: int
    calls: int
    refused_calls: int
    failed_commands: int = 0
    """How often the coordinator's own work failed."""


class RunStatus(RunSummary):
    """A summary and the rows that were asked for with it. Rows are as of the moment at which each page was made."""

    workers: tuple[WorkerStatus, ...] = ()
    history: tuple[ClosedRound, ...] = ()
    validations: tuple[ValidationStatus, ...] = ()
    checkpoints: tuple[CheckpointStatus, ...] = ()
