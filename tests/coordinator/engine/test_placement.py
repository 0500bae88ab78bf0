"""Who gets which columns."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from coordinator.engine.engine import Engine
from protocol.ids import WorkerId


def run_rounds(s, names: list[str], rounds: int) -> list[dict[str, tuple[int, ...]]]:
    """Columns of everybody, round by round."""
    held = []
    for _ in range(rounds):
        held.append({name: s.lease(name).columns for name in names})
        s.after(5)
        s.submit(*names)
        s.ask(*names)
        s.aggregated()
    return held


def coverage(held: dict[str, tuple[int, ...]]) -> Counter[int]:
    return Counter(column for columns in held.values() for column in columns)


def test_a_worker_that_can_hold_everything_does(swarm):
    s = swarm()
    s.join("a", columns=0)
    s.join("b", columns=4)
    s.join("c", columns=99)
    assert {s.lease(n).columns for n in "abc"} == {(0, 1, 2, 3)}


def test_columns_are_covered_evenly(swarm):
    s = swarm(columns=8, max_rounds=9)
    names = [f"w{i}" for i in range(6)]
    s.join(*names, columns=4)
    for held in run_rounds(s, names, 5):
        counts = coverage(held)
        assert len(counts) == 8
        assert max(counts.values()) - min(counts.values()) <= 2, held


def test_one_member_of_each_replica_set_is_drawn_anew(swarm):
    s = swarm(columns=8, replicas=2, quorum=1, redraw=1, max_rounds=30)
    names = [f"w{i:02}" for i in range(16)]
    s.join(*names, columns=2)
    rounds = run_rounds(s, names, 12)
    kept_whole = sticky = total = 0
    for before, after in pairwise(rounds):
        for column in range(8):
            old = {n for n in names if column in before[n]}
            new = {n for n in names if column in after[n]}
            kept_whole += old <= new
            sticky += len(old & new)
            total += len(old)
    assert kept_whole <= 2, "a replica set stayed as it was"
    assert sticky / total > 0.3, "nobody keeps what it had: every download is new"


def test_too_small_a_swarm_trains_every_column_in_turn(swarm):
    s = swarm(columns=6, max_rounds=9)
    s.join("a", columns=2)
    held = [columns["a"] for columns in run_rounds(s, ["a"], 6)]
    assert len(coverage({str(i): columns for i, columns in enumerate(held)})) == 6


def test_placement_is_secret_and_repeatable(swarm):
    def columns_under(secret: bytes) -> list[tuple[int, ...]]:
        s = swarm(columns=16)
        s.engine, _ = Engine.create(s.created, secret)
        s.join("a", "b", "c", columns=4)
        return [s.lease(n).columns for n in "abc"]

    assert columns_under(b"one secret......") == columns_under(b"one secret......")
    assert columns_under(b"one secret......") != columns_under(b"another secret..")


def test_an_offer_too_small_for_the_run_is_told_so(swarm):
    s = swarm(columns=8, min_columns=2)
    s.join("a", columns=1)
    assert s.leases("a") == []
    assert s.engine.wait_reason(WorkerId("a")) == "it offers 1 columns, and this run needs 2 a worker"


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_with_fewer_workers_visibly_fewer_replicas(swarm, names):
    s = swarm()
    s.join(*names)
    assert coverage({n: s.lease(n).columns for n in names}) == dict.fromkeys(range(4), len(names))
    assert f"0 of {len(names)} replicas reported" in s.reasons()["columns 0-3"]


def test_data_is_never_named_twice_in_an_epoch(swarm):
    s = swarm(train_sequences=100, max_rounds=9)
    names = ["a", "b"]
    s.join(*names)
    seen: set[tuple[str, int]] = set()
    for _ in range(4):
        for name in names:
            data = s.lease(name).data
            positions = {(data.seed, p) for p in range(data.start, data.start + data.count)}
            assert not positions & seen
            assert data.start + data.count <= 100
            seen |= positions
        s.after(5)
        s.submit(*names)
        s.ask(*names)
        s.aggregated()
    assert len({seed for seed, _ in seen}) == 3
