"""Judges what was measured of a submission. Facts come in, a verdict with a stable key and figures goes out.

Decides accepted or rejected, from the measurement, what norms are held against (medians.py) and the round's gains.
Holds always: a submission that is malformed or not finite is refused, with screening switched off too. Norms are
compared at common steps and rates. Gains are measured twice. After a quarter of what the round may take of a submission
honest work gains something at every length of a lease, however noisy its steps. After all of it whatever spoils a model
shows, but honest steps may overshoot, too: there peers say what is too much, and where there are none, a limit does.
The errors of measuring speak for the worker, but never for more than `max_doubt`; and so does what people's gains
differ by among themselves: late in a run one lease alone is as likely to lose a little as to gain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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
from coordinator.engine.rows import LeaseRecord, SeenNorm
from protocol.ids import TRUNK, BlockId

MIN_GAINS = 2
"""Of other people's, before their median says anything."""
GAIN_ERRORS = 3.0
"""Standard errors: a median gain of less is noise, and nobody is held against it; audits then look more often."""
MIN_SPREAD = 4
"""Of other people's, before their spread does: of fewer, one liar would say it."""
_NORMAL = 1.4826
"""Standard deviations in a median distance from the median, of a normal distribution."""
PEERS_LOSS_FACTOR = 3.0
"""Honest steps that overshoot differ by so much among themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A gain and its standard error, nats a token."""

    gain: float
    se: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """What a submission's gains are compared with: medians over the others' people, None where there are too few."""

    gain: Measured | None = None
    full: Measured | None = None
    gain_spread: float = 0.0
    """Robust standard deviation of the others' gains; 0 where there are too few."""
    full_spread: float = 0.0


def spread_of(gains: Sequence[float]) -> float | None:
    """Robust standard deviation of people's gains (Rousseeuw and Croux 1993); None where there are too few."""
    if len(gains) < MIN_SPREAD:
        return None
    middle = median(gains)
    return _NORMAL * median(abs(gain - middle) for gain in gains)


def scaled_norms(event: SubmissionMeasured, scale_of: Callable[[BlockId], float]) -> tuple[BlockNorm, ...]:
    """Norms at common steps and rates; `scale_of` brings a block's there."""
    return tuple(BlockNorm(block=norm.block, norm_l2=norm.norm_l2 * scale_of(norm.block)) for norm in event.norms)


def judge(
    config: ScreeningConfig,
    event: SubmissionMeasured,
    *,
    norms: tuple[BlockNorm, ...],
    person: int,
    medians: NormMedians,
    gains_median: float | None,
    gain_spread: float,
    steps_share: float,
) -> Verdict:
    """The verdict on one submission as it comes; the second look (second_look.py) knows its peers.

    `norms` are scaled. `gains_median` is of the gains accepted in the same round; None where there are too few
    (`MIN_GAINS`). `gain_spread` is that of the latest round that could tell.
    """
    if event.malformed:
        return rejected(MALFORMED, Case.NOT_AS_LEASED, event.malformed)
    for norm in event.norms:
        if not math.isfinite(norm.norm_l2):
            return rejected(NON_FINITE, Case.NORM_NOT_FINITE, norm.block, norm=norm.norm_l2)
    if not config.enabled:
        return accepted(Case.UNSCREENED)
    gain = Measured(gain=event.heldout_gain, se=event.heldout_gain_se)
    usual = None if gains_median is None else Measured(gain=gains_median, se=0.0)
    peers = Peers(gain=usual, gain_spread=gain_spread)
    against = (
        _judge_lengths(config, event.norms)
        or judge_norms(config, norms, person, medians)
        or judge_gain(config, gain, peers, steps_share)
    )
    if against is not None:
        return against
    return accepted(Case.GAIN, **_figures(config, gain))


def remember(
    history: NormHistory, submissions: Iterable[tuple[SeenNorm, tuple[BlockNorm, ...]]], kept: int
) -> dict[BlockId, tuple[SeenNorm, ...]]:
    """The history with the norms of accepted submissions added, in their order; the last `kept` of each block.

    Each comes with a `SeenNorm` that says whose it is, and holds no norm yet.
    """
    added: dict[BlockId, list[SeenNorm]] = {}
    for seen, norms in submissions:
        for norm in norms:
            own = SeenNorm(person=seen.person, norm_l2=norm.norm_l2, trusted=seen.trusted)
            added.setdefault(norm.block, []).append(own)
    return {**history, **{block: (*history.get(block, ()), *new)[-kept:] for block, new in added.items()}}


def _judge_lengths(config: ScreeningConfig, norms: tuple[BlockNorm, ...]) -> Verdict | None:
    """Against the weights themselves: the only check that the run's very first submissions can be held to."""
    for norm in norms:
        if 0.0 < norm.base_l2 * config.max_base_factor < norm.norm_l2:
            figures = {"norm": norm.norm_l2, "base": norm.base_l2, "most": config.max_base_factor}
            return rejected(NORM_TOO_LARGE, Case.NORM_OVER_WEIGHTS, norm.block, **figures)
    return None


