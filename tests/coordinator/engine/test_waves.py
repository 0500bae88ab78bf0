"""A decision grants a bounded number of leases; a larger wave goes on by itself, and comes out the same."""

from __future__ import annotations

import json

import pytest

from coordinator.engine.commands import GrantLease
from coordinator.engine.engine import Engine
from coordinator.engine.events import Ticked
from coordinator.engine.phases import Phase
from protocol.ids import WorkerId

NAMES = [f"w{number}" for number in range(10)]


def opened(swarm, most_grants: int, **changes):
    """Ten workers are waiting and the first decisions of round 1 are taken."""
    s = swarm(columns=8, min_workers=len(NAMES), most_grants=most_grants, **changes)
    s.join(*NAMES, columns=2)
    return s


def test_a_wave_is_spread_over_decisions_and_needs_nobody_to_ask(swarm, pick):
    s = opened(swarm, 3)
    granted = [len(pick(GrantLease, s.log))]
    while s.engine.next_wakeup_s() <= s.now_s:
        (tick,) = s.engine.due(s.now_s)
        assert isinstance(tick, Ticked)
        granted.append(len(pick(GrantLease, s.handle(tick))))
    assert granted == [3, 3, 3, 1]
    assert s.engine.due(s.now_s) == []


@pytest.mark.parametrize("most_grants", [1, 3, 9, 10])
def test_leases_are_the_same_whatever_their_number_in_a_decision(swarm, most_grants):
    at_once, spread = opened(swarm, 256), opened(swarm, most_grants)
    spread.at(0.0)
    assert [r.lease for r in spread.engine.state.leases.values()] == [
        r.lease for r in at_once.engine.state.leases.values()
    ]


def test_what_happens_meanwhile_waits_for_the_wave(swarm, pick):
    s = opened(swarm, 3)
    assert "its turn comes at once" in s.engine.wait_reason(WorkerId("w9"))
    assert pick(GrantLease, s.ask("w9", "w8")) == []
    s.submit("w0", "w1", "w2")
    assert s.phase is Phase.TRAINING, "a round closed before its leases were out"
    again = Engine.restore(json.loads(json.dumps(s.engine.snapshot())), b"a secret of the tests")
    again.due(0.0)
    assert again.next_wakeup_s() <= s.now_s
    s.at(s.now_s)
    assert len(s.engine.state.leases) == len(NAMES)


def test_a_clock_that_was_set_back_does_not_hold_a_wave_up(swarm):
    s = swarm(columns=8, min_workers=len(NAMES), most_grants=3)
    s.at(100.0).join(*NAMES, columns=2)
    assert s.engine.next_wakeup_s() <= 40.0
    (tick,) = s.engine.due(40.0)
    s.handle(tick)
    assert len(s.engine.state.leases) == 6


def test_a_run_that_is_stopped_meanwhile_ends(swarm):
    s = opened(swarm, 3)
    s.stop()
    s.do_slow_work()
    s.at(s.now_s)
    assert s.phase is Phase.OVER
    assert s.engine.next_wakeup_s() is None or s.engine.next_wakeup_s() > s.now_s
