"""Caps on heat and power: slower first, a pause where that does not do, with faked readings and a made-up clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.policy import Circumstances, Permission
from worker.rules.model import VolunteerRules
from worker.rules.policy import RuledPolicy
from worker.rules.tempo import POWER_PAUSE_S, QUICKER_AFTER_S, SHARES, SLOWER_AFTER_S

Reading = Callable[[float], float]
"""Of the share of the time in which training works."""


class Card:
    """A GPU under a policy's thumb: what it draws and how hot it gets follows from the share that it is given."""

    def __init__(self, *, watts: Reading = lambda _: 0.0, celsius: Reading = lambda _: 0.0, **gpu: float) -> None:
        self.policy = RuledPolicy(VolunteerRules.checked({"gpu": gpu}, "here"))
        self.watts, self.celsius = watts, celsius
        self.now_s, self.answer = 1.7e9, Permission(allowed=True)
        self.shares: list[float] = []

    def look(self, seconds: int, *, is_training: bool = True) -> Permission:
        for _ in range(seconds):
            works = is_training and self.answer.allowed
            share = self.answer.share if works else 0.0
            self.now_s += 1.0
            now = Circumstances(
                wall_s=self.now_s,
                gpu=0,
                gpu_watts=self.watts(share),
                gpu_celsius=self.celsius(share),
                is_training=works,
            )
            self.answer = self.policy.may_work(now)
            self.shares.append(self.answer.share if self.answer.allowed else 0.0)
        return self.answer

    @property
    def changes(self) -> int:
        return sum(one != other for one, other in pairwise(self.shares))


def drawing(full_watts: float) -> Reading:
    return lambda share: 20.0 + share * (full_watts - 20.0)


def test_power_above_its_cap_makes_training_slower_until_it_is_below_and_then_it_stays() -> None:
    card = Card(watts=drawing(300.0), most_watts=200.0)
    assert card.look(10).share == 1.0, "for a moment it may"
    assert card.look(10).share == 0.75
    answer = card.look(1200)
    assert (answer.allowed, answer.share) == (True, 0.5)
    assert answer.slowed == "your rules allow the GPU 200 W"
    assert card.changes == 2, "it swings"
    card.watts = drawing(150.0)
    assert card.look(round(2 * QUICKER_AFTER_S) + 60).share == 1.0
    assert card.changes == 4


def test_power_above_its_cap_at_the_slowest_pauses_and_is_tried_again_later() -> None:
    card = Card(watts=drawing(900.0), most_watts=100.0)
    card.look(300)
    assert not card.answer.allowed
    assert card.answer.stops_training
    assert card.answer.reason.startswith("even at its slowest the GPU takes more than the 100 W that your rules allow")
    assert card.answer.until_s is not None
    card.look(round(card.answer.until_s - card.now_s))
    assert (card.answer.allowed, card.answer.share) == (True, SHARES[-1]), "it begins as slow as it ended"
    card.look(2 * round(POWER_PAUSE_S))
    worked = sum(share > 0.0 for share in card.shares[-round(POWER_PAUSE_S) :])
    assert worked < 120, "it works a tenth of the time"


def test_heat_near_its_cap_makes_training_slower_before_it_pauses() -> None:
    """A card of which each quarter of the time makes five degrees."""
    card = Card(celsius=lambda share: 58.0 + 20.0 * share, most_celsius=80.0, cool_by=8.0)
    answer = card.look(600)
    assert (answer.allowed, answer.share) == (True, 0.75)
    assert answer.slowed == "the GPU is at 73 °C, and your rules allow 80 °C"
    card.celsius = lambda share: 70.0 + 20.0 * share
    assert not card.look(1).allowed, "above its cap it pauses at once"
    assert "the GPU is at 85 °C, and work goes on at 72 °C" in card.answer.reason


def test_a_card_between_two_rungs_is_tried_ever_more_seldom() -> None:
    """Too hot at full speed, and one rung down below what lets it go faster again."""
    card = Card(celsius=lambda share: 39.0 + 40.0 * share, most_celsius=80.0, cool_by=8.0)
    card.look(3600)
    assert card.answer.allowed
    assert 3 <= card.changes <= 16


def test_while_it_does_not_train_nothing_is_learnt_of_what_training_takes() -> None:
    card = Card(watts=drawing(300.0), most_watts=200.0)
    card.look(120)
    assert card.answer.share == 0.5
    card.look(1000, is_training=False)
    assert card.answer.share == 0.5


def test_without_a_cap_and_without_a_reading_it_is_never_slower() -> None:
    assert Card(watts=drawing(900.0), celsius=lambda _: 110.0).look(100) == Permission(allowed=True)
    card = Card(watts=drawing(900.0), most_watts=500.0)
    card.look(10)
    card.policy.rules = VolunteerRules()
    assert card.look(1) == Permission(allowed=True)


def test_a_clock_that_is_set_back_does_not_hold_it_for_ever() -> None:
    card = Card(watts=drawing(300.0), most_watts=200.0)
    card.look(120)
    card.now_s -= 86_400.0
    card.watts = drawing(150.0)
    assert card.look(round(2 * QUICKER_AFTER_S) + 60).share == 1.0


@settings(max_examples=15, deadline=None)
@given(
    full=st.floats(100.0, 800.0),
    cap=st.floats(10.0, 800.0),
    noise=st.lists(st.floats(-0.02, 0.02), min_size=7, max_size=7),
)
def test_whatever_a_card_draws_its_mean_is_kept_and_it_does_not_swing(
    full: float, cap: float, noise: list[float]
) -> None:
    card = Card(most_watts=cap)
    card.watts = lambda share: drawing(full)(share) * (1.0 + noise[int(card.now_s) % 7])
    card.look(100)
    settled = len(card.shares)
    card.look(300)
    later = card.shares[settled:]
    mean = sum(drawing(full)(share) if share else 0.0 for share in later) / len(later)
    if cap > 1.05 * drawing(full)(SHARES[-1]):
        assert mean <= 1.05 * cap
    assert sum(one != other for one, other in pairwise(later)) <= 6
    assert SLOWER_AFTER_S < QUICKER_AFTER_S
