"""Ways to train a lease in this process: as the product does, and two variants that experiments compare it with.

Decides nothing that a lease does not name. `PureLeases` is the worker's own trainer. Leases that are not pure are the
others: with `KeptMoments` each worker's moments live on from one lease to the next, with `EagerLeases` nobody waits for
the version that the last round makes. One shard is kept for each set of columns, because building it costs more than
loading it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from moe.stand_ins import DECODED, StandIns
from protocol.errors import LocalError
from protocol.ids import WorkerId
from protocol.lease import Lease
from protocol.submission import Blocks
from worker.train.optimizer import InnerOptimizer
from worker.train.trainer import LeaseResult, TrainMetrics, pseudo_gradient_of, train_shard, warmup_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SHARDS = 8
"""Shards kept in memory: a swarm of half-column workers has few sets of columns at a time."""


class Shards:
    """Built shards by their columns; the oldest goes when there are too many."""

    def __init__(self, layout: Layout, *, device: str = "cpu", compute_dtype: torch.dtype | None = None) -> None:
        self.layout = layout
        self.device = device
        self._compute_dtype = compute_dtype
        self._built: dict[tuple[int, ...], ShardModel] = {}

    def loaded(self, lease: Lease, start: Blocks) -> ShardModel:
        """The shard of `lease`, holding `start`."""
        columns, masters = lease.columns, lease.recipe.masters
        # One tensor of all experts, whatever they are coded in: the same numbers, sooner, of models that are small.
        stand_ins = StandIns(dtype=lease.recipe.frozen_dtype, place=DECODED)
        shard = self._built.pop(columns, None)
        if shard is None or not shard.serves(columns, masters, stand_ins, lease.trunk):
            shard = build_shard(
                self.layout,
                columns,
                start,
                device=self.device,
                compute_dtype=self._compute_dtype,
                seed=lease.seed,
                masters=masters,
                stand_ins=stand_ins,
                trunk=lease.trunk,
            )
        else:
            shard.load(start)
        self._built[columns] = shard
        if len(self._built) > MOST_SHARDS:
            del self._built[next(iter(self._built))]
        return shard


class PureLeases:
    """What a worker does: fresh moments, everything from the lease."""

    def __init__(self, shards: Shards, *, micro_batch: int | None = None) -> None:
        self._shards = shards
        self._micro_batch = micro_batch

    def __call__(self, worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        """Train `lease`; see `worker.train.trainer.train_shard`."""
        shard = self._shards.loaded(lease, start)
        metrics = train_shard(shard, lease, sequences_NL, device=self._shards.device, micro_batch=self._micro_batch)
        return LeaseResult(pseudo_gradient=pseudo_gradient_of(start, shard), metrics=metrics)


class EagerLeases:
    """Pure leases but for where they begin: one version late, moved by the worker's own part of the last round.

    As if the next lease were granted when the last one ends: the others' part of the round is not there yet
    (Kale et al. 2025, "Eager Updates For Overlapped Communication and Computation in DiLoCo", arXiv:2502.12996).
    """

    def __init__(self, leases: PureLeases, *, workers: int) -> None:
        self._leases = leases
        self._workers = workers
        self._last: dict[WorkerId, tuple[Blocks, Blocks]] = {}

    def __call__(self, worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        """Train `lease` from the base version of the worker's lease before, less its own share of what it sent then."""
        begin = start
        if worker in self._last:
            base, own = self._last[worker]
            begin = {block: _moved(tensors, own.get(block, {}), self._workers) for block, tensors in base.items()}
        result = self._leases(worker, lease, begin, sequences_NL)
        self._last[worker] = start, result.pseudo_gradient
        return result


def _moved(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], workers: int) -> dict[str, Tensor]:
    return {name: tensor - own[name] / workers if name in own else tensor for name, tensor in tensors.items()}


class KeptMoments:
    """Each worker keeps its optimizer from lease to lease. Only for workers whose columns stay the same."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._own: dict[WorkerId, tuple[ShardModel, InnerOptimizer, float]] = {}

    def __call__(self, worker: WorkerId, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], /) -> LeaseResult:
        """Train `lease` from `start`, with the moments that the worker's last lease left."""
        first = worker not in self._own
        shard, optimizer, first_rate = self._own.get(worker) or self._begin(worker, lease, start)
        if shard.columns != lease.columns:
            raise LocalError(f"kept moments are those of columns {shard.columns}, the lease has {lease.columns}")
        shard.load(start)
        started_s, losses = time.perf_counter(), []
        for step in range(lease.inner_steps):
            rows = slice(step * lease.batch_sequences, (step + 1) * lease.batch_sequences)
            parts = shard.loss(torch.from_numpy(sequences_NL[rows]))
            parts.total.backward()  # type: ignore[no-untyped-call]
            losses.append(float(parts.nll.detach()))
            # moments that are warm need no warm-up; the very first lease's do
            warm = warmup_factor(step, lease.recipe.warmup_steps) if first else 1.0
            optimizer.step(warm * lease.recipe.learning_rate / first_rate, lease.round * lease.inner_steps + step)
            if parts.chosen is not None:
                shard.move_selection_biases(parts.chosen, lease.recipe.selection_bias_rate)
        metrics = TrainMetrics(
            inner_steps_done=lease.inner_steps,
            tokens=lease.data.count * (sequences_NL.shape[1] - 1),
            loss_first=losses[0],
            loss_last=sum(losses[-5:]) / len(losses[-5:]),
            train_s=time.perf_counter() - started_s,
            micro_batch=lease.batch_sequences,
        )
        return LeaseResult(pseudo_gradient=pseudo_gradient_of(start, shard), metrics=metrics)

    def _begin(self, worker: WorkerId, lease: Lease, start: Blocks) -> tuple[ShardModel, InnerOptimizer, float]:
        shards = self._shards
        shard = build_shard(
            shards.layout,
            lease.columns,
            start,
            device=shards.device,
            seed=lease.seed,
            masters=lease.recipe.masters,
            stand_ins=StandIns(dtype=lease.recipe.frozen_dtype, place=DECODED),
            trunk=lease.trunk,
        )
        self._own[worker] = shard, InnerOptimizer(shard, lease.recipe, lease.seed), lease.recipe.learning_rate
        return self._own[worker]
