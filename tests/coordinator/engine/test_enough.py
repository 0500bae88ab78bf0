"""When a new version has been compared on enough sequences, and how often the whole draw would have withheld it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.engine import events as ev
from coordinator.engine.config import TrustRegionConfig
from coordinator.engine.enough import RegionStop, Rise, is_publishable
from coordinator.engine.trust_region import early_stop, why_withheld
from protocol.ids import Version

WHOLE, PLAYED = 64, 6000
CONFIG = TrustRegionConfig()
STOP = RegionStop(margin=5.0, tolerance=0.005, early_margin=3.0)
Draw = Callable[[np.random.Generator], NDArray[np.float64]]
"""[PLAYED, WHOLE] gains of standard deviation about 1."""


def rise(gain: float, sd: float = 0.1, loss: float = 3.0) -> Rise:
    return Rise(gain=gain, sd=sd, loss=loss)


def publishable(*rises: Rise, count: int = 16) -> bool:
    return is_publishable(STOP, rises, count=count, whole=WHOLE)


def test_an_honest_versions_gain_is_enough_after_sixteen_sequences() -> None:
    assert early_stop(CONFIG) == STOP
    assert publishable(rise(0.1))
    assert publishable(rise(0.02)), "the whole draw would forgive 0.0625: that is 3.3 errors of 16 sequences below"
    assert not publishable(rise(0.005)), "2.7 of them"
    assert publishable(rise(0.005), count=32)
    assert not publishable(rise(0.1), count=8), "a deviation of so few is not known"
    assert early_stop(TrustRegionConfig(early_margin=0.0)) is None


def test_a_version_that_looks_worse_is_measured_whole() -> None:
    assert not publishable(rise(-0.08))
    assert not publishable(rise(-1e9, sd=0.0, loss=0.0))
    assert not publishable(rise(float("nan")))


def test_what_is_surely_better_than_its_parent_need_not_be_better_than_the_best() -> None:
    better, unsure, worse = rise(0.1), rise(0.02), rise(-0.5)
    assert publishable(better, worse)
    assert not publishable(unsure, worse)
    assert publishable(unsure, unsure)


def normal(draw: np.random.Generator) -> NDArray[np.float64]:
    return draw.normal(size=(PLAYED, WHOLE))


def heavy(draw: np.random.Generator) -> NDArray[np.float64]:
    """Student's with three degrees."""
    return draw.standard_t(3, size=(PLAYED, WHOLE)) / 3**0.5


def on_some(share: float) -> Draw:
    """Harm that lies on a share of the sequences alone, ten times what these differ by otherwise."""

    def drawn(draw: np.random.Generator) -> NDArray[np.float64]:
        harmed = draw.random((PLAYED, WHOLE)) < share
        return draw.normal(size=(PLAYED, WHOLE)) - 10.0 * harmed

    return drawn


DRAWS: dict[str, Draw] = {"normal": normal, "heavy": heavy} | {
    f"on {share:.0%}": on_some(share) for share in (0.05, 0.2, 0.3, 0.4, 0.6)
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_published_early_the_whole_draw_would_have_withheld_once_in_two_hundred_times_at_most(
    name: str,
) -> None:
    """Whatever the true rise is: the worst of many. A loss of 0, so that errors of measuring alone are forgiven."""
    worst = max(wrongly(DRAWS[name], shift) for shift in np.linspace(-1.5, 0.5, 11))
    assert worst <= 0.005


@pytest.mark.parametrize("name", ["normal", "heavy"])
def test_honest_versions_are_measured_on_sixteen(name: str) -> None:
    """Those that gain three quarters of what sequences differ by: late in a run, at the micro sizes."""
    gains = DRAWS[name](np.random.default_rng(1)) + 0.75
    assert np.mean(published_after(gains) == 16) >= 0.9


def wrongly(drawn: Draw, shift: float) -> float:
    """How often a version is published early that the whole draw would have withheld."""
    gains = drawn(np.random.default_rng(round(100 * shift) % 1000)) + shift
    errors = gains.std(1, ddof=1) / WHOLE**0.5
    withheld = -gains.mean(1) > CONFIG.margin * errors
    first = ev.VersionComparison(
        version=Version(0), gain=float(gains[0].mean()), gain_se=float(errors[0]), loss=0.0, sequences=WHOLE
    )
    assert bool(withheld[0]) == (why_withheld(CONFIG, [first]) is not None)
    return int((published_after(gains[withheld]) < WHOLE).sum()) / PLAYED


def published_after(gains: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] sequences that each of n versions was measured on."""
    after = np.full(len(gains), WHOLE)
    for count in (32, 16):
        means, sds = gains[:, :count].mean(1), gains[:, :count].std(1, ddof=1)
        rises = (rise(float(mean), float(sd), loss=0.0) for mean, sd in zip(means, sds, strict=True))
        after[[is_publishable(STOP, [one], count=count, whole=WHOLE) for one in rises]] = count
    return after
