"""The benchmark of a round trip: a run of the size that was asked for, and one micro run of every system to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.round_trip import rows_of
from benchmarks.round_trip_swarm import ENGINE
from benchmarks.sized_runs import sized_run, submission_bytes


def test_a_run_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    run = sized_run(tmp_path / "run", 3_000_000, ENGINE)
    assert abs(submission_bytes(run) / 3_000_000 - 1.0) < 0.03


@pytest.mark.soak
def test_every_system_plays_its_rounds(tmp_path: Path) -> None:
    rows = {str(row["system"]): row for row in rows_of(tmp_path, 2, 500_000, 2, None)}
    assert list(rows) == ["tcp", "floor", "grpc.aio", "barnraise", "barnraise, screening on", "barnraise, steps down"]
    assert rows["floor"]["over_floor"] == 1.0
    assert all(float(str(row["round_s"])) > 0.0 and float(str(row["cpu_s"])) > 0.0 for row in rows.values())
