"""What a worker is trusted with: one pure function of its record and the run's configuration.

Decides, for everybody who asks, how much a worker's submissions weigh, whether it may hold a lease, and how likely its
leases are to be audited; and what each verdict makes of its record: slowly up, fast down. Holds always: being late,
slow or gone takes no trust away; whoever was invited with `--trusted` has full weight from the start; nobody whom an
auditor contradicted, whom nobody has vouched for in an open run, or who comes back from a quarantine weighs anything;
what was accepted before its worker was set aside weighs as it did, what was accepted before a ban weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from coordinator.engine.config import EngineConfig
from coordinator.engine.reasons import BLAMED_KEYS, Case, Verdict, reason
from coordinator.engine.rows import Quarantine, WorkerRecord
from coordinator.engine.sequential import is_doubted as falls_short
from protocol.ids import RoundNumber

UNANSWERED: Final = 0.5
"""Of a refusal: a commit whose bytes never came from a worker that is here, or a challenge that it left unanswered."""
_DOUBT: Final = 1.5
"""Refusals, older ones counting less, from which on a share that is half of quarantine's has every lease audited."""
_NEARLY: Final = 0.9
"""Of what `quarantine_after` refusals in a row would leave: a truth or two between them change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a worker's record is worth at this moment."""

    weight: float
    """Factor on what its accepted submissions weigh, 0 to 1."""
    may_hold: bool
    """Whether it may be granted a lease."""
    audit_probability: float
    """Of a lease of its being computed again, 0 to 1."""


_BANNED: Final = Trust(weight=0.0, may_hold=False, audit_probability=0.0)


def trust_of(config: EngineConfig, record: WorkerRecord) -> Trust:
    """How far this worker is trusted."""
    if record.ban is not None:
        return _BANNED
    aside = record.quarantine
    return Trust(
        weight=_weight(config, record) if aside is None else aside.weight,
        may_hold=aside is None,
        audit_probability=_audit_probability(config, record),
    )


def may_audit(record: WorkerRecord) -> bool:
    """Whether it may be asked to compute leases of others again: a founder whose own record is clean."""
    clean = record.ban is None and record.quarantine is None and record.accused is None
    return record.trusted and clean and not record.probation_left


def has_been_undecided(config: EngineConfig, record: WorkerRecord) -> bool:
    """Whether so many of its audits could not say anything, one after the other, that more are not asked for surely."""
    return record.undecided_in_row >= config.audits.first


def is_doubted(config: EngineConfig, record: WorkerRecord) -> bool:
    """Whether what is known of it is reason enough to audit whatever it sends."""
    if record.accused is not None or record.audits_failed or record.probation_left or falls_short(record):
        return True
    share = config.reputation.quarantine_share / 2
    return record.refused_lately >= _DOUBT and record.refused_lately >= share * record.judged_lately


def _weight(config: EngineConfig, record: WorkerRecord) -> float:
    reputation = config.reputation
    if record.accused is not None or record.probation_left:
        return 0.0
    if record.trusted:
        return 1.0
    if config.open_run and config.audits.budget > 0 and record.audits_passed < reputation.vouched_after:
        return 0.0
    grown = min(1.0, record.valid_in_row / reputation.full_after)
    return reputation.first_weight + (1.0 - reputation.first_weight) * grown


def _audit_probability(config: EngineConfig, record: WorkerRecord) -> float:
    audits = config.audits
    if audits.budget <= 0:
        return 0.0
    if record.appeal is not None or is_doubted(config, record):
        return 1.0
    if record.trusted:
        return audits.least_probability
    if record.audits_passed + record.audits_failed < audits.first and not has_been_undecided(config, record):
        return 1.0
    return max(audits.least_probability, 1.0 / max(1, record.valid_in_row))


# ---- what becomes of a record ---------------------------------------------------------------------------


def after_verdict(config: EngineConfig, record: WorkerRecord, verdict: Verdict) -> dict[str, Any]:
    """Fields of the record that change with `verdict`; none where it says nothing about what was sent."""
    if verdict.accepted:
        left = max(0, record.probation_left - 1)
        return {**_faded(config, record, 0.0), "valid_in_row": record.valid_in_row + 1, "probation_left": left}
    return after_fault(config, record, 1.0) if verdict.key in BLAMED_KEYS else {}


def after_fault(config: EngineConfig, record: WorkerRecord, fault: float) -> dict[str, Any]:
    """Fields that change with something it is to blame for, `fault` of a refused submission: less is a matter of the
    share alone, so that a slow uplink costs no weight."""
    if fault < 1.0:
        return _faded(config, record, fault)
    left = config.reputation.probation if record.probation_left else 0
    return {**_faded(config, record, fault), "valid_in_row": 0, "probation_left": left}


def after_withdrawal(record: WorkerRecord) -> dict[str, Any]:
    """Fields that change when an acceptance does not stand: as if it had not been."""
    return {
        "valid_in_row": max(0, record.valid_in_row - 1),
        "judged_lately": max(record.refused_lately, record.judged_lately - 1.0),
    }


def quarantine_after(
    config: EngineConfig, record: WorkerRecord, key: str, *, round_: RoundNumber, now_s: float, weight: float
) -> Quarantine | None:
    """How long the worker is set aside, whose record has its latest fault (`key`) in it; None where it is not.

    `weight`: what its submissions weighed before that.
    """
    refused, judged = record.refused_lately, record.judged_lately
    if refused < _enough(config) or refused < config.reputation.quarantine_share * judged:
        return None
    doubled = 2 ** min(record.quarantines, config.reputation.most_doublings)
    rounds, seconds = config.quarantine_rounds * doubled, config.quarantine_s * doubled
    return Quarantine(
        until_round=RoundNumber(round_ + rounds + 1),
        until_s=now_s + seconds,
        why=reason(Case.SHARE_REFUSED, key, refused=refused, judged=judged, rounds=rounds, seconds=seconds),
        weight=weight,
    )


def is_served(quarantine: Quarantine, *, round_: RoundNumber, now_s: float) -> bool:
    """Whether it is over: at the earlier of its two ends."""
    return round_ >= quarantine.until_round or now_s >= quarantine.until_s


def _enough(config: EngineConfig) -> float:
    """Refusals, as they fade, that are evidence enough."""
    memory = config.reputation.memory
    return _NEARLY * memory * (1.0 - (1.0 - 1.0 / memory) ** config.quarantine_after)


def _faded(config: EngineConfig, record: WorkerRecord, fault: float) -> dict[str, Any]:
    kept = 1.0 - 1.0 / config.reputation.memory
    return {"judged_lately": record.judged_lately * kept + 1.0, "refused_lately": record.refused_lately * kept + fault}
