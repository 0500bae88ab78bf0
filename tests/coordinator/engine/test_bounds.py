"""What the engine remembers is bounded however long the run, and an event is applied whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from coordinator.engine import history
from coordinator.engine.commands import AggregateRound
from protocol.errors import IllegalEvent
from protocol.ids import WorkerId

NAMES = ["a", "b", "c"]


def play(s, rounds: int) -> None:
    """Rounds in which one worker falls silent, one hands back, and all that was asked for is done."""
    for _ in range(rounds):
        s.ask(*NAMES)
        s.after(2)
        s.submit("a", "b")
        if s.record(s.lease("c").lease_id).status == "granted":
            s.give_back("c")
        while not any(isinstance(command, AggregateRound) for command in s.engine.pending):
            s.after(1)
        s.do_slow_work()


def size_of(s) -> tuple[int, ...]:
    state, index = s.engine.state, s.engine.state.index
    return (
        len(state.leases),
        len(state.pending),
        len(state.failures),
        len(index._tallies),
        len(index._resting_on),
        len(index.deadlines._heap) // 200,
        len(index.cooling._heap) // 200,
        len(s.engine._presence._seen._heap) // 200,
        len(json.dumps(s.engine.snapshot())) // 20_000,
    )


@pytest.mark.parametrize("rounds", [300, pytest.param(5000, marks=pytest.mark.soak)])
def test_memory_is_bounded_however_many_rounds(swarm, monkeypatch, rounds):
    monkeypatch.setattr(history, "KEPT_ROWS", 20)
    s = swarm(max_rounds=10_000, columns=2, train_sequences=1_000_000, quorum=1, validate_every=1, checkpoint_every=1)
    s.enrol(*NAMES)
    quick(s)
    play(s, 100)
    early = size_of(s)
    play(s, rounds - 100)
    assert s.engine.state.version == rounds
    assert size_of(s) == early
    state = s.engine.state
    assert [len(state.history), len(state.validations), len(state.checkpoints)] == [20, 20, 20]
    assert [row.round for row in state.history][:2] == [1, rounds - 18]


def quick(s) -> None:
    """Without the comparisons that other tests make after every event, and without a journal."""

    def handle(event):
        s.log.clear()
        return s.engine.handle(event)

    s.handle = handle


def test_the_first_row_and_the_latest_are_remembered():
    rows: tuple[int, ...] = ()
    for number in range(3000):
        rows = history.remembered(rows, number)
    assert rows == (0, *range(2001, 3000))


def test_an_illegal_event_touches_nothing_and_builds_nothing(swarm):
    s = swarm()
    s.join(*NAMES)
    s.commit("a")
    index, now_s = s.engine.state.index, s.engine.state.now_s
    s.now_s += 5.0
    with pytest.raises(IllegalEvent):
        s.commit("a", digest=s.digest("another"))
    with pytest.raises(IllegalEvent):
        s.upload("b")
    assert s.engine.state.index is index, "an illegal event made the index anew: anybody could make that cost"
    assert s.engine.state.now_s == now_s


@pytest.mark.parametrize("at", ["leases", "workers", "pending"])
def test_an_event_that_fails_half_way_is_taken_back_whole(swarm, monkeypatch, at):
    """As a bug of ours would: after records, the round and the pending commands were changed."""
    s = swarm()
    s.join(*NAMES)
    s.after(2)
    s.submit("a", "b")
    s.commit("c")
    s.upload("c")
    before, order = s.engine.snapshot(), list(getattr(s.engine.state, at))

    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("coordinator.engine.closing._write_checkpoint", fails)
    with pytest.raises(ZeroDivisionError):
        s.stop()
    assert s.engine.snapshot() == before
    assert list(getattr(s.engine.state, at)) == order
    s.check_index()


def test_a_copy_stays_as_it_is(swarm):
    s = swarm()
    s.join(*NAMES)
    kept = s.engine.state.copy()
    assert kept == s.engine.state
    s.after(2)
    s.submit("a")
    assert kept != s.engine.state
    assert kept.leases[s.lease("a").lease_id].status == "granted"


def test_the_index_is_compared_and_not_just_asserted(swarm):
    """The comparison after every event of these tests would notice a record that is changed behind the index's back."""
    s = swarm()
    s.join(*NAMES)
    state = s.engine.state
    state.workers[WorkerId("a")] = replace(state.workers[WorkerId("a")], present=False)
    with pytest.raises(AssertionError):
        s.check_index()
    state.index = state.indexed()
    s.check_index()


def test_a_command_that_was_just_asked_for_is_taken_back_too(swarm, monkeypatch):
    s = swarm()
    s.join(*NAMES)
    s.after(2)
    s.commit("a")
    before = s.engine.snapshot()

    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("coordinator.engine.rounds._review", fails)
    with pytest.raises(ZeroDivisionError):
        s.upload("a")
    assert s.engine.snapshot() == before
    assert not s.engine.is_pending(f"measure:{s.lease('a').lease_id}")
