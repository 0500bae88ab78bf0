"""A served run, an honest worker beside every attack, and a client that sends whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import EdgeLimits, Throttle
from coordinator.run.folder import RunFolder
from tests.edge.evil_coordinator import EvilCoordinator, Meeting
from tests.served import RawClient, Refusal, clients_of, copy_run, make_run, write_text

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has served yet, to be copied."""
    text = write_text(tmp_path_factory.mktemp("text"))
    return make_run(tmp_path_factory.mktemp("pristine") / "run", text, {"max_rounds": 100})


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> RunFolder:
    """A fresh copy of the pristine run."""
    return copy_run(pristine_run, tmp_path / "run")


class Clock:
    """A clock that a test sets; it may also advance by itself each time that it is read."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock by which the served run counts rates and waits."""
    return Clock()


@pytest.fixture
def limits() -> EdgeLimits:
    """The served run's limits; a module that wants others overrides this."""
    return EdgeLimits()


@pytest.fixture
async def server(run: RunFolder, limits: EdgeLimits, clock: Clock) -> AsyncIterator[CoordinatorServer]:
    """The run, served."""
    started = CoordinatorServer(run, throttle=Throttle(limits=limits, clock=clock))
    await started.start()
    yield started
    await started.stop(0.0)


@pytest.fixture
async def join(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients that are enrolled and have a session."""
    async with clients_of(run, server) as make:
        yield make


@pytest.fixture
async def honest(server: CoordinatorServer, join: Callable[..., Any]) -> AsyncIterator[RawClient]:
    """A worker with a lease when the attack begins, which delivers its submission when it is over."""
    client = await join(columns=2)
    lease = (await client.acquire()).lease
    yield client
    await client.beat()
    payload = client.submission(lease, seed=7)
    await client.commit(lease, payload)
    assert (await client.upload(lease, payload)).complete
    assert server._run is not None
    assert not server._run.pump.failed.done()


@pytest.fixture
def refused() -> type[Refusal]:
    """`await refused(code, words).of(call)`."""
    return Refusal


@pytest.fixture
def replace() -> Callable[..., EdgeLimits]:
    """EdgeLimits with some changed."""
    return lambda **changes: dataclasses.replace(EdgeLimits(), **changes)


@pytest.fixture
def cancelling() -> Callable[..., Any]:
    """A block whose background call is cancelled at its end."""

    @contextlib.asynccontextmanager
    async def block(call: Any) -> AsyncIterator[Any]:
        try:
            yield call
        finally:
            call.cancel()
            await asyncio.sleep(0)

    return block


@pytest.fixture
def files_of(run: RunFolder) -> Callable[[], Iterator[str]]:
    """Every file at and beside the run folder: what a path trick would add to."""
    return lambda: iter(sorted(str(path) for path in run.root.parent.rglob("*") if path.is_file()))


@pytest.fixture
def client_type() -> type[RawClient]:
    """For tests that start the server themselves."""
    return RawClient


@pytest.fixture
async def meeting(run: RunFolder, tmp_path: Path) -> AsyncIterator[Meeting]:
    """A worker about to join an evil coordinator. It stops after its third failure, without pauses."""
    met = Meeting(EvilCoordinator(run), tmp_path / "home")
    await met.evil.start()
    yield met
    if hasattr(met, "task"):
        met.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await met.task
    await met.evil.stop()
