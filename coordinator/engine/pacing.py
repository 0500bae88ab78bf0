"""How much, how long, how fast: inner steps, lease deadlines, weights and scales. Rates are in `schedules.py`.

Decides from journalled facts alone (probes at enrolment, durations of earlier submissions), never from heartbeats. A
lease ends when its upload does: overhead + steps x time of a step + upload. Whoever would end the recipe's steps near
the median worker's end does them; whoever would end later does fewer, and whoever would end sooner does more, in
eighths and up to `most_steps_share` times the recipe's (docs/decisions/0005: why twice), so that all end near the same
time and near-equal machines do equal steps. Times are medians of the last reports, so one odd lease changes little, and
a worker cannot claim a shorter time than it took.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from coordinator.engine.config import EngineConfig
from coordinator.engine.rows import LeaseRecord, SpeedReport, WorkerRecord
from coordinator.engine.schedules import recipe_steps
from coordinator.engine.speeds import Speeds, overhead_s, upload_s
from coordinator.engine.state import EngineState
from protocol.ids import RoundNumber, WorkerId
from protocol.lease import Lease
from protocol.recipe import Recipe

T = TypeVar("T")

EIGHTHS = 8
KEPT_REPORTS = 5
"""Enough for a median that one odd lease does not move, few enough to follow a machine that changes."""
SPARE_EIGHTHS = 2
"""A spare does at least a quarter of the steps: less teaches nothing, more keeps everybody waiting."""
MAX_STEP_SCALE = 2.0
"""A few warm-up steps say little about where many would lead; scaled by 4 they raised the loss by a quarter."""
PART = 0.25
_ROUNDING = 1e-9
"""Equal machines are equal in spite of it."""
MOST_REGRANTS = 2
"""Times that an unfinished lease's deadline is moved for a worker that starts it again."""


def report_of(record: LeaseRecord, committed_at_s: float, train_s: float, inner_steps: int) -> SpeedReport:
    """What a commit tells about speed; a training time that is not a number, or is longer than the wall, is the wall's.

    Its worker may have trained while the coordinator was not there, but could neither fetch nor commit: of such a gap
    nothing but training is counted.
    """
    elapsed_s = max(committed_at_s - record.lease.granted_at_s, 1e-6)
    credible = math.isfinite(train_s) and 0.0 < train_s <= elapsed_s
    trained_s = train_s if credible else elapsed_s
    return SpeedReport(steps=inner_steps, train_s=trained_s, wall_s=max(trained_s, elapsed_s - record.gap_s))


