"""Training for a share of the time, with a made-up clock; that it computes the same, test_apart.py shows."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.worker.conftest import MACHINE
from worker.apart import orders as o
from worker.apart.taking import LeaseNews, LeaseTaker
from worker.policy import Circumstances, Permission
from worker.train.rhythm import Rhythm


class Time(threading.Event):
    """A clock, and the event on which a rest waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.rested_s = 0.0
        self.on_wait = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now_s += timeout
        self.rested_s += timeout
        self.on_wait()
        return self.is_set()


@pytest.mark.parametrize(("share", "rested_s"), [(1.0, 0.0), (0.75, 10.0 / 3), (0.5, 10.0), (0.25, 30.0)])
def test_rests_are_as_long_as_the_share_asks_for(share: float, rested_s: float) -> None:
    time = Time()
    rhythm = Rhythm(clock=lambda: time.now_s)
    rhythm.share = share
    rhythm.begin()
    rhythm.rest(time)
    for _ in range(10):
        time.now_s += 1.0  # of work
        assert not rhythm.rest(time)
    assert time.rested_s == pytest.approx(rested_s, abs=0.02)
    rhythm.begin()
    time.now_s += 100.0
    rhythm.rest(time)
    assert time.rested_s == pytest.approx(rested_s, abs=0.02), "what lies between two leases is no work"


def test_a_rest_ends_with_the_lease_and_with_a_new_share() -> None:
    time = Time()
    rhythm = Rhythm(clock=lambda: time.now_s)
    rhythm.share = 0.25
    rhythm.rest(time)
    time.now_s += 100.0
    time.on_wait = lambda: setattr(rhythm, "share", 1.0)
    assert not rhythm.rest(time)
    assert time.rested_s <= 1.0
    rhythm.share = 0.25
    time.now_s += 100.0
    time.on_wait = time.set
    assert rhythm.rest(time)
    assert time.rested_s <= 2.0


def test_the_device_is_waited_for_only_where_there_is_a_rest() -> None:
    settled: list[bool] = []
    rhythm = Rhythm(lambda: settled.append(True), clock=lambda: 0.0)
    for rhythm.share in (1.0, 0.5, 1.0):
        rhythm.rest(threading.Event())
    assert len(settled) == 1


def test_the_trainers_process_keeps_the_tempo_it_is_told(tmp_path: Path) -> None:
    """Told in the middle of a lease or before there was one."""
    begun = o.Begin(folder=str(tmp_path), keep_progress_every_s=0.0, progress_bytes_a_day=None, disk_pause_s=1.0)
    pipe: Any = SimpleNamespace()
    taker = LeaseTaker(begun, pipe, lambda *_: True)
    taker.take(o.PaceTraining(share=0.5))
    assert taker._room_for(MACHINE, LeaseNews(pipe, 1))._rhythm.share == 0.5
    taker.take(o.PaceTraining(share=0.75))
    assert taker._room_for(MACHINE, LeaseNews(pipe, 1))._rhythm.share == 0.75


async def test_an_agent_tells_its_trainer_and_its_volunteer(swarm: Any) -> None:
    answers = iter([Permission(allowed=True, share=0.5, slowed="it is warm"), Permission(allowed=False)])

    class Warm:
        look_again_s = 0.01

        def may_work(self, now: Circumstances) -> Permission:
            return next(answers, Permission(allowed=True))

    agent, recorder, task = swarm.agent(policy=Warm())
    await task
    slower, again = recorder.texts("slowed")
    assert slower == "Training works 50% of the time now: it is warm."
    assert again == "Training works all of the time again."
    assert agent._trainer._rhythm.share == 1.0
