"""A volunteer is told what became of the time from one lease to the next."""

from __future__ import annotations

from protocol.ids import LeaseId
from worker.spent import TimeSpent


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_time_is_told_from_one_lease_to_the_next_and_counted_once() -> None:
    clock = Clock()
    spent = TimeSpent(clock)
    assert spent.next_lease() is None  # nothing came before the first
    with spent.fetching():
        clock.now_s += 5.0
    clock.now_s += 60.0
    spent.trained(LeaseId("a"), 60.0)
    spent.trained(LeaseId("a"), 60.0)  # committed to again, after the line was cut
    with spent.sending():
        clock.now_s += 15.0
    told = spent.next_lease()
    assert told == (
        "in the 80 s since the lease before, this machine trained for 60 s (75%), fetched for 5 s and sent for 15 s"
    )
    clock.now_s += 10.0
    assert spent.next_lease() is None  # a lease that was lost: nothing was trained


def test_training_that_took_longer_than_the_wait_for_the_next_lease_is_all_of_the_time() -> None:
    clock = Clock()
    spent = TimeSpent(clock)
    spent.next_lease()
    clock.now_s = 50.0
    spent.trained(LeaseId("a"), 80.0)  # begun by a process before
    assert "(100%)" in str(spent.next_lease())
