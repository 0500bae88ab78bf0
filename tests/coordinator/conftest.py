"""A run in a temporary folder, its server over loopback TLS, and clients that sign but trust nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.pump import Pump
from coordinator.run.pump_limits import PumpLimits
from tests.coordinator.pump_bench import Setup, no_snapshot
from tests.served import RawClient, clients_of, copy_run, make_run, submission_for, write_text

torch.set_num_threads(1)

ENGINE: dict[str, Any] = {"max_rounds": 2, "min_grace_s": 0.0, "grace_share": 0.0, "checkpoint_every": 1}


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little real text."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A run that nobody has served yet, to be copied."""
    return make_run(tmp_path_factory.mktemp("pristine") / "run", text_folder, ENGINE)


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> RunFolder:
    """A fresh copy of the pristine run."""
    return copy_run(pristine_run, tmp_path / "run")


@pytest.fixture
def pump_limits() -> PumpLimits:
    """As in the product; a file of tests may have its own."""
    return PumpLimits()


@pytest.fixture
async def server(run: RunFolder, pump_limits: PumpLimits) -> AsyncIterator[CoordinatorServer]:
    """The run, served."""
    started = CoordinatorServer(run, pump_limits=pump_limits)
    await started.start()
    yield started
    await started.stop(0.0)


@pytest.fixture
async def join(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients that are enrolled and have a session."""
    async with clients_of(run, server) as make:
        yield make


@pytest.fixture
def submission() -> Callable[..., bytes]:
    """Makes submissions."""
    return submission_for


@pytest.fixture
def client_type() -> type[RawClient]:
    """For tests that start and stop the server themselves."""
    return RawClient


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(Pump, "_save_snapshot", no_snapshot)
    return Setup(tmp_path)
