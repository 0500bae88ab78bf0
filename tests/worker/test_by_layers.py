"""Steps that go layer by layer: the usual step's weights to the bit, with fewer gradients; and memory that runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aggregation.replayed import replay_distance
from moe.config import config_from_json
from moe.families import FAMILIES
from moe.families.micro import micro_values
from moe.full import initial_blocks
from moe.layout import Layout, layout
from moe.shard import ShardModel, build_shard
from moe.weighing import gradients_by_layers, weighed
from protocol.ids import BlockId, Digest
from protocol.lease import Lease
from protocol.recipe import OPTIMIZERS
from tests.worker.conftest import small_values
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.optimizer import InnerOptimizer, Muon
from worker.train.replay import replay_lease
from worker.train.trainer import (
    TrainingFailedError,
    TrainingStopped,
    TrainMetrics,
    pseudo_gradient_of,
    train_shard,
)

Make = Callable[..., Lease]
Tokens = NDArray[np.int64]
HELD = (0, 2)
DIGESTS = {BlockId("trunk"): Digest("0" * 64)}
MODELS: dict[str, tuple[str, str]] = {
    "plain": ("olmoe", "frozen"),
    "plain, absent": ("olmoe", "absent"),
    "selection biases, dense layers, shared experts": ("deepseek_v3", "frozen"),
    "tied, dense layers": ("qwen3_moe", "frozen"),
    "biases of experts": ("gpt_oss", "absent"),
}
RUNGS: tuple[dict[str, Any], ...] = (
    {},
    {"masters": "bf16"},
    {"moments": "compact"},
    {"clipping": "layer"},
    {"masters": "bf16", "moments": "compact", "clipping": "layer"},
)


@pytest.fixture(params=MODELS)
def cut(request: pytest.FixtureRequest) -> Layout:
    name, residency = MODELS[request.param]
    values = micro_values(FAMILIES[name])
    tied = {"tie_word_embeddings": True} if request.param.startswith("tied") else {}
    return layout(config_from_json({**values, **tied}), residency)


@pytest.fixture
def olmoe() -> Layout:
    return layout(config_from_json({**small_values(), "num_hidden_layers": 3}), "frozen")


def started(cut: Layout) -> Any:
    return initial_blocks(config_from_json(cut.config_json), cut, seed=1)


def built(cut: Layout, lease: Lease) -> ShardModel:
    return build_shard(cut, lease.columns, started(cut), seed=lease.seed, masters=lease.recipe.masters)


def trained(
    cut: Layout, lease: Lease, tokens: Tokens, *, by_layers: bool, shard: ShardModel | None = None, **options: Any
) -> tuple[Any, TrainMetrics]:
    shard = shard or built(cut, lease)
    way = shard.layerwise() if by_layers else None
    metrics = train_shard(shard, lease, tokens[: lease.data.count], by_layers=way, **options)
    return pseudo_gradient_of(started(cut), shard), metrics


def same(ours: Any, theirs: Any) -> bool:
    return all(
        torch.equal(tensor, theirs[block][name]) for block, tensors in ours.items() for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rung", RUNGS, ids="+".join)
def test_it_is_the_usual_step_to_the_bit(
    cut: Layout, make_lease: Make, sequences: Tokens, optimizer: str, rung: dict[str, Any]
) -> None:
    lease = make_lease(optimizer=optimizer, columns=HELD, inner_steps=3, data_count=12, clip_norm=0.1, **rung)
    usual, metrics = trained(cut, lease, sequences, by_layers=False, micro_batch=3)
    ours, likewise = trained(cut, lease, sequences, by_layers=True, micro_batch=3)
    assert same(ours, usual)
    assert (likewise.loss_first, likewise.loss_last) == (metrics.loss_first, metrics.loss_last)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_however_it_is_cut(olmoe: Layout, make_lease: Make, sequences: Tokens, micro_batch: int) -> None:
    lease = make_lease(optimizer="muon")
    usual, _ = trained(olmoe, lease, sequences, by_layers=False, micro_batch=micro_batch)
    ours, _ = trained(olmoe, lease, sequences, by_layers=True, micro_batch=micro_batch)
    assert same(ours, usual)
    replay = replay_lease(olmoe, threads=1)
    again, _ = replay(lease, started(olmoe), sequences, micro_batch)
    assert replay_distance(ours, again).largest == 0.0


@pytest.mark.parametrize(("clipping", "downs"), [("whole", 2), ("layer", 1)])
def test_it_goes_down_twice_only_where_clipping_needs_it(
    olmoe: Layout, make_lease: Make, sequences: Tokens, clipping: str, downs: int
) -> None:
    lease = make_lease(clipping=clipping, clip_norm=1e-3)
    shard = built(olmoe, lease)
    way, seen = shard.layerwise(), list[bool]()
    honest = way.backward

    def backward(parts: Any, before_each: Any, *, is_last: bool = True) -> Iterator[None]:
        seen.append(is_last)
        yield from honest(parts, before_each, is_last=is_last)

    way.backward = backward  # type: ignore[method-assign]
    train_shard(shard, lease, sequences, by_layers=way)
    assert seen == [False, True][-downs:] * lease.inner_steps


def live_bytes(shard: ShardModel) -> Iterator[int]:
    """Each time that a gradient has been added to: the bytes of all that are there."""
    sizes: list[int] = []
    parameters = list(shard.parameters())

    def on_added(_parameter: torch.Tensor) -> None:
        sizes.append(sum(one.grad.nbytes for one in parameters if one.grad is not None))

    for one in parameters:
        one.register_post_accumulate_grad_hook(on_added)
    return iter(sizes)


def test_never_more_gradients_than_a_layers_are_there(olmoe: Layout, make_lease: Make, sequences: Tokens) -> None:
    lease = make_lease()
    shards = {by_layers: built(olmoe, lease) for by_layers in (False, True)}
    seen = {by_layers: live_bytes(shard) for by_layers, shard in shards.items()}
    for by_layers, shard in shards.items():
        trained(olmoe, lease, sequences, by_layers=by_layers, shard=shard, micro_batch=3)
    usual, ours = max(seen[False]), max(seen[True])
    tensors = [(one.layer, one.gradient_bytes()) for one in weighed(olmoe, len(HELD))]
    layers = [sum(size for layer, size in tensors if layer == number) for number in range(3)]
    ends = sum(size for layer, size in tensors if layer < 0)
    assert usual == sum(layers) + ends
    assert ours <= max(*layers, ends)
    assert gradients_by_layers(weighed(olmoe, len(HELD))) >= ours


def test_it_stops_in_the_middle_of_a_step_and_the_next_lease_is_as_if_it_had_not_been(
    olmoe: Layout, make_lease: Make, sequences: Tokens
) -> None:
    lease, shard = make_lease(), built(olmoe, make_lease())
    usual, _ = trained(olmoe, lease, sequences, by_layers=False)
    way = len(sequences[:1]) + 2 * (3 + 2)  # up, down and down again through three layers and what lies at their ends
    for asked in (way + 3, way + way - 2):
        told = itertools.count(1)
        with pytest.raises(TrainingStopped):
            trained(olmoe, lease, sequences, by_layers=True, shard=shard, should_stop=lambda: next(told) >= asked)  # noqa: B023
        moved = pseudo_gradient_of(started(olmoe), shard)
        assert any(tensor.any() for tensors in moved.values() for tensor in tensors.values())
        shard.load(started(olmoe))
        after, _ = trained(olmoe, lease, sequences, by_layers=True, shard=shard)
        assert same(after, usual)
        shard.load(started(olmoe))


class RunsOut:
    """A step of an optimizer that ends for want of memory, when it has stepped some parameters."""

    def __init__(self, patch: pytest.MonkeyPatch, *, at_step: int, times: int = 1, error: str) -> None:
        self._honest = Muon._update
        self._left, self.calls = times, 0
        self._at_step, self._error = at_step, error
        patch.setattr(Muon, "_update", self._update_of())
        honest = InnerOptimizer.begin

        def begin(optimizer: InnerOptimizer, factor: float, number: int = 0) -> None:
            self._step, self._done = number, 0
            honest(optimizer, factor, number)

        patch.setattr(InnerOptimizer, "begin", begin)

    def _update_of(self) -> Callable[..., None]:
        def update(optimizer: Muon, *given: Any) -> None:
            self._done += 1
            if self._left and self._step == self._at_step and self._done == 3:
                self._left -= 1
                raise RuntimeError(self._error)
            self._honest(optimizer, *given)

        return update


WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
)


@pytest.mark.parametrize("by_layers", [False, True])
@pytest.mark.parametrize("error", WORDS)
def test_memory_that_runs_out_when_weights_have_moved_takes_the_lease_back(
    olmoe: Layout, make_lease: Make, sequences: Tokens, monkeypatch: pytest.MonkeyPatch, by_layers: bool, error: str
) -> None:
    lease, shard = make_lease(optimizer="muon"), built(olmoe, make_lease(optimizer="muon"))
    usual, _ = trained(olmoe, lease, sequences, by_layers=False, micro_batch=2)
    RunsOut(monkeypatch, at_step=3, error=error)
    steps: list[int] = []
    ours, metrics = trained(
        olmoe,
        lease,
        sequences,
        by_layers=by_layers,
        shard=shard,
        restore=lambda: shard.load(started(olmoe)),
        on_step=lambda done, _loss: steps.append(done),
    )
    assert same(ours, usual), "as if it had been cut so from the first step on"
    assert (metrics.micro_batch, metrics.recut) == (2, False)
    assert steps == [1, 2, 3, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("by_layers", [False, True])
def test_it_goes_on_from_saved_progress(
    olmoe: Layout,
    make_lease: Make,
    sequences: Tokens,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    by_layers: bool,
) -> None:
    lease = make_lease(optimizer="muon")
    shard = built(olmoe, lease)

    class EverySecond(LeaseKeeper):
        def due(self) -> bool:
            self._asked = getattr(self, "_asked", 0) + 1
            return self._asked == 2

    kept = EverySecond(LeaseStates(tmp_path), computation_of(lease, DIGESTS, "cpu"))
    RunsOut(monkeypatch, at_step=3, error=WORDS[0])
    steps: list[int] = []
    ours, metrics = trained(
        olmoe,
        lease,
        sequences,
        by_layers=by_layers,
        shard=shard,
        keeper=kept,
        restore=lambda: shard.load(started(olmoe)),
        on_step=lambda done, _loss: steps.append(done),
    )
    assert steps == [1, 2, 3, 3, 4, 5], "two steps were saved"
    assert (metrics.micro_batch, metrics.recut) == (2, True)
    usual, _ = trained(olmoe, lease, sequences, by_layers=False)
    assert replay_distance(ours, usual).largest < 1e-3


@pytest.mark.parametrize("by_layers", [False, True])
def test_nothing_goes_on_from_half_a_step(
    olmoe: Layout, make_lease: Make, sequences: Tokens, monkeypatch: pytest.MonkeyPatch, by_layers: bool
) -> None:
    lease = make_lease(optimizer="muon")
    RunsOut(monkeypatch, at_step=1, times=9, error=WORDS[1])
    with pytest.raises(TrainingFailedError, match="nobody has the lease's start values"):
        trained(olmoe, lease, sequences, by_layers=by_layers)
    shard = built(olmoe, lease)
    with pytest.raises(TrainingFailedError, match="one sequence at a time"):
        trained(
            olmoe,
            lease,
            sequences,
            by_layers=by_layers,
            shard=shard,
            restore=lambda: shard.load(started(olmoe)),
        )


def test_memory_that_runs_out_before_weights_have_moved_costs_the_step_alone(
    olmoe: Layout, make_lease: Make, sequences: Tokens
) -> None:
    lease = make_lease(optimizer="muon")
    shard = built(olmoe, lease)
    usual, _ = trained(olmoe, lease, sequences, by_layers=False, micro_batch=2)
    way = shard.layerwise()
    honest, sizes = way.backward, list[int]()

    def backward(parts: Any, *given: Any, **how: Any) -> Any:
        sizes.append(len(parts))
        for number, stage in enumerate(honest(parts, *given, **how)):
            if number == 2 and len(parts) == 1:
                raise torch.OutOfMemoryError("no memory")
            yield stage

    way.backward = backward  # type: ignore[method-assign]
    metrics = train_shard(shard, lease, sequences, by_layers=way)
    assert sizes == [1, *[2, 2] * 5]
    assert (metrics.micro_batch, metrics.recut) == (2, False)
    assert same(pseudo_gradient_of(started(olmoe), shard), usual)
