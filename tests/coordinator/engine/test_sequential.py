"""The sequential test: fair to whoever is as its peers, at any time, and quick to find whoever is not."""

from __future__ import annotations

import random

import pytest

from coordinator.engine.sequential import BETS, RankTest, after_place, payout, standing_below


@pytest.mark.parametrize("bet", BETS)
@pytest.mark.parametrize("places", [2, 4, 7, 100])
def test_a_bet_is_fair_and_pays_more_the_lower_the_place(bet: float, places: int) -> None:
    paid = [payout(bet, below, places) for below in range(places)]
    assert sum(paid) / places == pytest.approx(1.0)
    assert paid == sorted(paid, reverse=True)


def found_after(draw: random.Random, places: int, rounds: int, rate: float, lowest: float = 0.0) -> int | None:
    """The round in which a worker is found that is last with probability `lowest`, and else as anybody."""
    test = RankTest()
    for number in range(1, rounds + 1):
        below = 0 if draw.random() < lowest else draw.randrange(places)
        test = after_place(test, below=below, places=places, rate=rate)
        if test.found:
            return number
    return None


@pytest.mark.parametrize(("places", "rate"), [(4, 0.05), (9, 0.05), (16, 0.01)])
def test_whoever_is_as_its_peers_is_found_no_more_often_than_stated(places: int, rate: float) -> None:
    draw, workers = random.Random(f"{places} {rate}"), 2000
    found = sum(found_after(draw, places, 100, rate) is not None for _ in range(workers))
    assert 0 < found <= rate * workers


def test_whoever_is_always_last_is_found_within_rounds_and_after_a_long_honest_time_too() -> None:
    draw = random.Random(3)
    assert (found_after(draw, 16, 100, 1e-4, lowest=1.0) or 100) <= 6
    test = RankTest()
    for _ in range(200):
        test = after_place(test, below=draw.randrange(8), places=8, rate=1e-4)
    assert not test.found
    lies = 0
    while not test.found:
        test, lies = after_place(test, below=0, places=8, rate=1e-4), lies + 1
    assert lies <= 14
    assert after_place(test, below=7, places=8, rate=1e-4).found  # until its record is put back


def test_ties_speak_for_the_worker() -> None:
    assert standing_below(1.0, [1.0, 1.0, 2.0]) == 2
