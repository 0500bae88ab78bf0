"""Versions against each other: on as few sequences as are enough, each measured once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.engine.commands import AggregateRound, PublishedVersion
from coordinator.engine.config import TrustRegionConfig
from coordinator.engine.trust_region import early_stop, why_withheld
from coordinator.work.comparing import VersionLosses
from protocol.ids import Digest, RoundNumber, Version, digest_of

NEW, PARENT, BEST = (digest_of(name.encode()) for name in ("new", "parent", "best"))
COMMAND = AggregateRound(
    command_id="aggregate:r1", round=RoundNumber(1), parent_version=Version(1), parent_manifest=PARENT,
    version=Version(2), contributions=(), clips=(), rule="mean", outer_learning_rate=1.0, outer_momentum=0.0, seed=7,
    oldest_needed=Version(0), compared_with=(PublishedVersion(version=Version(1), manifest=PARENT),),
    region_seed=3, early=early_stop(TrustRegionConfig()),
)  # fmt: skip


class Measured:
    """Losses of versions by hand; what is asked for is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, new: np.ndarray[Any, Any]) -> None:
        """`new`: gains of the new version over its parent, sequence by sequence."""
        self.asked: list[tuple[str, int]] = []
        names = {NEW: "new", PARENT: "parent", BEST: "best"}
        losses = {PARENT: np.full(64, 5.0), BEST: np.full(64, 4.9), NEW: 5.0 - new}

        def measured(model: Digest, tokens_NL: torch.Tensor, _: int) -> torch.Tensor:
            self.asked.append((names[model], len(tokens_NL)))
            return torch.from_numpy(losses[model][tokens_NL[:, 0].numpy()])

        monkeypatch.setattr("coordinator.work.comparing.sequence_losses", measured)
        drawn = np.arange(64)[:, None]
        dataset: Any = SimpleNamespace(screening_batch=lambda *_: drawn)
        settings: Any = SimpleNamespace(screening_sequences=64, sequence_length=8, evaluation_batch=4)
        self.versions = VersionLosses(dataset, settings, lambda manifest: manifest)

    def compared(self, command: AggregateRound = COMMAND) -> Any:
        self.asked.clear()
        return self.versions.compared(command, NEW)


def noisy(mean: float, sd: float) -> np.ndarray[Any, Any]:
    return mean + sd * np.tile([-1.0, 1.0], 32)


def test_a_clear_gain_is_known_after_sixteen_and_the_parent_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Measured(monkeypatch, new=noisy(0.1, 0.05))
    bench.versions.losses(PARENT, 3, 16)
    (one,) = bench.compared()
    assert bench.asked == [("new", 16)]
    assert (one.gain, one.sequences, one.version) == (pytest.approx(0.1), 16, 1)
    bench.compared(replace(COMMAND, region_seed=4))
    assert bench.asked == [("parent", 16), ("new", 16)], "another window's draw"


def test_what_is_in_doubt_is_measured_on_the_rest_of_the_draw_and_no_sequence_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Measured(monkeypatch, new=noisy(-0.04, 0.05))
    bench.versions.losses(PARENT, 3, 16)
    (one,) = bench.compared()
    assert bench.asked == [("new", 16), ("parent", 16), ("new", 16), ("parent", 32), ("new", 32)]
    assert (one.gain, one.sequences) == (pytest.approx(-0.04), 64)
    assert why_withheld(TrustRegionConfig(), [one]) is not None


def test_a_worse_version_is_withheld_on_the_whole_draw_however_few_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Measured(monkeypatch, new=noisy(-2.0, 0.05))
    (one,) = bench.compared()
    assert one.sequences == 64
    assert why_withheld(TrustRegionConfig(), [one]) is not None


def test_without_bounds_the_whole_draw_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Measured(monkeypatch, new=noisy(0.1, 0.05))
    (one,) = bench.compared(replace(COMMAND, early=None))
    assert (one.sequences, bench.asked) == (64, [("parent", 64), ("new", 64)])


def test_what_hardly_moves_is_held_against_the_best_too(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (*COMMAND.compared_with, PublishedVersion(version=Version(0), manifest=BEST))
    bench = Measured(monkeypatch, new=noisy(0.0, 0.001))
    parent, best = bench.compared(replace(COMMAND, compared_with=both))
    assert (parent.sequences, best.sequences) == (64, 64), "a tenth of a nat over the best: not to be decided early"
    assert best.gain == pytest.approx(-0.1)
    better = Measured(monkeypatch, new=noisy(0.01, 0.001))
    assert [one.sequences for one in better.compared(replace(COMMAND, compared_with=both))] == [16, 16]
