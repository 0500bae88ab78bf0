"""A lease computed again, as an auditor does it: the same trainer on the same inputs, and what comes of it.

Decides nothing that the lease does not name, but for this: it computes in the arithmetic class in which the lease was
computed where it can, which is with another number of threads, or multiplying in another dtype, on the same chip. Holds
always: in the same class, on a CPU, and cut the same way the bits are the same; in another only rounding differs, which
leases of more than 50 steps make much of (results/replay_noise.json). The last shard is kept and loaded anew while the
columns stay the same, as a worker does.
Touches the device, and torch's number of threads, which it puts back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from moe.layout import Layout
from moe.padded import GROUPED, PADDED
from moe.shard import ShardModel, build_shard
from moe.stand_ins import StandIns
from protocol.arithmetic import ArithmeticClass, arithmetic_class
from protocol.lease import Lease
from protocol.submission import Blocks
from worker.machine.arithmetic import arithmetic_here
from worker.train.freeing import drop_shard
from worker.train.trainer import pseudo_gradient_of, train_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_THREADS = 64
"""With which somebody else's lease is computed again: a stranger says how many there were, and each costs memory."""
_REPLAYED_IN: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class LeaseReplay:
    """Computes leases of one model again, one at a time. What `replay_lease` gives."""

    def __init__(
        self,
        layout: Layout,
        *,
        device: str = "cpu",
        compute_dtype: torch.dtype | None = None,
        threads: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        experts: str = GROUPED,
    ) -> None:
        self._layout, self._device, self._compute_dtype, self._experts = layout, device, compute_dtype, experts
        self._threads, self._should_stop = threads, should_stop
        self._shard: ShardModel | None = None
        self._built_for = GROUPED
        """How it takes experts' products."""

    def __call__(
        self, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], micro_batch: int, wanted: str = "", /
    ) -> tuple[Blocks, str]:
        """The pseudo-gradient, fp32, before any codec, and the arithmetic class in which it was computed.

        `micro_batch` 0: the whole batch at a time. `wanted`: the class to compute in, where this machine can; one that
        it cannot have, or that is none, changes nothing.
        `start` holds every block that a shard of the lease's columns needs. TrainingFailedError where the lease itself
        comes to nothing (its loss leaves the finite numbers); TrainingStopped where `should_stop` says so.
        """
        here = self._nearest(wanted)
        shard = self._loaded(lease, start, here)
        self._shard = None  # kept once it has come through: after a failure nobody knows what is in it
        try:
            gradient = self._trained(shard, lease, start, sequences_NL, micro_batch, here.threads or self._threads)
        except BaseException:
            drop_shard(shard, self._device)
            raise
        self._shard = shard
        return gradient, str(here)

    def _trained(
        self,
        shard: ShardModel,
        lease: Lease,
        start: Blocks,
        sequences_NL: NDArray[Any],
        micro_batch: int,
        threads: int | None,
    ) -> Blocks:
        with _threads(threads):
            train_shard(
                shard,
                lease,
                sequences_NL.astype("int64", copy=False),
                device=self._device,
                micro_batch=micro_batch or None,
                should_stop=self._should_stop,
                restore=lambda: shard.load(start),
            )
            return pseudo_gradient_of(start, shard)

    def _nearest(self, wanted: str) -> ArithmeticClass:
        """Of the classes that this machine can compute in, the wanted one, or else its own."""
        threads = self._threads or torch.get_num_threads()
        own = arithmetic_here(self._device, self._compute_dtype, threads, self._experts)
        asked = arithmetic_class(wanted)
        if asked is None or asked.threads > MOST_THREADS or asked.dtype not in _REPLAYED_IN:
            return own
        way = PADDED if asked.experts == PADDED else GROUPED
        like = arithmetic_here(self._device, _REPLAYED_IN[asked.dtype], asked.threads, way)
        return like if like == asked else own

    def _loaded(self, lease: Lease, start: Blocks, here: ArithmeticClass) -> ShardModel:
        dtype = _REPLAYED_IN.get(here.dtype, self._compute_dtype)
        way, masters, stand_ins = (
            here.experts or GROUPED,
            lease.recipe.masters,
            StandIns(dtype=lease.recipe.frozen_dtype),
        )
        same = self._shard is not None and (self._shard.compute_dtype, self._built_for) == (dtype, way)
        if self._shard is not None and same and self._shard.serves(lease.columns, masters, stand_ins, lease.trunk):
            self._shard.load(start)
            return self._shard
        before, self._shard = self._shard, None
        drop_shard(before, self._device)  # the old one goes before the new one is built: both might not fit
        self._built_for = way
        return build_shard(
            self._layout,
            lease.columns,
            start,
            device=self._device,
            compute_dtype=dtype,
            seed=lease.seed,
            masters=masters,
            stand_ins=stand_ins,
            trunk=lease.trunk,
            experts=way,
        )


def replay_lease(
    layout: Layout,
    *,
    device: str = "cpu",
    compute_dtype: torch.dtype | None = None,
    threads: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    experts: str = GROUPED,
) -> LeaseReplay:
    """What computes leases of a run of `layout` again; `threads` for torch, None: as many as there are set."""
    return LeaseReplay(
        layout,
        device=device,
        compute_dtype=compute_dtype,
        threads=threads,
        should_stop=should_stop,
        experts=experts,
    )


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