def last_few(reports: tuple[T, ...], report: T) -> tuple[T, ...]:
    """The last few reports, with one more."""
    return (*reports, report)[-KEPT_REPORTS:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Speeds of the swarm at one moment: a view, good until the next event."""

    speeds: Speeds
    recipe_steps: int
    """Inner steps of a whole lease in the present round."""

    @property
    def reference_end_s(self) -> float | None:
        """When the median worker ends a whole lease, uploaded; None while nobody has submitted."""
        return self.speeds.reference_end_s if self.speeds.any_measured else None

    def step_s(self, worker: WorkerId) -> float | None:
        """Seconds an inner step takes this worker, by its own measure or its probe; else the median; None as above."""
        if not self.speeds.any_measured:
            return None
        own = self.speeds.step_s(worker)
        return self.speeds.reference_step_s if own is None else own

    def eighths_until(self, until_s: float, step_s: float, fixed_s: float, most: int = EIGHTHS) -> int:
        """Eighths of a whole lease that such a worker has trained and uploaded within `until_s`, 0 to `most`."""
        whole_s = self.recipe_steps * step_s
        share = (until_s - fixed_s) / whole_s if whole_s > 0.0 else math.nan
        if math.isnan(share):
            return EIGHTHS  # speeds that cannot be compared are taken as equal
        return math.floor(max(0.0, min(most, share * EIGHTHS)) + _ROUNDING)


def pace_of(state: EngineState) -> Pace:
    """Speeds of all workers, from their own reports where there are any, from probes otherwise."""
    return Pace(speeds=state.index.speeds, recipe_steps=recipe_steps(state.config, state.round.round))


def eighths_by_speed(config: EngineConfig, pace: Pace, worker: WorkerId) -> int:
    """Share of the recipe's steps, in eighths, with which the worker ends near the median one's whole lease."""
    own, end_s = pace.speeds.step_s(worker), pace.speeds.reference_end_s
    if own is None or end_s is None:
        return EIGHTHS
    fixed_s, most = pace.speeds.fixed_s(worker), _most_eighths(config)
    recipe_at_most = pace.eighths_until(end_s * (1.0 + config.pace_tolerance), own, fixed_s)
    # tolerance is for those who would do less: nobody near the median does more than it
    return max(1, recipe_at_most, pace.eighths_until(end_s, own, fixed_s, most))


def eighths_by_time_left(state: EngineState, pace: Pace, worker: WorkerId) -> int:
    """Share of the recipe's steps that still fits into the round, in eighths; 0 where none does."""
    return _eighths_that_fit(state, pace, pace.step_s(worker), pace.speeds.fixed_s(worker))


def eighths_for_the_fastest(state: EngineState, pace: Pace) -> int:
    """At least the same for whoever is here."""
    return _eighths_that_fit(state, pace, pace.speeds.least_step_s, pace.speeds.least_fixed_s)


def _eighths_that_fit(state: EngineState, pace: Pace, own_step_s: float | None, fixed_s: float) -> int:
    started_s, end_s = state.round.first_lease_at_s, pace.reference_end_s
    if started_s is None or end_s is None or own_step_s is None:
        return EIGHTHS
    gone_s = state.now_s - started_s
    left_s = (end_s - gone_s) * (1.0 + state.config.pace_tolerance)
    fits = pace.eighths_until(left_s, own_step_s, fixed_s, _most_eighths(state.config))
    # who fits into no round at all is leased in its first wave, or never would be
    first_wave = gone_s <= state.config.pace_tolerance * end_s
    return max(1, fits) if first_wave else fits


def _most_eighths(config: EngineConfig) -> int:
    return math.floor(EIGHTHS * config.most_steps_share)


def steps_of(config: EngineConfig, round_number: RoundNumber, eighths: int) -> int:
    """Inner steps for a share of the round's recipe."""
    return max(1, round(recipe_steps(config, round_number) * eighths / EIGHTHS))


def steps_share(state: EngineState, lease: Lease) -> float:
    """What is taken of a lease over what is of a whole one of its round: in steps at the full rate, 1 at most."""
    whole = recipe_steps(state.config, RoundNumber(lease.round))
    warmup = state.config.inner.warmup_steps
    own = full_steps(lease.inner_steps, lease.recipe.warmup_steps) * step_scale(whole, lease)
    return min(1.0, own / full_steps(whole, min(warmup, whole)))


def taken(config: EngineConfig) -> float:
    """How many times a pseudo-gradient an outer step of it alone moves the model by: alone, it is scaled to no others.

    Nesterov's correction adds the momentum's share of it in the same step (aggregation/outer.py).
    """
    return config.outer_learning_rate * (1.0 + config.outer_momentum)


def part_measured(config: EngineConfig, lease: Lease) -> float:
    """A quarter of what is taken of it at its round's steps.

    Honest steps at high rates overshoot in their full length, and at half of it, by one worker's own noise, which the
    round averages away; a quarter lost no more than the error of measuring (docs/log.md, 2026-11-26).
    """
    return PART * taken(config) * step_scale(recipe_steps(config, RoundNumber(lease.round)), lease)


def expected_s(record: WorkerRecord, pace: Pace, inner_steps: int) -> float | None:
    """How long this lease should take, grant to commit; None where nobody has been measured."""
    own = pace.step_s(record.worker)
    return None if own is None else inner_steps * own + overhead_s(record)


def expected_end_s(record: WorkerRecord, pace: Pace, inner_steps: int) -> float | None:
    """The same, from grant to the last byte of its upload."""
    until_commit_s = expected_s(record, pace, inner_steps)
    return None if until_commit_s is None else until_commit_s + upload_s(record)


def time_to_live_s(config: EngineConfig, record: WorkerRecord, pace: Pace, inner_steps: int) -> float:
    """From grant to deadline, which is about the commit: a few times the expected duration, and a whole download.

    What is expected is the median of earlier leases, most of which found nearly all of the model on their machine.
    """
    expected = expected_s(record, pace, inner_steps)
    if expected is None:
        return config.lease_ttl_s
    return min(config.lease_ttl_s, max(config.min_lease_s, config.lease_slack * expected) + config.fetch_s)


def full_steps(steps: int, warmup_steps: int) -> float:
    """Steps at the full rate that are as far as `steps` of which the first ones warm up."""
    warm = min(steps, warmup_steps)
    return steps - warm + warm * (warm + 1) / (2.0 * (warmup_steps + 1))


def reach(lease: Lease) -> float:
    """What the norm of an honest pseudo-gradient is in proportion to: the rate, and steps to a power of 0.7 to 0.8."""
    return _reach(lease.recipe, lease.inner_steps)


def norm_scale(config: EngineConfig, lease: Lease, carried: float = 0.0) -> float:
    """Brings a norm to the steps and the rate of the recipe's beginning, so that norms of all rounds can be compared.

    This way all of a run were within 0.6 to 1.44 of their median, at leases of 1 to 400 steps (docs/log.md,
    2026-11-26). `carried` is the reach of what a residual brings along: where rates fall at once, that is the longer.
    """
    return _reach(config.inner, config.inner.inner_steps) / max(reach(lease), carried)


def rate_share(config: EngineConfig, lease: Lease) -> float:
    """Its rate over the recipe's own: what gains, and what people's gains differ by, are in proportion to."""
    return lease.recipe.learning_rate / config.inner.learning_rate


def gain_spread(state: EngineState, lease: Lease) -> float:
    """What people's gains lately differed by, at this lease's rate: at the small rates of a run's end, little."""
    return state.gain_spread * rate_share(state.config, lease)


def _reach(recipe: Recipe, steps: int) -> float:
    return float(recipe.learning_rate * full_steps(steps, min(recipe.warmup_steps, steps)) ** 0.75)


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
    most = max_ratio * median(raw) if raw else 0.0
    return [min(count, most) for count in raw]
