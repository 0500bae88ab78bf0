"""A row of the replay-noise table: the farthest honest lease, the nearest cheat, and what that says of a tolerance."""

from __future__ import annotations

import pytest

from benchmarks.replay_noise import NoiseCase, cases, row_of
from benchmarks.replay_noise_leases import CHEATS

CASE = NoiseCase(model="micro", optimizer="muon", compute="fp32", base="fresh", steps=10)


def seed(honest: float, scale: float) -> dict[str, float]:
    return {"same": 0.0, "honest_fp32": honest, "honest_bf16": 2 * honest, **dict.fromkeys(CHEATS, 0.5), "scale": scale}


def test_of_several_seeds_the_worst_is_told_on_either_side() -> None:
    row = row_of(CASE, [seed(1e-4, 0.3), seed(5e-4, 0.4)])
    assert (row["honest"], row["nearest"], row["cheat"]) == (1e-3, "scale", 0.3)
    assert row["over_honest"] == pytest.approx(20)
    assert row["cheat_over"] == pytest.approx(15)
    assert row["both"]
    assert not row_of(CASE, [seed(5e-4, 0.05)])["both"]


def test_no_row_is_measured_twice() -> None:
    for quick in (True, False):
        wanted = list(cases(quick=quick))
        assert len(set(wanted)) == len(wanted)
    assert set(cases(quick=True)) < set(cases(quick=False))
