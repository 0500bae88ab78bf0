"""What a worker is trusted with: one pure function of its record and the run's configuration.

Decides, for everybody who asks, how much a worker's submissions weigh, whether it may hold a lease, and how likely its
leases are to be audited; and when it is set aside, and for how long. Whoever is set aside or banned
gets no lease; whoever audits have not vouched for `audits.first` times is audited with certainty, and so is whoever is
in doubt; then the rarer, the longer its record is. Holds always: what was accepted before
its worker was set aside weighs as it did; being late, slow or gone takes no trust away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.engine.config import EngineConfig
from coordinator.engine.reasons import BLAMED_KEYS, Case, Verdict, reason
from coordinator.engine.rows import Quarantine, WorkerRecord
from protocol.ids import RoundNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a worker's record is worth at this moment."""

    weight: float
    """Factor on what its accepted submissions weigh, 0 to 1."""
    may_hold: bool
    """Whether it may be granted a lease."""
    audit_probability: float
    """Of a lease of its being computed again, 0 to 1."""


MOST_UNANSWERED: Final = 1
"""Commits without bytes that are an accident: machines do die between the two."""


def trust_of(config: EngineConfig, record: WorkerRecord) -> Trust:
    """How far this worker is trusted."""
    may_hold = record.quarantine is None and record.ban is None
    weight = 0.0 if record.ban is not None or record.audits_failed else 1.0
    return Trust(weight=weight, may_hold=may_hold, audit_probability=_audit_probability(config, record))


def _audit_probability(config: EngineConfig, record: WorkerRecord) -> float:
    """1 for the first and for the doubted, then max(least, 1 / valid in a row); founders' first are taken as passed."""
    in_doubt = record.audits_failed > 0 or record.false_accusations > 0 or record.unanswered > MOST_UNANSWERED
    if in_doubt or (not record.trusted and record.audits_passed < config.audits.first):
        return 1.0
    return max(config.audits.least_probability, 1.0 / max(1, record.valid_in_row, config.audits.first))


def refused_in_row(record: WorkerRecord, verdict: Verdict) -> int:
    """How many of the worker's submissions were refused in a row for what was in them, once `verdict` is its latest."""
    return record.rejected_in_row + (verdict.key in BLAMED_KEYS)


def quarantine_after(
    config: EngineConfig, in_row: int, verdict: Verdict, *, round_: RoundNumber, now_s: float
) -> Quarantine | None:
    """How long the worker is set aside when the last of `in_row` refusals is `verdict`; None where it is not."""
    if verdict.key not in BLAMED_KEYS or in_row < config.quarantine_after:
        return None
    figures = {"in_row": in_row, "rounds": config.quarantine_rounds, "seconds": config.quarantine_s}
    return Quarantine(
        until_round=RoundNumber(round_ + config.quarantine_rounds + 1),
        until_s=now_s + config.quarantine_s,
        why=reason(Case.SET_ASIDE, verdict.key, **figures),
    )


def is_served(quarantine: Quarantine, *, round_: RoundNumber, now_s: float) -> bool:
    """Whether it is over: at the earlier of its two ends."""
    return round_ >= quarantine.until_round or now_s >= quarantine.until_s
