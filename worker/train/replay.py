"""A lease computed again, as an auditor does it: the same trainer on the same inputs, and what comes of it.

Decides nothing that the lease does not name. Holds always: of two honest machines with the same torch and the same kind
of device only rounding differs, however many threads they have and however they cut their batches (measured in
docs/log.md). The last shard is kept and loaded anew while the columns stay the same, as a worker does.
Touches the device, and torch's number of threads, which it puts back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from moe.layout import Layout
from moe.shard import ShardModel, build_shard
from protocol.lease import Lease
from protocol.submission import Blocks
from worker.train.trainer import pseudo_gradient_of, train_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    ) -> None:
        self._layout, self._device, self._compute_dtype = layout, device, compute_dtype
        self._threads, self._should_stop = threads, should_stop
        self._shard: ShardModel | None = None

    def __call__(self, lease: Lease, start: Blocks, sequences_NL: NDArray[Any], micro_batch: int, /) -> Blocks:
        """The pseudo-gradient, fp32, before any codec. `micro_batch` 0: the whole batch at a time.

        `start` holds every block that a shard of the lease's columns needs. TrainingFailedError where the lease itself
        comes to nothing (its loss leaves the finite numbers); TrainingStopped where `should_stop` says so.
        """
        shard = self._loaded(lease, start)
        self._shard = None  # kept once it has come through: after a failure nobody knows what is in it
        with _threads(self._threads):
            train_shard(
                shard,
                lease,
                sequences_NL.astype("int64", copy=False),
                device=self._device,
                micro_batch=micro_batch or None,
                should_stop=self._should_stop,
            )
            gradient = pseudo_gradient_of(start, shard.held_blocks())
        self._shard = shard
        return gradient

    def _loaded(self, lease: Lease, start: Blocks) -> ShardModel:
        if self._shard is not None and self._shard.columns == lease.columns:
            self._shard.load(start)
            return self._shard
        self._shard = None  # free the old one before the new one is built: both might not fit
        return build_shard(
            self._layout,
            lease.columns,
            start,
            device=self._device,
            compute_dtype=self._compute_dtype,
            seed=lease.seed,
        )


def replay_lease(
    layout: Layout,
    *,
    device: str = "cpu",
    compute_dtype: torch.dtype | None = None,
    threads: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LeaseReplay:
    """What computes leases of a run of `layout` again; `threads` for torch, None: as many as there are set."""
    return LeaseReplay(layout, device=device, compute_dtype=compute_dtype, threads=threads, should_stop=should_stop)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
