"""When a gain has been measured on enough sequences: a group-sequential test, read after each of a few looks.

Decides where measuring may stop before the whole draw, and nothing of the verdict, which `screening.judge` forms from
what was measured. Acceptable: the gain lies `margin` standard errors above what the whole draw would still forgive, so
that measuring the rest would not refuse it. Harmful: it lies `HOPELESS` of them below what is asked, and below 0.
Whatever lies between is measured whole, and where it speaks against its worker, beyond. Holds always: a standard
deviation is never taken for less than is usual among peers, for that of four sequences is known to half of itself
only. A constant boundary over a few looks is Pocock's (1977, "Group sequential methods in the design and analysis of
clinical trials", Biometrika 64); `benchmarks.early_stops` simulates its error probabilities on measured gains.
"""

from __future__ import annotations

import math
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