def judge_norms(
    config: ScreeningConfig, norms: tuple[BlockNorm, ...], person: int, medians: NormMedians
) -> Verdict | None:
    """Against what is normal for each block, and for this person where others cannot say. None where all is well.

    Nothing here refuses a column for being small: an expert that no token reached has an honest norm of 0.
    """
    for norm in norms:
        middle = medians.of(norm.block, person)
        if middle is None:
            continue
        most = config.max_norm_factor if norm.block == TRUNK else config.max_column_norm_factor
        if norm.norm_l2 > most * middle.high > 0.0:
            return _off(NORM_TOO_LARGE, Case.NORM_OVER_MEDIAN, norm, middle.high, most=most)
        if norm.block == TRUNK and norm.norm_l2 < config.min_norm_factor * middle.low:
            return _off(NORM_TOO_SMALL, Case.NORM_UNDER_MEDIAN, norm, middle.low, least=config.min_norm_factor)
    return None


def judge_small_columns(
    config: ScreeningConfig,
    norms: tuple[BlockNorm, ...],
    person: int,
    medians: NormMedians,
    holders: Mapping[BlockId, Sequence[SeenNorm]],
) -> Verdict | None:
    """Against what the same column was, and other columns are, where somebody else found it reached. None: all is well.

    `holders`: what all who hold a column in the same round found there. Where trusted ones are among them, they alone
    are heard; the person itself never is.
    """
    share = config.min_column_norm_factor
    for norm in norms:
        least = None if norm.block == TRUNK else medians.least_of(norm.block)
        if least is None or norm.norm_l2 >= share * least:
            continue
        heard = [seen for seen in holders.get(norm.block, ()) if seen.person != person]
        heard = [seen for seen in heard if seen.trusted] or heard
        if any(seen.norm_l2 >= share * least for seen in heard):
            return _off(NORM_TOO_SMALL, Case.NORM_UNDER_MEDIAN, norm, least, least=share)
    return None


def judge_gain(config: ScreeningConfig, own: Measured, peers: Peers, steps_share: float) -> Verdict | None:
    """What a quarter of it does to held-out loss, for its share of the steps. None where it does enough."""
    if not math.isfinite(own.gain):
        return rejected(HELDOUT_LOSS_ROSE, Case.GAIN_NOT_FINITE, gain=own.gain)
    figures = _figures(config, own, spread=peers.gain_spread)
    if own.gain + figures["doubt"] < config.min_heldout_gain:
        key = HELDOUT_LOSS_ROSE if own.gain < 0 else HELDOUT_GAIN_TOO_SMALL
        return rejected(key, Case.GAIN_UNDER_LEAST, **figures, least=config.min_heldout_gain)
    if peers.gain is None or is_noise(peers.gain):
        return None
    share = config.min_heldout_gain_share
    least = share * steps_share * peers.gain.gain
    figures = _figures(config, own, share * steps_share * _error(peers.gain), spread=peers.gain_spread)
    if own.gain + figures["doubt"] < least:
        return rejected(
            HELDOUT_GAIN_TOO_SMALL,
            Case.GAIN_UNDER_MEDIAN,
            **figures,
            least=least,
            share=share,
            median=peers.gain.gain,
        )
    return None


def is_noise(gain: Measured) -> bool:
    """Whether a round's median gain is too near to its standard error to compare anything with."""
    return gain.gain < GAIN_ERRORS * _error(gain)


def judge_harm(config: ScreeningConfig, own: Measured, peers: Peers) -> Verdict | None:
    """What all of it does, which the round may take: a rise is held against its peers', or against a limit."""
    if peers.full is None:
        least, figures = -config.max_lone_loss, _figures(config, own)
    else:
        least = PEERS_LOSS_FACTOR * min(0.0, peers.full.gain) - config.max_peer_loss
        other_se = PEERS_LOSS_FACTOR * _error(peers.full) if peers.full.gain < 0.0 else 0.0
        figures = _figures(config, own, other_se, spread=peers.full_spread)
    if own.gain + figures["doubt"] < least:
        return rejected(HELDOUT_LOSS_ROSE, Case.FULL_STEP_HARMS, **figures, least=least)
    return None


def gain_of(record: LeaseRecord) -> Measured:
    """What a quarter of it does."""
    return Measured(gain=record.heldout_gain, se=record.heldout_gain_se)


def full_gain_of(record: LeaseRecord) -> Measured:
    """What all of it does."""
    return Measured(gain=record.full_gain, se=record.full_gain_se)


def _off(key: str, case: Case, norm: BlockNorm, middle: float, **limit: float) -> Verdict:
    figures = {"norm": norm.norm_l2, "ratio": norm.norm_l2 / middle, "median": middle}
    return rejected(key, case, norm.block, **figures, **limit)


def _error(measured: Measured) -> float:
    return measured.se if math.isfinite(measured.se) else 0.0


def _figures(config: ScreeningConfig, own: Measured, other_se: float = 0.0, spread: float = 0.0) -> dict[str, float]:
    """A gain, its standard error, and how far it may be from what is usual in the worker's favour."""
    errors = min(config.max_doubt, config.gain_error_margin * math.hypot(_error(own), other_se))
    return {"gain": own.gain, "error": own.se, "doubt": math.hypot(errors, config.gain_error_margin * spread)}
