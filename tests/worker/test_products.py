"""By what is measured one way is chosen, and it belongs to the class in which leases are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moe.padded import GROUPED, PADDED
from protocol.arithmetic import arithmetic_class
from worker.machine.arithmetic import arithmetic_here
from worker.machine.products import TrialLayer, quickest_products


def took(**seconds: float | None) -> Callable[[str], float]:
    def seconds_of(way: str) -> float:
        found = seconds[way]
        if found is None:
            raise RuntimeError("grouped gemm is only supported on CUDA devices with compute capability >= 8.0")
        return found

    return seconds_of


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({GROUPED: 1.0, PADDED: 0.5}, PADDED),
        ({GROUPED: 1.0, PADDED: 0.95}, GROUPED),
        ({GROUPED: 1.0, PADDED: 2.0}, GROUPED),
        ({GROUPED: None, PADDED: 2.0}, PADDED),
        ({GROUPED: 1.0, PADDED: None}, GROUPED),
        ({GROUPED: None, PADDED: None}, GROUPED),
    ],
)
def test_the_way_is_the_one_that_is_much_faster(seconds: dict[str, float | None], chosen: str) -> None:
    assert quickest_products("cuda:0", None, seconds_of=took(**seconds)) == chosen


def test_a_cpu_is_not_asked() -> None:
    assert quickest_products("cpu", None, seconds_of=took()) == GROUPED


def test_both_ways_can_be_timed() -> None:
    layer = TrialLayer("cpu", None)
    assert all(layer.seconds(way) > 0.0 for way in (GROUPED, PADDED))


def test_the_way_is_in_the_class() -> None:
    plain, padded = arithmetic_here("cpu", None, 1), arithmetic_here("cpu", None, 1, PADDED)
    assert str(plain) == str(arithmetic_here("cpu", None, 1, GROUPED))
    assert padded != plain
    assert arithmetic_class(str(padded)) == padded
