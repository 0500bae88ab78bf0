"""A small model, leases for it, and a real coordinator in this process for the worker to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings
from moe.config import config_from_json, config_to_json
from moe.full import initial_blocks
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.identity import PrivateIdentity
from protocol.ids import BlockId
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.leases import changed_lease, lease_message, read_lease
from worker.agent import Agent
from worker.agents import make_agent
from worker.client import CoordinatorClient
from worker.home import open_home
from worker.lease import ReceivedLease
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.rejoin import home_root, link_of
from worker.rules.house import House

torch.set_num_threads(1)

MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)
Blocks = dict[BlockId, dict[str, torch.Tensor]]


def small_values() -> dict[str, Any]:
    values = config_to_json(preset("tiny"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_experts": 4}
    return {**values, **sizes, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(params=["frozen", "absent"])
def small_layout(request: pytest.FixtureRequest) -> Layout:
    return layout(config_from_json(small_values()), request.param)


@pytest.fixture
def frozen_layout() -> Layout:
    return layout(config_from_json(small_values()), "frozen")


@pytest.fixture
def blocks_of() -> Callable[[Layout], Blocks]:
    return lambda model_layout: initial_blocks(config_from_json(small_values()), model_layout, seed=1)


@pytest.fixture
def make_lease() -> Callable[..., ReceivedLease]:
    return lambda **changes: changed_lease(read_lease(lease_message()), **changes)


@pytest.fixture
def sequences() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 256, (20, 17))


class Gate:
    """Holds training still, between fetching and the first step, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, lease: Any, sequences: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(30)
        return sequences


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


class Recorder:
    """A reporter that remembers, and lets a test wait for an event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.details: list[tuple[str, str]] = []
        """What stands beside the sentence for whoever has to find out more."""
        self.steps: list[int] = []
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def say(self, event: str, text: str, **fields: object) -> None:
        self.events.append((event, text))
        self.details.append((event, str(fields.get("detail", ""))))
        self._loop.call_soon_threadsafe(self._changed.set)

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        self.steps.append(done)

    def close(self) -> None:
        pass

    def texts(self, event: str) -> list[str]:
        return [text for name, text in self.events if name == event]

    async def saw(self, event: str, count: int = 1) -> str:
        async with asyncio.timeout(20):
            while len(self.texts(event)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.texts(event)[count - 1]


class Swarm:
    """A run folder, its coordinator, and agents in this process."""

    def __init__(self, folder: RunFolder, root: Path) -> None:
        self.folder = folder
        self.root = root
        self.server: CoordinatorServer | None = None
        self.link = ""
        self.tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        self.server = CoordinatorServer(self.folder)
        await self.server.start()
        if not self.link:
            (self.link,) = await self.server.create_invites()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(grace=0.2)
            self.server = None

    def agent(
        self, home: str = "home", machine: Machine = MACHINE, house: House | None = None, **changes: Any
    ) -> tuple[Agent, Recorder, asyncio.Task[Any]]:
        options = WorkerOptions(
            link=self.link,
            home=self.root / home,
            measure_speed=False,
            first_backoff_s=0.05,
            max_backoff_s=0.2,
            **changes,
        )
        recorder = Recorder()
        link = link_of(options.link, home_root(options.first_home or options.home))
        run_home = open_home(options.home, link.fingerprint, options.disk_bytes)
        agent, _ = make_agent(options, machine, link, run_home, recorder, house)
        task = asyncio.create_task(agent.run())
        self.tasks.append(task)
        return agent, recorder, task


AnySwarm = TypeVar("AnySwarm", bound=Swarm)


@contextlib.asynccontextmanager
async def served(made: AnySwarm) -> AsyncIterator[AnySwarm]:
    """Started, and at the end all of it stopped."""
    await made.start()
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await made.stop()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line * number}\n" for line in range(40)]
        (folder / f"module_{number}.py").write_text("".join(lines))
    return folder


@pytest.fixture
async def swarm(tmp_path: Path, corpus: Path) -> AsyncIterator[Swarm]:
    settings = RunSettings(
        preset="tiny",
        data=str(corpus),
        port=0,
        sequence_length=32,
        codec="fp32",
        heldout_limit=4,
        screening_sequences=4,
        engine={
            "max_rounds": 1,
            "gather_s": 0.0,
            "heartbeat_interval_s": 0.1,
            "heartbeat_misses": 100.0,
            "inner": {"inner_steps": 2, "batch_sequences": 2},
            "screening": {"enabled": False},
        },
    )
    folder = await asyncio.to_thread(init_run, tmp_path / "run", settings)
    async with served(Swarm(folder, tmp_path)) as made:
        yield made


@pytest.fixture
async def client(swarm: Swarm) -> AsyncIterator[CoordinatorClient]:
    """Enrolled, and in a session."""
    link, identity = JoinLink.parse(swarm.link), PrivateIdentity.generate()
    made = CoordinatorClient(link, identity, first_backoff_s=0.01)
    made.connect(swarm.folder.authority().cert_pem)
    capability = pb.Capability(device="cpu", memory_bytes=8 << 30)
    await made.enrol(
        pb.EnrolRequest(
            protocol_version=PROTOCOL_VERSION,
            public_key=identity.public_key,
            invite=link.invite,
            name="client",
            capability=capability,
        )
    )
    await made.open_session(capability)
    yield made
    await made.close()
