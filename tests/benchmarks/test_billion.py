"""The run of a billion parameters, at a size of half a megabyte: real processes, to published versions."""

from __future__ import annotations

from pathlib import Path

from benchmarks.billion import STAGES, play
from benchmarks.billion_processes import LITTLE, BillionPlan


def test_workers_that_walk_to_a_fixed_model_publish_better_versions(tmp_path: Path) -> None:
    rows = play(tmp_path, BillionPlan(shape=LITTLE, rounds=2, workers=3))
    whole = rows[-1]
    assert (whole["versions"], whole["accepted"], whole["refused"]) == (2, 6, 0)
    assert float(str(whole["loss"])) < float(str(whole["first_loss"])) - 0.1
    assert float(str(whole["anonymous_mb"])) > float(str(whole["model_mb"])) > 0.5
    up_mb, down_mb = float(str(whole["up_mb"])), float(str(whole["down_mb"]))
    assert 0.4 < up_mb < 0.7  # int4: 0.53 bytes of each parameter that is held, six times
    assert down_mb > 2.0
    staged = [(row["round"], row["stage"]) for row in rows[2:-1]]
    assert staged == [(number, stage) for number in (1, 2) for stage in STAGES]
    assert all(float(str(row["seconds"])) >= 0.0 for row in rows)
