"""Faults as data: where they strike, how often, and that they survive being written down."""

from __future__ import annotations

import pytest

from simulator import faults as f
from simulator.faults import Fault, FaultKind, FaultPlan, Point

EVERY_KIND = frozenset(FaultKind)


def struck(fault: Fault, point: Point) -> bool:
    return FaultPlan([fault]).take(point, EVERY_KIND) == (fault,)


@pytest.mark.parametrize(
    ("fault", "there", "elsewhere"),
    [
        (f.fail_at(worker=2, round=3), Point(worker=2, round=3), Point(worker=2, round=4)),
        (f.drop(call="Upload"), Point(worker=7, call="Upload"), Point(worker=7, call="Heartbeat")),
        (f.delay(5.0, call="Upload", nth=2), Point(call="Upload", nth=2), Point(call="Upload", nth=1)),
        (f.kill(1.0, journal_position=9), Point(journal_position=9), Point(journal_position=8)),
        (f.stall(1.0, after_s=10.0), Point(now_s=10.0), Point(now_s=9.9)),
        (f.partition(1.0, worker=1), Point(worker=1), Point(worker=f.COORDINATOR)),
        (f.duplicate(worker=0, call="state:idle"), Point(worker=0, call="state:idle"), Point(call="state:idle")),
        (f.truncate(0.5, round=1), Point(round=1), Point()),
        (f.reorder(journal_position=3), Point(journal_position=4), Point()),
    ],
)
def test_a_fault_strikes_where_it_is_addressed_to_only(fault: Fault, there: Point, elsewhere: Point) -> None:
    assert struck(fault, there)
    assert not struck(fault, elsewhere)


def test_a_fault_strikes_as_often_as_it_says() -> None:
    plan = FaultPlan([f.drop(call="Upload", times=2)])
    point = Point(call="Upload")
    assert [len(plan.take(point, EVERY_KIND)) for _ in range(3)] == [1, 1, 0]
    assert len(plan.fired) == 2
    assert plan.unspent == ()


def test_only_the_kinds_that_are_asked_for_are_spent() -> None:
    plan = FaultPlan([f.drop(), f.kill(1.0)])
    assert [fault.kind for fault in plan.take(Point(), frozenset({FaultKind.KILL}))] == [FaultKind.KILL]
    assert [fault.kind for fault in plan.unspent] == [FaultKind.DROP]


def test_two_equal_faults_are_two() -> None:
    plan = FaultPlan([f.drop(call="Upload"), f.drop(call="Upload")])
    assert len(plan.take(Point(call="Upload"), EVERY_KIND)) == 2
    assert plan.unspent == ()
