"""Which versions an outer step may sweep away: said when it is asked for, by all that may still be heard of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.engine.commands import AggregateRound
from coordinator.engine.contributions import oldest_version_needed
from tests.coordinator.engine.conftest import Swarm


def in_second_round(swarm: Callable[..., Swarm], **changes: float) -> Swarm:
    """`a` and `b` made the first version; `c` is still at work on version 0."""
    s = swarm(min_grace_s=1.0, **changes)
    s.join("a", "b", "c")
    s.at(10)
    s.submit("a", "b")
    s.after(20)
    s.aggregated()
    s.do_slow_work()
    return s


def closed(s: Swarm) -> AggregateRound:
    s.ask("a", "b")
    s.after(1)
    s.submit("a", "b")
    while not any(isinstance(one, AggregateRound) for one in s.engine.pending):
        s.after(5)
    return s.waiting_for(AggregateRound)


def test_a_lease_that_is_out_keeps_the_version_it_trains_on(swarm: Callable[..., Swarm]) -> None:
    s = in_second_round(swarm, heartbeat_interval_s=1e6, lease_ttl_s=1e4)
    command = closed(s)
    assert s.record("r1.3").status == "granted"
    assert (command.parent_version, command.oldest_needed) == (1, 0)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_lease_that_is_lost_to_silence_keeps_its_base_until_its_deadline(
    swarm: Callable[..., Swarm], is_lost: bool
) -> None:
    s = in_second_round(swarm, heartbeat_interval_s=1e6, lease_ttl_s=1e4)
    if is_lost:
        s.silent("c")
    state = s.engine.state
    state.keep_leases({key: record for key, record in state.leases.items() if record.lease.worker == "c"})
    assert s.record("r1.3").status == ("expired" if is_lost else "granted")
    assert oldest_version_needed(state) == 0
    assert oldest_version_needed(state.seen_at(s.record("r1.3").lease.deadline_s)) == (1 if is_lost else 0)


def test_one_that_is_handed_back_keeps_nothing(swarm: Callable[..., Swarm]) -> None:
    s = in_second_round(swarm, heartbeat_interval_s=1e6)
    s.give_back("c")
    s.do_slow_work()
    command = closed(s)
    counted = min(record.lease.base_version for record in s.engine.state.leases.values() if record.status == "accepted")
    assert command.oldest_needed == counted


@pytest.mark.parametrize(("written", "oldest"), [(True, 3), (False, 1)])
def test_a_checkpoint_that_waits_keeps_its_version(swarm: Callable[..., Swarm], written: bool, oldest: int) -> None:
    s = swarm(validate_every=0, checkpoint_every=1, max_rounds=9)
    s.join("a", "b", "c")
    for _ in range(6):
        s.after(10)
        s.submit("a", "b", "c")
        s.aggregated()
        if written:
            s.do_slow_work()
        s.ask("a", "b", "c")
    s.after(10)
    s.submit("a", "b", "c")
    command = s.waiting_for(AggregateRound)
    assert (command.parent_version, command.oldest_needed) == (6, oldest)
