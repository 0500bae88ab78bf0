"""Steps of a shard with random weights, timed and weighed: what most pieces of `benchmarks.gpu` are made of.

Weights are drawn when they are asked for and held by nobody, so that a model of 7B parameters costs its shard alone.
A lease is trained by the worker's own loop; a step's time is the median over those after the first.

Shapes: N sequences of a lease, L stored tokens a sequence.
"""

from __future__ import annotations

import itertools
import math
import statistics
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_flops import step_flops
from benchmarks.gpu_where import Peak, Where
from moe.layout import Layout
from moe.planner import Burden
from moe.rungs import Schedule
from moe.shard import build_shard
from moe.stand_ins import DEVICE, StandIns
from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import Recipe
from worker.train.trainer import TrainMetrics, train_shard

_POOL: Final = 1 << 20
_GIVEN: Final[Mapping[str, Any]] = {"learning_rate": 1e-4, "muon_learning_rate": 1e-3, "warmup_steps": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained."""

    layout: Layout
    columns: int
    """The first so many are held."""
    recipe: Recipe
    batch: int
    """Sequences a step."""
    length: int
    """Tokens that a sequence trains on."""
    steps: int = 4
    micro_batch: int | None = None
    """Sequences that go through the model at once; None: all."""
    recomputed: bool = False
    place: str = DEVICE
    """Where experts that are not held lie: a name of `moe.stand_ins.PLACES`."""
    by_layers: bool = False

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    def plan_bytes(self, where: Where) -> int:
        """What the planner says that it takes of the device's memory."""
        load = Burden(
            layout=self.layout,
            recipe=self.recipe,
            sequence_length=self.length,
            compute_bytes=2 if where.bf16 else 4,
            on_gpu=where.is_gpu,
            batch_sequences=self.batch,
        )
        at_once = self.micro_batch or self.batch
        schedule = Schedule(at_once, recomputed=self.recomputed, place=self.place, by_layers=self.by_layers)
        return load.needed(self.columns, schedule).device

    def lease(self) -> Lease:
        """The lease that says so."""
        return Lease(
            lease_id=LeaseId("benchmark"),
            round=RoundNumber(1),
            base_version=Version(0),
            columns=tuple(range(self.columns)),
            data=DataRange(seed=0, start=0, count=self.steps * self.batch),
            seed=0,
            inner_steps=self.steps,
            batch_sequences=self.batch,
            recipe=self.recipe,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What it took."""

    step_s: float
    peak_bytes: int
    """With the shard itself."""
    flops: float
    """Of a step."""
    metrics: TrainMetrics


def recipe_with(**changes: Any) -> Recipe:
    """Rates that random weights stand, and `changes`."""
    return Recipe(**{**_GIVEN, **changes})


def trained(where: Where, job: Job, *, around: Any = None) -> Found:
    """Build the shard and train the lease; `around` makes of the shard what is trained in its place."""
    ends_s: list[float] = []
    with Peak(where) as peak:
        shard: Any = build_shard(
            job.layout,
            range(job.columns),
            RandomBlocks(job.layout),
            device=where.device,
            compute_dtype=where.compute,
            masters=job.recipe.masters,
            stand_ins=StandIns(dtype=job.recipe.frozen_dtype, place=job.place),
            trunk=job.lease().trunk,
        )
        shard.recompute(on=job.recomputed)
        vocabulary = int(job.layout.config_json["vocab_size"])
        tokens_NL = np.random.default_rng(0).integers(0, vocabulary, (job.steps * job.batch, job.length + 1))
        metrics = train_shard(
            shard if around is None else around(shard),
            job.lease(),
            tokens_NL,
            device=where.device,
            micro_batch=job.micro_batch,
            by_layers=shard.layerwise() if job.by_layers else None,
            on_step=lambda _step, _loss: ends_s.append(where.now()),
        )
    del shard
    where.free()
    each = [later - earlier for earlier, later in itertools.pairwise(ends_s)]
    return Found(
        step_s=statistics.median(each or [metrics.train_s]),
        peak_bytes=peak.peak_bytes,
        flops=step_flops(job.layout, job.columns, job.tokens, job.length),
        metrics=metrics,
    )


class RandomBlocks(Mapping[BlockId, Mapping[str, Tensor]]):
    """Every block of a model at random, drawn anew each time, the same each time; norms are ones."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02)

    def __getitem__(self, block: BlockId) -> Mapping[str, Tensor]:
        return _RandomBlock({spec.name: spec.shape for spec in self._layout.block_specs(block)}, block, self._pool)

    def __iter__(self) -> Iterator[BlockId]:
        return iter(self._layout.blocks)

    def __len__(self) -> int:
        return len(self._layout.blocks)


class _RandomBlock(Mapping[str, Tensor]):
    def __init__(self, shapes: Mapping[str, tuple[int, ...]], block: BlockId, pool: Tensor) -> None:
        self._shapes, self._block, self._pool = shapes, block, pool

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) < 2 and self._block == TRUNK:
            return torch.ones(shape)
        count, start = math.prod(shape), zlib.crc32(f"{self._block} {name}".encode()) % _POOL
        times = -(-(count + start) // _POOL)
        return self._pool.repeat(times)[start : start + count].view(shape).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
