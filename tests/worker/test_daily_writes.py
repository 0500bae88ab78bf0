"""Progress is written no faster than a disk is meant to be written, over leases, and that is told once."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from worker.train.daily_writes import A_DAY_S, DEFAULT_BYTES, DailyWrites
from worker.train.lease_state import LeaseKeeper, LeaseStates
from worker.train.local_state import LocalState


class Clock:
    """Stands still until it is moved."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_days_bytes_are_spread_over_the_day(tmp_path: Path) -> None:
    clock, told = Clock(), list[str]()
    state = LocalState(step=1, micro_batch=1, train_s=0.0, tensors={"parameter.0": torch.zeros(250)})  # 1000 bytes
    writes = DailyWrites(24_000, clock=clock)

    def keeper() -> LeaseKeeper:
        states = LeaseStates(tmp_path)
        return LeaseKeeper(states, "a", every_s=30.0, writes=writes, told_rarer=told.append, clock=clock)

    written_s = []
    one = keeper()
    while clock.now_s < 1000.0 + 4.5 * 3600.0:
        clock.now_s += 30.0
        if int(clock.now_s) % 1800 == 1000 % 1800:
            one = keeper()  # another lease: it begins with nothing to its account
        if one.due():
            one.save(state)
            written_s.append(clock.now_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(written_s)]
    assert gaps[0] == 30.0, "an hour's worth ahead"
    assert len(gaps) >= 4
    assert all(3500.0 <= gap < 3700.0 for gap in gaps[1:]), "24 times a day, whatever becomes of leases"
    assert len(told) == 1
    assert "every 60 min" in told[0]
    assert "--progress-writes" in told[0]


def test_what_is_small_is_written_when_it_is_due(tmp_path: Path) -> None:
    clock = Clock()
    writes = DailyWrites(clock=clock)
    assert writes.bytes_a_day == DEFAULT_BYTES
    assert writes.wrote(1000) < 0.001
    clock.now_s += 30.0
    assert writes.may()


def test_ten_gigabytes_every_hour_and_a_quarter() -> None:
    clock = Clock()
    writes = DailyWrites(clock=clock)
    assert 1.0 < writes.wrote(10 * 10**9) / 3600.0 < 1.3
    assert not writes.may()
    clock.now_s += 3600.0
    assert writes.may()
    assert A_DAY_S / writes.wrote(DEFAULT_BYTES) == 1.0
