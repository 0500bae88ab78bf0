"""The inner loop: exactly what the lease says, on what is held only, the same each time."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aggregation.replayed import replay_distance
from moe.balance import RoutedCounts
from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.lease import Lease
from protocol.recipe import OPTIMIZERS
from worker.train.trainer import (
    TrainingFailedError,
    TrainingStopped,
    TrainMetrics,
    pseudo_gradient_of,
    train_shard,
    warmup_factor,
)

Sequences = NDArray[np.int64]
Make = Callable[..., Lease]


def train(
    model_layout: Layout, blocks: Any, lease: Lease, tokens: Sequences, **options: Any
) -> tuple[Any, TrainMetrics]:
    dtype = options.pop("compute_dtype", None)
    shard = build_shard(model_layout, lease.columns, blocks, compute_dtype=dtype, seed=lease.seed)
    metrics = train_shard(shard, lease, tokens, **options)
    return pseudo_gradient_of(blocks, shard), metrics


def flat(gradient: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for block in sorted(gradient) for tensor in gradient[block].values()])


def test_only_what_is_held_is_in_the_result(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences
) -> None:
    gradient, metrics = train(small_layout, blocks_of(small_layout), make_lease(), sequences)
    assert set(gradient) == {TRUNK, column_block(0), column_block(2)}
    assert all(tensor.norm() > 0 for block in gradient.values() for tensor in block.values())
    assert metrics.inner_steps_done == 5
    assert metrics.tokens == 20 * 16
    assert metrics.loss_first == pytest.approx(np.log(259), abs=0.3)


def test_the_same_lease_gives_the_same_bits(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences
) -> None:
    blocks = blocks_of(small_layout)
    first, _ = train(small_layout, blocks, make_lease(), sequences)
    torch.rand(7)
    second, _ = train(small_layout, blocks, make_lease(), sequences)
    assert torch.equal(flat(first), flat(second))


def test_a_reloaded_shard_trains_like_a_new_one(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences
) -> None:
    blocks = blocks_of(frozen_layout)
    fresh, _ = train(frozen_layout, blocks, make_lease(), sequences)
    shard = build_shard(frozen_layout, (0, 2), blocks)
    train_shard(shard, make_lease(), sequences)
    shard.load(blocks)
    train_shard(shard, make_lease(), sequences)
    assert torch.equal(flat(pseudo_gradient_of(blocks, shard)), flat(fresh))


def test_it_is_a_bare_adamw_loop(frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences) -> None:
    lease, blocks = make_lease(), blocks_of(frozen_layout)
    recipe = lease.recipe
    ours, _ = train(frozen_layout, blocks, lease, sequences)
    shard = build_shard(frozen_layout, lease.columns, blocks, seed=lease.seed)
    groups = shard.parameter_groups(recipe.learning_rate, recipe.router_lr_scale, recipe.weight_decay)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    for step in range(lease.inner_steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 2)
        optimizer.zero_grad()
        shard.loss(torch.from_numpy(sequences[step * 4 : step * 4 + 4])).total.backward()
        torch.nn.utils.clip_grad_norm_(shard.parameters(), recipe.clip_norm)
        optimizer.step()
    torch.testing.assert_close(flat(ours), flat(pseudo_gradient_of(blocks, shard)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_how_a_batch_is_cut_changes_nothing(
    small_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences, optimizer: str, micro_batch: int
) -> None:
    blocks = blocks_of(small_layout)
    shard = build_shard(small_layout, (0, 2), blocks)
    shard.balance_coefficient = 1.0  # a hundred times what it usually is, so that it shows
    whole = train_shard(shard, make_lease(optimizer=optimizer), sequences)
    at_once = pseudo_gradient_of(blocks, shard)
    shard.load(blocks)
    parts = train_shard(shard, make_lease(optimizer=optimizer), sequences, micro_batch=micro_batch)
    in_parts = pseudo_gradient_of(blocks, shard)
    assert (whole.micro_batch, parts.micro_batch) == (4, micro_batch)
    assert parts.loss_first == pytest.approx(whole.loss_first, rel=1e-5)
    assert replay_distance(in_parts, at_once).largest < 1e-4


class Faulty:
    """A shard that records its micro-batches and fails as told."""

    def __init__(self, fits: int = 99, nan_at: int | None = None) -> None:
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.fits, self.nan_at = fits, nan_at
        self.balance_coefficient = 0.01
        self.sizes: list[int] = []
        self.rows: list[int] = []
        self.counted: list[int] = []
        self.told: list[int | None] = []
        """Rows of the counts that each loss was given."""

    def parameter_groups(self, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "lr": lr}, {"params": [], "lr": lr * router_lr_scale}]

    def count_routes(self, tokens_BL: torch.Tensor) -> RoutedCounts:
        self.counted.append(len(tokens_BL))
        return RoutedCounts(by_expert=torch.ones(3, dtype=torch.int64), rows=len(tokens_BL))

    def loss(self, tokens_BL: torch.Tensor, counts: RoutedCounts | None = None) -> Any:
        if len(tokens_BL) > self.fits:
            raise torch.OutOfMemoryError("no memory")
        self.sizes.append(len(tokens_BL))
        self.rows += tokens_BL[:, 0].tolist()
        self.told.append(None if counts is None else counts.rows)
        total = self.weight.square().sum()
        if self.nan_at is not None and len(self.sizes) > self.nan_at:
            total = total * torch.nan
        return types.SimpleNamespace(total=total, nll=total.detach(), chosen=None)

    selection_biases: Sequence[torch.Tensor] = ()

    def move_selection_biases(self, chosen: torch.Tensor, rate: float) -> None:
        raise AssertionError("it has none")

    def train(self) -> None:
        pass


def test_sequences_come_in_the_leases_order(make_lease: Make, sequences: Sequences) -> None:
    sequences[:, 0] = np.arange(20)
    shard = Faulty()
    train_shard(shard, make_lease(), sequences, micro_batch=3)
    assert shard.rows == list(range(20))
    assert shard.sizes == [3, 1] * 5


def test_routes_are_counted_once_a_step_and_only_where_the_batch_is_cut(make_lease: Make, sequences: Sequences) -> None:
    whole, cut, free = Faulty(), Faulty(), Faulty()
    free.balance_coefficient = 0.0
    train_shard(whole, make_lease(), sequences)
    train_shard(cut, make_lease(), sequences, micro_batch=3)
    train_shard(free, make_lease(), sequences, micro_batch=3)
    assert (whole.counted, set(whole.told)) == ([], {None})
    assert (cut.counted, set(cut.told)) == ([3, 1] * 5, {4})
    assert (free.counted, set(free.told)) == ([], {None})


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(make_lease: Make, sequences: Sequences) -> None:
    sequences[:, 0] = np.arange(20)
    shard = Faulty(fits=1)
    metrics = train_shard(shard, make_lease(), sequences)
    assert (metrics.micro_batch, metrics.recut) == (1, False), "every step was cut alike"
    assert shard.rows == list(range(20))
    assert shard.counted[:6] == [2, 2, 1, 1, 1, 1]  # counting begins anew with every cut
    assert set(shard.told) == {4}
    with pytest.raises(TrainingFailedError, match="one sequence does not fit"):
        train_shard(Faulty(fits=0), make_lease(), sequences)


def test_a_loss_that_is_not_finite_ends_the_lease(make_lease: Make, sequences: Sequences) -> None:
    with pytest.raises(TrainingFailedError, match="from step 4"):
        train_shard(Faulty(nan_at=3), make_lease(), sequences)


def test_it_stops_between_micro_steps(make_lease: Make, sequences: Sequences) -> None:
    shard = Faulty()
    with pytest.raises(TrainingStopped):
        train_shard(shard, make_lease(), sequences, micro_batch=1, should_stop=lambda: len(shard.sizes) >= 2)
    assert len(shard.sizes) == 2
    counting = Faulty()
    with pytest.raises(TrainingStopped):
        train_shard(counting, make_lease(), sequences, micro_batch=1, should_stop=lambda: len(counting.counted) >= 2)
    assert (counting.counted, counting.sizes) == ([1, 1], [])


def test_the_wrong_number_of_sequences_is_our_bug(make_lease: Make, sequences: Sequences) -> None:
    with pytest.raises(LocalError, match="20 sequences leased, 19 given"):
        train_shard(Faulty(), make_lease(), sequences[:19])


class Lost:
    """A shard that has gone to infinity."""

    def begun(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value

    def held(self) -> Iterator[tuple[BlockId, dict[str, torch.Tensor]]]:
        yield TRUNK, {"w": torch.tensor([1.0, torch.inf])}


def test_a_result_that_is_not_finite_is_never_sent() -> None:
    with pytest.raises(TrainingFailedError, match="trunk"):
        pseudo_gradient_of({TRUNK: {"w": torch.ones(2)}}, Lost())


def test_warmup_is_linear_and_ends() -> None:
    assert [warmup_factor(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_bf16_trains_and_stays_near_fp32(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences
) -> None:
    blocks = blocks_of(frozen_layout)
    exact, _ = train(frozen_layout, blocks, make_lease(), sequences)
    rounded, metrics = train(frozen_layout, blocks, make_lease(), sequences, compute_dtype=torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(flat(exact), flat(rounded), dim=0) > 0.8
    assert metrics.loss_last < metrics.loss_first + 0.1
    assert all(tensor.dtype == torch.float32 for block in rounded.values() for tensor in block.values())


def test_losses_are_not_read_each_step(
    frozen_layout: Layout, blocks_of: Any, make_lease: Make, sequences: Sequences
) -> None:
    seen: list[tuple[int, float | None]] = []
    shard: ShardModel = build_shard(frozen_layout, (0, 2), blocks_of(frozen_layout))
    train_shard(shard, make_lease(), sequences, on_step=lambda done, loss: seen.append((done, loss)))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[0][1] is not None
    assert [loss for _, loss in seen[1:]].count(None) >= 3
