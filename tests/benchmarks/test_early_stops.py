"""Resampled rounds: what is plain is decided early and as before, and what is not is measured whole."""

from __future__ import annotations

import torch

from benchmarks.early_stops import SPARSE, KeptGains, row
from coordinator.engine.commands import MeasureSubmission
from protocol.ids import Digest
from tests.coordinator.work_bench import lease

PLACES = 96


def kept(gain: float, spread: float = 0.02) -> KeptGains:
    """A submission of which a quarter gains so much, and all of it four times as much; or loses it, sign flipped."""
    part = gain + spread * torch.randn(PLACES, dtype=torch.float64)
    command = MeasureSubmission(
        command_id="measure:r1.1", lease=lease(1, (0,)), digest=Digest("00"), payload_bytes=1, codec="fp32",
        heldout_seed=1, measure_gain=True,
    )  # fmt: skip
    tables = {"nothing wrong": part, "sign flipped": -part}
    return KeptGains(command, tables, {name: 4.0 * table for name, table in tables.items()})


def rounds(gain: float) -> list[list[KeptGains]]:
    torch.manual_seed(1)
    return [[kept(gain) for _ in range(8)] for _ in range(3)]


def test_plain_gains_take_a_tenth_and_plain_lies_stay_refused() -> None:
    found = row("made up", rounds(0.06), "sign flipped", times=5)
    assert found["honest_refused_early"] == found["honest_refused_whole"] == 0.0
    assert found["liars_refused_early"] == found["liars_refused_whole"] == 1.0
    assert found["sequences_whole"] == 64
    assert found["most"] == 6
    assert found["wrongly"] == 0.0


def test_gains_within_their_noise_take_more() -> None:
    few, many = row("made up", rounds(0.06), "nothing wrong", 2), row("made up", rounds(0.002), "nothing wrong", 2)
    assert isinstance(few["tenth"], float)
    assert isinstance(many["tenth"], float)
    assert many["tenth"] < 0.5 < few["tenth"]


def test_harm_to_few_sequences_is_what_early_looks_miss() -> None:
    found = row("made up", rounds(0.06), SPARSE, times=5)
    assert isinstance(found["wrongly"], float)
    assert found["wrongly"] > 0.1
