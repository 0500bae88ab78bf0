"""A model trained in little memory, at a size of some megabytes: real processes, and what each took beside its plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ladder import LITTLE, LadderPlan, goal_bytes, play
from coordinator.run.folder import RunFolder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_two_workers_train_under_a_cap_and_say_how(tmp_path: Path) -> None:
    *workers, coordinator = play(tmp_path, LadderPlan(shape=LITTLE, rounds=1), 1 << 30)
    assert (coordinator["versions"], coordinator["accepted"], coordinator["refused"]) == (1, 2, 0)
    cut = RunFolder.open(tmp_path / "run").layout()
    assert coordinator["parameters"] == cut.parameters > 4e6
    for row in workers:
        assert row["columns"] == cut.columns, "under a gigabyte everything fits"
        assert float(str(row["idle_mb"])) > 50.0
        assert 0.0 < float(str(row["taken_mb"])) < 2.0 * float(str(row["planned_mb"])), "mostly libraries"
        assert row["goal_mb"] == goal_bytes(cut) / 1e6
        assert "planned" in str(row["how"])
