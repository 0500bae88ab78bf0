"""Judges what was measured of a submission. Facts come in, a verdict with a stable key and figures goes out.

Decides accepted or rejected, from the measurement, the run's running medians of norms and the round's running median of
gains. Holds always: a submission that is malformed or not finite is refused, with screening switched off too. Norms
are compared at a common number of steps. A column's norm is held against the larger of its own median and the median
over all columns, since an expert that few tokens reach has small norms until it has large ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from coordinator.engine.config import ScreeningConfig
from coordinator.engine.events import BlockNorm, SubmissionMeasured
from coordinator.engine.medians import NormHistory, NormMedians
from coordinator.engine.reasons import (
    HELDOUT_GAIN_TOO_SMALL,
    HELDOUT_LOSS_ROSE,
    MALFORMED,
    NON_FINITE,
    NORM_TOO_LARGE,
    NORM_TOO_SMALL,
    Case,
    Verdict,
    accepted,
    rejected,
)
from protocol.ids import TRUNK, BlockId

MIN_GAINS = 2


def scaled_norms(event: SubmissionMeasured, scale: float) -> tuple[BlockNorm, ...]:
    """Norms at a common number of steps."""
    return tuple(BlockNorm(block=norm.block, norm_l2=norm.norm_l2 * scale) for norm in event.norms)


def judge(
    config: ScreeningConfig,
    event: SubmissionMeasured,
    *,
    norms: tuple[BlockNorm, ...],
    medians: NormMedians,
    gains_median: float | None,
    steps_share: float,
) -> Verdict:
    """The verdict on one submission.

    `norms` are scaled. `gains_median` is of the gains accepted in the same round; None where there are too few
    (`MIN_GAINS`).
    """
    if event.malformed:
        return rejected(MALFORMED, Case.NOT_AS_LEASED, event.malformed)
    for norm in event.norms:
        if not math.isfinite(norm.norm_l2):
            return rejected(NON_FINITE, Case.NORM_NOT_FINITE, norm.block, norm=norm.norm_l2)
    if not config.enabled:
        return accepted(Case.UNSCREENED)
    against = (
        _judge_lengths(config, event.norms)
        or _judge_norms(config, norms, medians)
        or _judge_gain(config, event.heldout_gain, event.heldout_gain_se, gains_median, steps_share)
    )
    if against is not None:
        return against
    return accepted(Case.GAIN, **_figures(config, event.heldout_gain, event.heldout_gain_se))


def remember(
    history: NormHistory, submissions: Iterable[tuple[BlockNorm, ...]], kept: int
) -> dict[BlockId, tuple[float, ...]]:
    """The history with the norms of accepted submissions added, in their order; the last `kept` of each block."""
    added: dict[BlockId, list[float]] = {}
    for norms in submissions:
        for norm in norms:
            added.setdefault(norm.block, []).append(norm.norm_l2)
    return {**history, **{block: (*history.get(block, ()), *new)[-kept:] for block, new in added.items()}}


def _judge_lengths(config: ScreeningConfig, norms: tuple[BlockNorm, ...]) -> Verdict | None:
    """Against the weights themselves: the only check that the run's very first submissions can be held to."""
    for norm in norms:
        if 0.0 < norm.base_l2 * config.max_base_factor < norm.norm_l2:
            figures = {"norm": norm.norm_l2, "base": norm.base_l2, "most": config.max_base_factor}
            return rejected(NORM_TOO_LARGE, Case.NORM_OVER_WEIGHTS, norm.block, **figures)
    return None


def _judge_norms(config: ScreeningConfig, norms: tuple[BlockNorm, ...], medians: NormMedians) -> Verdict | None:
    for norm in norms:
        middle = medians.of(norm.block)
        most = config.max_norm_factor if norm.block == TRUNK else config.max_column_norm_factor
        if middle is None or middle <= 0.0:
            continue
        ratio = norm.norm_l2 / middle
        figures = {"norm": norm.norm_l2, "ratio": ratio, "median": middle}
        if ratio > most:
            return rejected(NORM_TOO_LARGE, Case.NORM_OVER_MEDIAN, norm.block, **figures, most=most)
        # An expert that no token reached has an honest norm of 0; the trunk is always trained.
        least = config.min_norm_factor
        if norm.block == TRUNK and ratio < least:
            return rejected(NORM_TOO_SMALL, Case.NORM_UNDER_MEDIAN, norm.block, **figures, least=least)
    return None


def review_gain(
    config: ScreeningConfig, gain: float, gain_se: float, gains_median: float | None, steps_share: float
) -> Verdict | None:
    """A second look when the round closes: the first to be judged had no peers to be compared with."""
    return _judge_gain(config, gain, gain_se, gains_median, steps_share) if config.enabled else None


def review_norms(config: ScreeningConfig, norms: tuple[BlockNorm, ...], medians: NormMedians) -> Verdict | None:
    """The same for norms; `medians` are of this round's, too."""
    return _judge_norms(config, norms, medians) if config.enabled else None


def _judge_gain(
    config: ScreeningConfig, gain: float, gain_se: float, gains_median: float | None, steps_share: float
) -> Verdict | None:
    if not math.isfinite(gain):
        return rejected(HELDOUT_LOSS_ROSE, Case.GAIN_NOT_FINITE, gain=gain)
    figures = _figures(config, gain, gain_se)
    doubt = figures["doubt"]
    if gain + doubt < config.min_heldout_gain:
        key = HELDOUT_LOSS_ROSE if gain < 0 else HELDOUT_GAIN_TOO_SMALL
        return rejected(key, Case.GAIN_UNDER_LEAST, **figures, least=config.min_heldout_gain)
    if gains_median is None:
        return None
    least = config.min_heldout_gain_share * gains_median * min(1.0, steps_share)
    if gain + doubt < least:
        share = config.min_heldout_gain_share
        return rejected(
            HELDOUT_GAIN_TOO_SMALL, Case.GAIN_UNDER_MEDIAN, **figures, least=least, share=share, median=gains_median
        )
    return None


def _figures(config: ScreeningConfig, gain: float, gain_se: float) -> dict[str, float]:
    """A gain, its standard error, and how far it may be from the truth in the worker's favour."""
    doubt = config.gain_error_margin * gain_se if math.isfinite(gain_se) else 0.0
    return {"gain": gain, "error": gain_se, "doubt": doubt}
