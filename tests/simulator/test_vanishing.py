"""A worker vanishes at the very inner step that the schedule names, as the real trainer reads its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moe.balance import RoutedCounts
from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from simulator.processes.vanishing import Vanishing, note_vanishing, read_vanishing, sequences_ending_at
from worker.train.trainer import train_shard


class Gone(Exception):
    """Stands in for SIGKILL."""


class LinearLoss:
    """One number to train, and a count of the steps that were taken."""

    balance_coefficient = 0.0
    selection_biases: Sequence[Tensor] = ()
    chosen = None

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(()))

    def parameter_groups(self, *, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, object]]:
        return [{"params": [self.weight], "lr": lr, "weight_decay": weight_decay}]

    def count_routes(self, tokens_BL: Tensor, /) -> RoutedCounts:
        raise AssertionError("nothing is cut here")

    def loss(self, tokens_BL: Tensor, counts: RoutedCounts | None = None, /) -> LinearLoss:
        self.total = self.nll = self.weight * tokens_BL.float().mean()
        return self

    def move_selection_biases(self, chosen: Tensor, rate: float, /) -> None:
        raise AssertionError("it has none")

    def train(self) -> object:
        return self


def lease_of(*, inner_steps: int, batch: int) -> Lease:
    return Lease(
        lease_id=LeaseId("r1.1"), round=RoundNumber(1), base_version=Version(0), columns=(0,),
        data=DataRange(seed=0, start=0, count=inner_steps * batch), seed=0,
        inner_steps=inner_steps, batch_sequences=batch,
        recipe=Recipe(optimizer="adamw", learning_rate=1e-3, router_lr_scale=1.0, warmup_steps=0, weight_decay=0.0),
    )  # fmt: skip


@pytest.mark.parametrize("step", [1, 3, 6])
def test_training_ends_exactly_at_the_step(step: int) -> None:
    done: list[int] = []

    def vanish() -> None:
        raise Gone

    tokens = sequences_ending_at(np.ones((12, 9), dtype=np.int64), (step - 1) * 2, vanish)
    with pytest.raises(Gone):
        train_shard(
            LinearLoss(), lease_of(inner_steps=6, batch=2), tokens, on_step=lambda count, _loss: done.append(count)
        )
    assert done == list(range(1, step))


def test_a_watched_array_holds_the_same_sequences() -> None:
    tokens = np.arange(24, dtype=np.int64).reshape(4, 6)
    watched = sequences_ending_at(tokens, 99, lambda: pytest.fail("nothing at or after row 99 was asked for"))
    assert np.array_equal(watched[1:3], tokens[1:3])
    assert watched.shape == tokens.shape
    assert type(watched[0:2]) is np.ndarray


def test_the_latest_note_counts(tmp_path: Path) -> None:
    path = tmp_path / "notes" / "worker-0.jsonl"
    assert read_vanishing(path) is None
    note_vanishing(path, Vanishing(wall_s=1.5, round=1, step=3, inner_steps=20))
    note_vanishing(path, Vanishing(wall_s=2.5, round=4, step=7, inner_steps=20))
    assert read_vanishing(path) == Vanishing(wall_s=2.5, round=4, step=7, inner_steps=20)
