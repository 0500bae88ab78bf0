"""When a gain, or a version, has been measured on enough sequences: a group-sequential test, read after a few looks.

Decides where measuring may stop before the whole draw, and nothing of the verdict, which `screening.judge` forms from
what was measured. Acceptable: the gain lies `margin` standard errors above what the whole draw would still forgive, so
that measuring the rest would not refuse it. Harmful: it lies `HOPELESS` of them below what is asked, and below 0.
Whatever lies between is measured whole, and where it speaks against its worker, beyond. Holds always: a standard
deviation is never taken for less than is usual among peers, for that of four sequences is known to half of itself
only. A constant boundary over a few looks is Pocock's (1977, "Group sequential methods in the design and analysis of
clinical trials", Biometrika 64); `benchmarks.early_stops` simulates its error probabilities on measured gains.

A new version may be published early, and is never withheld early: what is measured no further lies `early_margin`
standard errors above where the whole draw would withhold it. tests/coordinator/engine/test_enough.py simulates how
often the whole draw would have withheld what is published so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

HOPELESS = 6.0
"""Standard errors: the verdict forgives 3."""
FEWEST_TO_REFUSE = 16
"""Sequences; a standard deviation of fewer is too uncertain to refuse anybody on."""


class Enough(Enum):
    """What a look came to."""

    ACCEPTABLE = "acceptable"
    HARMFUL = "harmful"
    UNDECIDED = "undecided"


FEWEST_TO_PUBLISH = 16
"""Sequences; harm that the whole draw would see at 5 standard errors lies on more than a quarter of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionStop:
    """By what comparing a new version with older ones may stop before the whole draw (`TrustRegionConfig`)."""

    margin: float
    tolerance: float
    early_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """A new version against an older one on some sequences, paired: nats a token."""

    gain: float
    """The older one's mean loss less the new one's."""
    sd: float
    """Of that over sequences."""
    loss: float
    """The older one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStop:
    """By what measuring one submission may stop before the whole draw: nats a token."""

    least: float
    """Gain of a part that is enough: none, or the share of its peers' that screening asks for."""
    full_least: float
    """The same of all of it: how much it may harm."""
    spread: float
    """Usual standard deviation of such a part's gain over sequences, above 0."""
    margin: float
    """Standard errors beyond which a gain is enough."""
    doubt_margin: float
    max_doubt: float
    """What the verdict forgives (`ScreeningConfig.gain_error_margin`, `max_doubt`)."""


def looked(stop: EarlyStop, *, least: float, spread: float, mean: float, sd: float, count: int, whole: int) -> Enough:
    """What is known after `count` of `whole` sequences, whose gains have this mean and standard deviation.

    `spread` is the usual deviation, and `sd` the submission's own. A mean that is no number is harmful.
    """
    if not math.isfinite(mean):
        return Enough.HARMFUL
    deviation = max(spread, sd) if math.isfinite(sd) else spread
    error = deviation / math.sqrt(count)
    forgiven = min(stop.max_doubt, stop.doubt_margin * deviation / math.sqrt(whole))
    if mean - least + forgiven > stop.margin * error:
        return Enough.ACCEPTABLE
    if count >= FEWEST_TO_REFUSE and min(least, 0.0) - mean > HOPELESS * error:
        return Enough.HARMFUL
    return Enough.UNDECIDED


def is_publishable(stop: RegionStop, rises: Sequence[Rise], *, count: int, whole: int) -> bool:
    """Whether measuring the rest of `whole` sequences would not withhold a version, after `count` of them.

    `rises`: over its parent first. A version that is surely better than that is published whatever it is to others
    (`trust_region.why_withheld`).
    """
    if count < FEWEST_TO_PUBLISH or not rises:
        return False
    if _above(stop, rises[0], 0.0, count):
        return True
    return all(_above(stop, one, -_forgiven(stop, one, whole), count) for one in rises)


def _forgiven(stop: RegionStop, one: Rise, whole: int) -> float:
    return max(stop.margin * one.sd / math.sqrt(whole), stop.tolerance * abs(one.loss))


def _above(stop: RegionStop, one: Rise, least: float, count: int) -> bool:
    """False where something is no number."""
    return one.gain - least > stop.early_margin * one.sd / math.sqrt(count)
