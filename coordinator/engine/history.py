"""What a run remembers of what is over: closed rounds, validations, exports, failures, the calendar, and counters.

Decides how much of it: the first row and the latest, so that a run of any length fits into memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from coordinator.engine.reasons import Reason, told
from protocol.ids import Digest, LeaseId, RoundNumber, Version, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A submission that was accepted and could not be aggregated."""

    lease_id: LeaseId
    worker: WorkerId
    why: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualGain:
    """What the accepted submissions of a round gained, as `LeaseRecord.heldout_gain` has it: nats a token."""

    gain: float
    """The median."""
    spread: float
    """The median of their standard deviations over sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLevel:
    """A version that later ones are compared with."""

    version: Version
    manifest: Digest
    round: RoundNumber
    """That made it."""
    level: float
    """Sum of the gains, each over its parent, that led to it: a higher one is a better version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A closed round: what the state, a status and a simulation's report hold of it."""

    round: RoundNumber
    base_version: Version
    version: Version | None
    """None: nothing acceptable came, the blocks are unchanged."""
    opened_at_s: float
    closed_at_s: float
    accepted: int
    rejected: int
    expired: int
    returned: int
    late_used: int
    """Accepted submissions of earlier rounds that counted here."""
    update_norm_l2: float | None
    val_loss: float | None
    val_loss_se: float | None
    closed: Reason
    """Why no more was waited for."""
    unpublished: Reason | None = None
    """Why it has no version."""
    left_out: tuple[LeftOut, ...] = ()
    withheld: tuple[Reason, ...] = ()
    """Versions that were made of it and not published, in their order."""
    thin: int = 0
    """Blocks that fewer than three independent people returned."""
    sequences: int = 0
    """That were trained on in what counted; rounds of older releases do not say."""

    @property
    def lasted_s(self) -> float:
        """Run time from its opening to its close."""
        return self.closed_at_s - self.opened_at_s

    @property
    def close_reason(self) -> str:
        """Why it closed, what it withheld, and why it published nothing where it did not, in words."""
        return "; ".join(told(why) for why in (self.unpublished, *self.withheld, self.closed) if why is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Held-out loss of one version."""

    version: Version
    val_loss: float
    val_loss_se: float
    measured_by: WorkerId | None = None
    """The trusted worker whose word it is; None: the coordinator's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An exported version."""

    version: Version
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One change of a setting by the operator."""

    number: int
    """1 is the run's first change."""
    at_s: float
    key: str
    before: str
    """JSON, as is `value`."""
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarMark:
    """What the calendar showed at a run time. From mark to mark both advance alike, up to what a step counts as."""

    at_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A pending command that could not be carried out so far."""

    count: int
    error: str
    """The latest."""
    of_content: int = 0
    """How many of them were not the disk's or the memory's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters over the whole run."""

    leases_granted: int = 0
    leases_expired: int = 0
    leases_returned: int = 0
    spares: int = 0
    submissions_accepted: int = 0
    submissions_rejected: dict[str, int] = field(default_factory=dict)
    """Reason key to count."""
    gains_delegated: int = 0
    """Submissions whose gains a trusted worker's word was taken for."""
    gains_checked: int = 0
    """Answers of trusted workers that were held against another's, or against the coordinator's own measuring."""
    gains_false: int = 0
    """Of these, those that were something else."""
    sequences: int = 0
    """That were trained on in what counted, since a release that counts them."""


class AuditOutcome(StrEnum):
    """What became of a lease that an auditor could not reproduce."""

    OPEN = "open"
    """Another auditor is to say."""
    CONFIRMED = "confirmed"
    """Two independent auditors came to something else than what was sent."""
    CLEARED = "cleared"
    """Two independent auditors came to what was sent: who said otherwise was wrong."""
    UNDECIDED = "undecided"
    """There was nobody left to ask: the operator decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accusation:
    """A lease that an auditor could not reproduce, and what others found."""

    lease_id: LeaseId
    worker: WorkerId
    round: RoundNumber
    at_s: float
    """When the latest opinion came."""
    accusers: tuple[str, ...]
    """People (`WorkerRecord.person`); empty: the coordinator itself."""
    vouchers: tuple[str, ...]
    outcome: AuditOutcome


KEPT_ROWS = 1000
"""Rows of each kind that are remembered: the event log has all."""

Row = TypeVar("Row")


def remembered(rows: tuple[Row, ...], row: Row) -> tuple[Row, ...]:
    """`rows` and a new one: the first, which tells where all began, and the latest."""
    return (*rows, row) if len(rows) < KEPT_ROWS else (rows[0], *rows[2:], row)


def wall_at_s(marks: Sequence[CalendarMark], at_s: float) -> float | None:
    """Calendar time at run time `at_s`, by the last mark before it; None where the calendar was never told."""
    if not marks:
        return None
    mark = marks[max(0, bisect_right(marks, at_s, key=lambda mark: mark.at_s) - 1)]
    return mark.wall_s + (at_s - mark.at_s)
