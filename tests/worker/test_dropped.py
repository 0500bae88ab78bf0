"""Of two models never both: what the last lease was trained with is gone before the next lease's is built."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import worker.train.freeing
import worker.train.replay
import worker.train.training
from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from protocol.lease import Lease
from tests.worker.test_purity import Workplace
from worker.fetched import FetchedItem
from worker.train.freeing import drop_shard
from worker.train.measuring import LossMeasurer
from worker.train.replay import replay_lease

Sequences = NDArray[np.int64]
Make = Callable[..., Lease]
LOW = {"masters": "bf16", "moments": "compact", "frozen_dtype": "int4"}
RUNGS: tuple[dict[str, str], ...] = ({}, LOW, {"trunk": "lora"})


class Builds:
    """Stands in for `build_shard`; keeps how much of earlier models is there when another one is begun."""

    def __init__(self) -> None:
        self._built: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def __call__(self, *arguments: Any, **named: Any) -> ShardModel:
        self.alive.append(sum(one() is not None for one in self._built))
        shard = build_shard(*arguments, **named)
        self.watch(shard.module.parameters())
        return shard

    def watch(self, parameters: Iterable[Any]) -> None:
        self._built += map(weakref.ref, parameters)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builds]:
    """With Python's collector off: it may come by as late as it likes."""
    made = Builds()
    for module in (worker.train.training, worker.train.replay):
        monkeypatch.setattr(module, "build_shard", made)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


@pytest.mark.parametrize("rungs", RUNGS)
def test_a_worker_with_other_columns_holds_one_model(
    tmp_path: Path,
    small_layout: Layout,
    blocks_of: Any,
    make_lease: Make,
    sequences: Sequences,
    builds: Builds,
    rungs: dict[str, str],
) -> None:
    workplace = Workplace(tmp_path, small_layout, blocks_of(small_layout))
    for columns in ((0, 1), (1, 2), (0, 2)):
        assert workplace.train(make_lease(columns=columns, **rungs), sequences)
    assert builds.alive == [0, 0, 0]


def test_an_auditor_that_computes_leases_of_others_again_holds_one_model(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, builds: Builds
) -> None:
    replay, blocks = replay_lease(small_layout), blocks_of(small_layout)
    for columns in ((0, 1), (1, 2), (0, 2)):
        replay(make_lease(columns=columns, masters="bf16"), blocks, sequences, 2)
    assert builds.alive == [0, 0, 0]


def test_what_measures_losses_lets_its_model_go_before_a_lease_builds_one(
    tmp_path: Path, small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, builds: Builds
) -> None:
    workplace = Workplace(tmp_path, small_layout, blocks_of(small_layout))
    measurer = LossMeasurer(workplace.room._disk.blocks, "cpu")
    workplace.room._make_way = measurer.let_go
    item = FetchedItem(
        item_id="v1", run=workplace._run, columns=(), codec="fp32", digests=workplace._digests, payload=b"",
        sequences=sequences, parts=(),
    )  # fmt: skip
    losses, _ = measurer.measure(item)
    builds.watch(measurer._model.parameters())
    assert workplace.train(make_lease(columns=(0, 1)), sequences)
    assert builds.alive == [0]
    workplace.room.rest()
    assert workplace.room._shard is None
    assert measurer.measure(item)[0] == losses, "it is loaded anew"


@pytest.mark.parametrize(("device", "looked"), [("cuda:0", ["cuda:0"]), ("cpu", [])])
def test_a_gpus_allocator_gives_back_what_a_small_model_left(
    device: str, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations are larger than a small model; on a CPU there is nothing to look for."""
    found: list[str] = []
    monkeypatch.setattr(worker.train.freeing, "free_caches", found.append)
    shard = SimpleNamespace(module=torch.nn.Linear(2, 2))
    drop_shard(shard, device)  # type: ignore[arg-type]  # as much of one as is dropped
    assert found == looked
