"""A volunteer's commands to a worker that runs, over its local socket, against a real coordinator."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from coordinator.edge.standing import worker_status
from protocol.errors import MalformedMessage
from protocol.local_socket import ask, serve
from tests.worker.conftest import MACHINE, Gate, Recorder, Swarm
from worker.agents import make_agent
from worker.control import Control, control_path
from worker.home import open_home
from worker.options import WorkerOptions
from worker.pauses import Pauses
from worker.rejoin import home_root, link_of
from worker.rules.house import House
from worker.standing import WorkerStanding
from worker.states import State


class Volunteer:
    """A worker under rules, and what its owner says to it."""

    def __init__(self, swarm: Swarm, **changes: Any) -> None:
        options = WorkerOptions(link=swarm.link, home=swarm.root / "home", measure_speed=False, **changes)
        link = link_of(options.link, home_root(options.home))
        home = open_home(options.home, link.fingerprint)
        self.path = control_path(home.folder)
        self.recorder = Recorder()
        standing = WorkerStanding(self.recorder)
        (swarm.root / "home" / "rules.toml").write_text("[when]\nbattery = 'work'\n")  # nothing is to be sensed
        self.house = House(home_root(options.home), senses=[])
        self.house.policy.look_again_s = 0.05
        self.agent, joining = make_agent(options, MACHINE, link, home, standing, self.house)
        self.control = Control(self.agent, joining, self.house, standing)
        self.task = asyncio.create_task(self.agent.run())
        swarm.tasks.append(self.task)

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await ask(self.path, {"verb": verb, **fields})

    async def until(self, state: State) -> None:
        async with asyncio.timeout(20):
            while self.agent.state is not state:
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(House, "_step_back", lambda _: None)


async def test_a_pause_keeps_the_lease_in_training_and_tells_the_coordinator_how_long_not_why(
    swarm: Swarm, gate: Gate
) -> None:
    volunteer = Volunteer(swarm, batch_hook=gate)
    server = await serve(volunteer.path, volunteer.control.handle)
    try:
        await volunteer.recorder.saw("fetched")
        await volunteer.until(State.TRAINING)
        began_s = time.monotonic()
        said = await volunteer.ask("pause", until_s=time.time() + 60)
        await volunteer.until(State.PAUSED)
        assert time.monotonic() - began_s < 2.0
        assert said["why"].startswith("you paused it, until ")
        assert volunteer.agent.held_lease is not None
        assert (await volunteer.ask("status"))["says"].endswith("its lease waits at the last saved step")
        await _seen_as_paused(swarm)
        gate.opened.set()
        said = await volunteer.ask("resume")
        assert said["allowed"]
        assert (await volunteer.task).exit_code == 0
        assert len(volunteer.recorder.texts("lease_granted")) == 1, "the same lease went on"
        assert len(volunteer.recorder.texts("submission_accepted")) == 1
        trainer: Any = volunteer.agent._trainer
        assert trainer._shard is not None
        trainer.rest()
        assert trainer._shard is None, "a pause gives the model's memory back"
    finally:
        await server.close()


async def _seen_as_paused(swarm: Swarm) -> None:
    assert swarm.server is not None
    assert swarm.server._run is not None
    engine = swarm.server._run.pump.engine
    async with asyncio.timeout(20):
        while not any(beat.paused_until_s is not None for beat in engine.last_seen.values()):
            await asyncio.sleep(0.01)
    (beat,) = engine.last_seen.values()
    assert beat.lease_id is not None, "it speaks for its lease"
    assert beat.paused_until_s is not None
    assert 40.0 < beat.paused_until_s - beat.at_s < 61.0
    (record,) = engine.state.workers.values()
    status = worker_status(engine, record, connected=lambda _: True, now_s=beat.at_s, common=None)
    assert status.why.startswith("paused by its owner, for 1 min more at the least; lease r1.1")


async def test_a_pause_that_is_too_long_hands_the_lease_back_and_leave_ends_it(swarm: Swarm, gate: Gate) -> None:
    volunteer = Volunteer(swarm, batch_hook=gate, pauses=Pauses())
    await volunteer.recorder.saw("fetched")
    await volunteer.until(State.TRAINING)
    await volunteer.control.handle({"verb": "pause", "until_s": time.time() + 1e6})
    async with asyncio.timeout(20):
        while volunteer.agent.held_lease is not None:
            await asyncio.sleep(0.01)
    gate.opened.set()
    await volunteer.until(State.PAUSED)
    assert any("too long" in text for text in volunteer.recorder.texts("note"))
    assert (await volunteer.control.handle({"verb": "leave"}))["says"] == "leaving"
    assert (await volunteer.task).exit_code == 0


async def test_finish_lets_the_present_lease_be_the_last(swarm: Swarm, gate: Gate) -> None:
    volunteer = Volunteer(swarm, batch_hook=gate)
    await volunteer.recorder.saw("fetched")
    await volunteer.until(State.TRAINING)
    said = await volunteer.control.handle({"verb": "finish"})
    assert said["says"].endswith("no new work after that: you asked it to finish and leave")
    gate.opened.set()
    assert (await volunteer.task).reason.startswith("left: it has finished its last lease")
    assert len(volunteer.recorder.texts("uploaded")) == 1


async def test_what_is_no_request_of_ours_is_refused(swarm: Swarm) -> None:
    volunteer = Volunteer(swarm)
    untils = [{"verb": "pause", "until_s": until} for until in ("soon", float("nan"), True)]
    requests: list[dict[str, Any]] = [{}, {"verb": "dance"}, {"verb": ["pause"]}, *untils]
    for request in requests:
        with pytest.raises(MalformedMessage):
            await volunteer.control.handle(request)
