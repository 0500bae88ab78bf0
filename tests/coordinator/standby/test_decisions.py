"""Leader, follower and witness, killed and parted at every step: nothing acknowledged in sync is ever lost."""

from __future__ import annotations

from collections import Counter

import pytest

from coordinator.standby.following import Following, NotPromoted, Promoted
from coordinator.standby.leading import AskWitness, Fence, Keep, Leading, LetGo
from coordinator.standby.seat import Held, Mode, Request, Seat, SeatRole, WitnessAnswer
from coordinator.standby.witness import judged
from tests.coordinator.standby.world import Book, Violation, World

STEPS = 600


def run(first: int, seeds: int, plant: str = "") -> list[Book]:
    return [World(seed, plant=plant).run(STEPS) for seed in range(first, first + seeds)]


def tell(books: list[Book]) -> None:
    kills = sum((one.places for one in books), Counter[str]())
    promotions = sum((one.promotions for one in books), Counter[str]())
    acked = sum(len(one.acked) for one in books)
    print(f"\n{len(books)} seeds, {acked} acknowledged, kills {dict(kills)}, promotions {dict(promotions)}")


def test_nothing_acknowledged_in_sync_is_lost() -> None:
    books = run(0, 150)
    promotions = sum((one.promotions for one in books), Counter[str]())
    assert promotions["by witness"] > 10
    assert promotions["by person"] > 10
    assert len(sum((one.places for one in books), Counter[str]())) == 6
    assert sum(one.acks_waiting for one in books) > 200


@pytest.mark.soak
def test_thousands_of_seeds() -> None:
    books = run(1000, 20_000)
    tell(books)


@pytest.mark.parametrize("plant", ["unchecked", "early sync", "answers at once"])
def test_a_planted_bug_is_found(plant: str) -> None:
    with pytest.raises(Violation):
        run(0, 400, plant)


HELD = Held(number=4, epoch=2, leader="anna", sync=True, follower="bert")


@pytest.mark.parametrize(
    ("held", "by", "want", "confirmed", "granted"),
    [
        (HELD, "anna", Held(number=0, epoch=2, leader="anna", sync=False), False, True),
        (HELD, "bert", Held(number=0, epoch=3, leader="bert", sync=False), False, True),
        (HELD, "carl", Held(number=0, epoch=3, leader="carl", sync=False), False, False),
        (HELD, "carl", Held(number=0, epoch=3, leader="carl", sync=False), True, True),
        (HELD, "bert", Held(number=0, epoch=2, leader="bert", sync=False), True, False),
        (HELD, "bert", Held(number=0, epoch=4, leader="bert", sync=False), False, False),
        (HELD, "bert", Held(number=0, epoch=1, leader="bert", sync=False), True, False),
        (HELD, "bert", Held(number=0, epoch=3, leader="anna", sync=False), True, False),
        (None, "anna", Held(number=0, epoch=1, leader="anna", sync=False), False, True),
        (None, "bert", Held(number=0, epoch=2, leader="bert", sync=False), False, False),
    ],
)
def test_the_witness(held: Held | None, by: str, want: Held, confirmed: bool, granted: bool) -> None:
    expects = 0 if held is None else held.number
    answer = judged(held, Request(by=by, expects=expects, want=want, confirmed=confirmed))
    assert answer.granted is granted
    assert answer.held == (
        held if not granted else Held(number=expects + 1, epoch=want.epoch, leader=by, sync=want.sync)
    )
    late = judged(held, Request(by=by, expects=expects + 1, want=want, confirmed=True))
    assert not late.granted


def test_async_bars_a_promotion_without_a_person() -> None:
    view = Following(Seat(me="bert", role=SeatRole.FOLLOWS, epoch=2), has_witness=True)
    (asked,) = view.on_promotion_ordered(confirmed=False)
    assert isinstance(asked, AskWitness)
    (said,) = view.on_witness(asked.request, WitnessAnswer(held=Held(number=1, epoch=2, leader="anna", sync=False)))
    assert isinstance(said, NotPromoted)
    assert "async" in said.why
    assert [type(one) for one in view.on_promotion_ordered(confirmed=True)] == [Keep, Promoted]
    assert view.seat.epoch == 3


def test_a_leader_without_witness_leaves_sync_only_on_a_persons_word() -> None:
    view = Leading(Seat(me="anna", mode=Mode.SYNC, follower="bert"), committed=7, has_witness=False)
    assert view.answerable == -1
    assert view.on_async_ordered(confirmed=False) == []
    assert [type(one) for one in view.on_async_ordered(confirmed=True)] == [Keep, LetGo]
    assert view.answerable == 7


def test_whoever_lost_the_epoch_answers_nothing() -> None:
    view = Leading(Seat(me="anna", mode=Mode.SYNC, follower="bert"), committed=7, has_witness=True)
    assert view.on_attached("bert", 7) == ""
    assert view.answerable == 7
    lost = WitnessAnswer(held=Held(number=9, epoch=2, leader="bert", sync=False))
    assert [type(one) for one in view.on_witness(Request(by="anna"), lost)] == [Keep, Fence]
    assert view.answerable == -1
    assert view.on_acked("bert", 7) != [] or view.answerable == -1
    assert view.on_attached("bert", 7)


def test_a_lower_epoch_is_not_followed() -> None:
    view = Following(Seat(me="bert", role=SeatRole.FOLLOWS, epoch=3), has_witness=False)
    assert view.on_leader(2)[1]
    assert view.on_leader(3) == ([], "")
    commands, refused = view.on_leader(4)
    assert not refused
    assert [type(one) for one in commands] == [Keep]
