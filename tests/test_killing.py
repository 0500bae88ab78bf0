"""What processes that tests fork inherit and must leave alone."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from tests.killing import killed_at


class LastWords:
    """Writes down in which process it went."""

    def __init__(self, path: Path) -> None:
        self.path, self.itself = path, self

    def __del__(self) -> None:
        self.path.write_text(str(os.getpid()))


def test_a_child_does_not_collect_its_parents_garbage(tmp_path: Path) -> None:
    """There a channel of gRPC, for one, would wait without end for a thread that the fork did not copy."""
    gc.collect()
    gc.disable()
    try:
        LastWords(tmp_path / "gone")
        assert not killed_at(1000, gc.collect)
        assert not (tmp_path / "gone").exists()
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "gone").read_text() == str(os.getpid())
