"""How much, how long, how fast: inner steps, lease deadlines, learning rates, weights and scales.

Decides from journalled facts alone (probes at enrolment, durations of earlier submissions), never from heartbeats. A
worker at or near the median speed, or faster, does the recipe's steps; a slower one does fewer, in eighths, so that all
finish near the same time and near-equal speeds give equal steps. Speeds are medians of the last reports, so one odd
lease changes little, and a worker cannot claim a shorter time than it took.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from coordinator.engine.config import EngineConfig
from coordinator.engine.lease import Lease
from coordinator.engine.speeds import Speeds
from coordinator.engine.state import EngineState, LeaseRecord, SpeedReport, WorkerRecord
from protocol.ids import RoundNumber, WorkerId

EIGHTHS = 8
KEPT_REPORTS = 5
"""Enough for a median that one odd lease does not move, few enough to follow a machine that changes."""
SPARE_EIGHTHS = 2
"""A spare does at least a quarter of the steps: less teaches nothing, more keeps everybody waiting."""
MAX_STEP_SCALE = 2.0
"""A few warm-up steps say little about where many would lead; scaled by 4 they raised the loss by a quarter."""
MOST_REGRANTS = 2
"""Times that an unfinished lease's deadline is moved for a worker that starts it again."""


def report_of(record: LeaseRecord, committed_at_s: float, train_s: float, inner_steps: int) -> SpeedReport:
    """What a commit tells about speed; a training time that is no number or longer than the wall is the wall's."""
    wall_s = max(committed_at_s - record.lease.granted_at_s, 1e-6)
    credible = math.isfinite(train_s) and 0.0 < train_s <= wall_s
    return SpeedReport(steps=inner_steps, train_s=train_s if credible else wall_s, wall_s=wall_s)


def with_report(reports: tuple[SpeedReport, ...], report: SpeedReport) -> tuple[SpeedReport, ...]:
    """The last few reports."""
    return (*reports, report)[-KEPT_REPORTS:]


def overhead_s(record: WorkerRecord) -> float:
    """Seconds of a lease that are not training: fetching, and looking for work."""
    return median(report.wall_s - report.train_s for report in record.reports) if record.reports else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Speeds of the swarm at one moment: a view, good until the next event."""

    speeds: Speeds
    reference_step_s: float | None
    """Median over present workers; None while nobody has submitted."""

    def step_s(self, worker: WorkerId) -> float | None:
        """Seconds an inner step takes this worker, by its own measure or its probe; else the median."""
        own = self.speeds.step_s(worker) if self.speeds.any_measured else None
        return self.reference_step_s if own is None else own

    def relative(self, worker: WorkerId) -> float:
        """Speed over the median speed; 1 where unknown."""
        own, middle = self.speeds.step_s(worker), self.speeds.reference_step_s
        ratio = middle / own if own and middle else 1.0
        return ratio if math.isfinite(ratio) else 1.0


def pace_of(state: EngineState) -> Pace:
    """Speeds of all workers, from their own reports where there are any, from probes otherwise."""
    speeds = state.index.speeds
    return Pace(speeds=speeds, reference_step_s=speeds.reference_step_s if speeds.any_measured else None)


def eighths_by_speed(config: EngineConfig, pace: Pace, worker: WorkerId) -> int:
    """Share of the recipe's steps, in eighths, by speed alone."""
    relative = min(float(EIGHTHS), pace.relative(worker))
    return max(1, min(EIGHTHS, math.floor(EIGHTHS * relative * (1.0 + config.pace_tolerance))))


def eighths_by_time_left(state: EngineState, pace: Pace, worker: WorkerId) -> int:
    """Share of the recipe's steps that still fits into the round, in eighths; 0 where none does."""
    return _eighths_that_fit(state, pace, pace.step_s(worker))


def eighths_for_the_fastest(state: EngineState, pace: Pace) -> int:
    """The same for the fastest worker that is here."""
    return _eighths_that_fit(state, pace, pace.speeds.least_step_s)


def _eighths_that_fit(state: EngineState, pace: Pace, own_step_s: float | None) -> int:
    started_s = state.round.first_lease_at_s
    if started_s is None or pace.reference_step_s is None or own_step_s is None:
        return EIGHTHS
    steps = state.config.inner.inner_steps
    left_s = steps * pace.reference_step_s - (state.now_s - started_s)
    fits = EIGHTHS * left_s / (steps * own_step_s)
    return max(0, min(EIGHTHS, math.floor(fits * (1.0 + state.config.pace_tolerance))))


def steps_of(config: EngineConfig, eighths: int) -> int:
    """Inner steps for a share of the recipe."""
    return max(1, round(config.inner.inner_steps * eighths / EIGHTHS))


def expected_s(record: WorkerRecord, pace: Pace, inner_steps: int) -> float | None:
    """How long this lease should take, grant to commit; None where nobody has been measured."""
    own = pace.step_s(record.worker)
    return None if own is None else inner_steps * own + overhead_s(record)


def time_to_live_s(config: EngineConfig, record: WorkerRecord, pace: Pace, inner_steps: int) -> float:
    """From grant to deadline: a few times the expected duration, within limits."""
    expected = expected_s(record, pace, inner_steps)
    if expected is None:
        return config.lease_ttl_s
    return min(config.lease_ttl_s, max(config.min_lease_s, config.lease_slack * expected))


def learning_rate(config: EngineConfig, round_number: RoundNumber) -> float:
    """Cosine from the recipe's rate in the first round to `final_lr_share` of it in the last."""
    peak, share = config.inner.learning_rate, config.inner.final_lr_share
    progress = min(1.0, (round_number - 1) / max(1, config.max_rounds - 1))
    return peak * (share + (1.0 - share) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def recipe_scale(config: EngineConfig, lease: Lease) -> float:
    """Brings a norm to the recipe's number of steps, so that norms of all rounds can be compared."""
    return config.inner.inner_steps / lease.inner_steps


def common_steps(leases: Sequence[Lease], weights: Sequence[float]) -> float:
    """Inner steps to which a round's pseudo-gradients are scaled: the weighted mean of what was really done.

    Not the recipe's number: a round of which only short leases came back is a short step, not a long one that nobody
    took (the normalised averaging of FedNova, arXiv:2007.07481).
    """
    total = sum(weights)
    mean = sum(lease.inner_steps * weight for lease, weight in zip(leases, weights, strict=True))
    return mean / total if total > 0.0 else 0.0


def step_scale(steps: float, lease: Lease) -> float:
    """Brings a pseudo-gradient to `steps` inner steps, extrapolating at most `MAX_STEP_SCALE` times."""
    return min(MAX_STEP_SCALE, steps / lease.inner_steps)


def capped_weights(sequences: Iterable[int], max_ratio: float) -> list[float]:
    """Sequences assigned, none counting more than `max_ratio` times the median."""
    raw = [float(count) for count in sequences]
    return [min(count, max_ratio * median(raw)) for count in raw] if raw else []
