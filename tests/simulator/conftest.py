"""Shared by the simulator's tests: one torch thread, as every process of a swarm has, and a small corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text, small enough to be prepared in a moment: this project's own sources."""
    folder = tmp_path_factory.mktemp("corpus")
    room = Path(__file__).parents[2] / "simulator"
    for source in sorted(room.glob("*.py")):
        (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder
