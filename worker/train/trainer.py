"""The inner loop: the lease's optimizer on what the lease holds, and nothing else, exactly as the lease says.

Decides nothing that the lease does not name, except how a batch is cut into micro-batches that fit the machine: once a
shard's weights are loaded, what it was used for before changes nothing. Data order is the lease's sequences in order:
step s trains rows [s*B, (s+1)*B). Moments start fresh, the rate warms up linearly. Losses stay on the device and are
read at most once a second: a read makes the host wait for a GPU. Everything that a step depends on can be taken out
between two steps and put back in another process (`LocalState`). Holds always: no step begins on weights that another
one has moved in part. Where memory runs out before anything has moved, the step begins again with smaller parts; where
it runs out later, the lease does, at its saved progress or its start.
Touches no file and no network.

Shapes: N sequences of a lease, B sequences a step, L tokens a stored sequence (one more than it trains on).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import BarnraiseError, LocalError
from protocol.ids import BlockId
from protocol.lease import Lease
from protocol.submission import Blocks
from worker.train.batch import Batch, HasLoss, add_gradients
from worker.train.by_layers import GoesByLayers, step_by_layers
from worker.train.freeing import free_caches
from worker.train.local_state import LocalState
from worker.train.optimizer import InnerOptimizer
from worker.trouble import is_out_of_memory

LOSS_READ_EVERY_S = 1.0
_BIAS = "selection_bias"

OnStep = Callable[[int, float | None], None]
"""Called after each inner step with the number of steps done, and the training loss where it was read anew."""


class TrainingStopped(BarnraiseError):
    """`should_stop` said so; nothing was lost but the lease."""


class TrainingFailedError(BarnraiseError):
    """This machine cannot finish the lease: the loss left the finite numbers, or one sequence does not fit."""


class _HalfSteppedError(BarnraiseError):
    """Memory ran out when a step had moved some weights: nothing can go on from here."""

    def __init__(self, fits_perhaps: int) -> None:
        super().__init__(f"to be tried again with {fits_perhaps} sequences at a time")
        self.fits_perhaps = fits_perhaps


class TrainableShard(HasLoss, Protocol):
    """What the loop needs of `moe.shard.ShardModel`."""

    def parameter_groups(self, *, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups over held parameters only."""

    @property
    def selection_biases(self) -> Sequence[Tensor]:
        """What a step moves without an optimizer."""

    def train(self) -> object:
        """Enter training mode."""


class TrainedShard(Protocol):
    """What the pseudo-gradient needs of it."""

    def begun(self, name: str, value: Tensor, /) -> Tensor:
        """What training began with of what `held` gives under that name, where a version has `value`."""

    def held(self) -> Iterator[tuple[BlockId, Mapping[str, Tensor]]]:
        """What it trains, by block and name."""


class Keeper(Protocol):
    """Keeps the loop's state beyond the process: `worker.train.lease_state.LeaseKeeper`."""

    def load(self) -> LocalState | None:
        """Where an earlier process left this lease."""

    def due(self) -> bool:
        """Whether it is time to save."""

    def save(self, state: LocalState) -> None:
        """Keep `state` instead of the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMetrics:
    """What training measured."""

    inner_steps_done: int
    tokens: int
    loss_first: float
    loss_last: float
    """Mean of the last steps (at most five), nats a token, without the balance loss."""
    train_s: float
    micro_batch: int
    recut: bool = False
    """Batches were cut otherwise in earlier steps than in later ones: no replay cuts them so."""

    @property
    def tokens_per_s(self) -> float:
        """Speed over the whole lease."""
        return self.tokens / self.train_s if self.train_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseResult:
    """What a lease came to."""

    pseudo_gradient: Blocks
    """θ_start − θ_local of every held block, fp32 on the CPU."""
    metrics: TrainMetrics


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Share of the learning rate at `step` (0-based): (step + 1) / (warmup + 1) until it is 1."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def train_shard(
    shard: TrainableShard,
    lease: Lease,
    sequences_NL: NDArray[np.int64],
    *,
    device: str = "cpu",
    micro_batch: int | None = None,
    by_layers: GoesByLayers[Any] | None = None,
    on_step: OnStep = lambda _step, _loss: None,
    should_stop: Callable[[], bool] = lambda: False,
    keeper: Keeper | None = None,
    restore: Callable[[], None] | None = None,
) -> TrainMetrics:
    """Run the lease's inner steps on `shard`, in place, from where `keeper` says that an earlier process came.

    `by_layers`: the shard's own, where steps go layer by layer. `restore` gives the shard the values back with which
    the lease began; without it TrainingFailedError is raised where memory runs out when a step has moved something.
    """
    if sequences_NL.shape[0] != lease.data.count:
        raise LocalError(f"lease {lease.lease_id}: {lease.data.count} sequences leased, {sequences_NL.shape[0]} given")
    at_most = micro_batch or lease.batch_sequences
    while True:
        try:
            loop = _InnerLoop(shard, lease, device, at_most, should_stop, by_layers)
            return _trained(loop, sequences_NL, on_step, keeper)
        except _HalfSteppedError as half:
            at_most = half.fits_perhaps
        if restore is None:
            raise TrainingFailedError("memory ran out in the middle of a step, and nobody has the lease's start values")
        del loop  # its moments, before anything is loaded
        free_caches(device)
        restore()


def _trained(loop: _InnerLoop, sequences_NL: NDArray[np.int64], on_step: OnStep, keeper: Keeper | None) -> TrainMetrics:
    lease = loop.lease
    kept = keeper.load() if keeper is not None else None
    first = 0 if kept is None else loop.take_up(kept)
    started_s = time.perf_counter() - (0.0 if kept is None else kept.train_s)
    read_s = time.perf_counter()
    for step in range(first, lease.inner_steps):
        rows = slice(step * lease.batch_sequences, (step + 1) * lease.batch_sequences)
        loop.step(step, torch.from_numpy(sequences_NL[rows]))
        now_s = time.perf_counter()
        loss = None
        if now_s - read_s >= LOSS_READ_EVERY_S or step == first:
            loss, read_s = loop.read_loss(step), now_s
        on_step(step + 1, loss)
        if keeper is not None and step + 1 < lease.inner_steps and keeper.due():
            keeper.save(loop.state(step + 1, time.perf_counter() - started_s))
    loss_first, loss_last = loop.finite_losses()
    tokens = lease.data.count * (sequences_NL.shape[1] - 1)
    return TrainMetrics(
        inner_steps_done=lease.inner_steps,
        tokens=tokens,
        loss_first=loss_first,
        loss_last=loss_last,
        train_s=time.perf_counter() - started_s,
        micro_batch=loop.micro_batch,
        recut=loop.recut,
    )


class _InnerLoop:
    """Optimizer and losses of one lease."""

    def __init__(
        self,
        shard: TrainableShard,
        lease: Lease,
        device: str,
        micro_batch: int,
        should_stop: Callable[[], bool],
        by_layers: GoesByLayers[Any] | None,
    ) -> None:
        self.lease = lease
        self._optimizer = InnerOptimizer(shard, lease.recipe, lease.seed)
        self._shard = shard
        self._device = device
        self._should_stop = should_stop
        self._by_layers = by_layers
        self._losses: list[Tensor] = []
        self._most = self.micro_batch = min(micro_batch, lease.batch_sequences)
        self.recut = False
        # The shard may come from a lease that was stopped, or failed, halfway through a step: of what it left, the
        # caller has replaced the weights.
        self._optimizer.drop_gradients()
        torch.manual_seed(lease.seed)
        shard.train()

    def step(self, step: int, tokens_BL: Tensor) -> None:
        tokens_BL = tokens_BL.to(self._device, non_blocking=True)
        while (batch := self._tried(step, tokens_BL)) is None:
            self.micro_batch = _halved(self.micro_batch)
            self.recut = self.recut or bool(self._losses)
            self._optimizer.drop_gradients()
            free_caches(self._device)
        self._losses.append(batch.nll)
        if batch.chosen is not None:
            self._shard.move_selection_biases(batch.chosen, self.lease.recipe.selection_bias_rate)

    def _tried(self, step: int, tokens_BL: Tensor) -> Batch | None:
        """The step, taken; None where memory ran out before it had moved anything."""
        self._optimizer.begin(warmup_factor(step, self.lease.recipe.warmup_steps), step)
        try:
            if self._by_layers is not None:
                return step_by_layers(self._by_layers, tokens_BL, self.micro_batch, self._optimizer, self._stop_if_told)
            batch = add_gradients(self._shard, tokens_BL, self.micro_batch, self._stop_if_told)
            self._optimizer.take_norms()
            self._optimizer.step_complete()
            return batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.micro_batch == 1:
                where = "in the middle of a step, one sequence at a time" if self._optimizer.has_moved else ""
                raise TrainingFailedError(where or "one sequence does not fit in this machine's memory") from error
        # here, and not above: what the error holds on to is the memory that is missing
        if self._optimizer.has_moved:
            raise _HalfSteppedError(_halved(self.micro_batch))
        return None

    def _stop_if_told(self) -> None:
        if self._should_stop():
            raise TrainingStopped(f"lease {self.lease.lease_id} was stopped")

    def state(self, done: int, train_s: float) -> LocalState:
        """Everything that the steps after the first `done` depend on."""
        tensors = {"losses": torch.stack(self._losses), "rng": torch.get_rng_state()}
        for number, parameter in enumerate(self._optimizer.parameters):
            tensors[f"parameter.{number}"] = parameter.detach()
            for name, value in self._optimizer.state_of(parameter).items():
                tensors[f"{name}.{number}"] = value
        for number, bias in enumerate(self._shard.selection_biases):
            tensors[f"{_BIAS}.{number}"] = bias.detach()
        return LocalState(step=done, micro_batch=self.micro_batch, recut=self.recut, train_s=train_s, tensors=tensors)

    @torch.no_grad()
    def take_up(self, state: LocalState) -> int:
        """Become what `state` was taken of; the number of steps done."""
        parameters = self._optimizer.parameters
        for number, parameter in enumerate(parameters):
            parameter.copy_(state.tensors[f"parameter.{number}"])
        for number, bias in enumerate(self._shard.selection_biases):
            bias.copy_(state.tensors[f"{_BIAS}.{number}"])
        for key, value in state.tensors.items():
            name, _, number_text = key.partition(".")
            if number_text and name not in ("parameter", _BIAS):
                parameter = parameters[int(number_text)]
                self._optimizer.state_of(parameter)[name] = value.to(parameter.device)
        self._losses = list(state.tensors["losses"].to(self._device).unbind())
        torch.set_rng_state(state.tensors["rng"])
        self.micro_batch = min(state.micro_batch, self._most)
        self.recut = state.recut or self.micro_batch != state.micro_batch
        return state.step

    def read_loss(self, step: int) -> float:
        loss = float(self._losses[step])
        if not math.isfinite(loss):
            raise TrainingFailedError(f"training loss is {loss} at step {step + 1} of {self.lease.inner_steps}")
        return loss

    def finite_losses(self) -> tuple[float, float]:
        losses = torch.stack(self._losses).float().cpu()
        bad = (~torch.isfinite(losses)).nonzero()
        if bad.numel():
            raise TrainingFailedError(f"training loss is not finite from step {int(bad[0]) + 1} on")
        return float(losses[0]), float(losses[-5:].mean())


def _halved(micro_batch: int) -> int:
    return (micro_batch + 1) // 2


def pseudo_gradient_of(start: Blocks, shard: TrainedShard) -> dict[BlockId, dict[str, Tensor]]:
    """`moved`, all of it, as long as it is wanted: the shard may go on."""
    return {block: dict(tensors) for block, tensors in moved(start, shard).items()}


def moved(start: Blocks, shard: TrainedShard) -> dict[BlockId, Mapping[str, Tensor]]:
    """θ_start − θ_local of all that `shard` trains, fp32, each tensor made when it is asked for, and each time anew.

    TrainingFailedError when something of it is not finite. Where masters are bf16, θ_start is what they began with, as
    rounding would drown what was learnt. Of a trunk matrix with a factor it is the factor's, which began at 0.
    """
    return {block: _Moved(block, start[block], tensors, shard.begun) for block, tensors in shard.held()}


class _Moved(Mapping[str, Tensor]):
    """What one block of a shard has become."""

    def __init__(
        self,
        block: BlockId,
        before: Mapping[str, Tensor],
        now: Mapping[str, Tensor],
        begun: Callable[[str, Tensor], Tensor],
    ) -> None:
        self._block, self._before, self._now, self._begun = block, before, now, begun

    def __getitem__(self, name: str) -> Tensor:
        local = self._now[name].detach()
        made = torch.empty(local.shape, dtype=torch.float32).copy_(local)  # on the CPU: nothing else is made on the way
        torch.sub(self._begun(name, self._before[name]), made, out=made)
        # A norm sees a NaN or an infinity anywhere in it, at a fraction of isfinite's memory.
        if not bool(torch.isfinite(torch.linalg.vector_norm(made))):
            raise TrainingFailedError(f"the trained {self._block} holds values that are not finite")
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)
