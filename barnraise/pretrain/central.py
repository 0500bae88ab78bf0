"""Training in one place: what a swarm is measured against, and what may come before it.

Decides the loop: the recipe's optimizer over the whole model, moments kept throughout, the rate warmed up once and then
lowered, step by step. With the batch of one worker it is the lone worker that a swarm must beat; with the
batch of all workers together it is central training, which no swarm can be expected to; before a run, a warm start.
Everything that a step depends on can be taken out between two steps and put back in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from protocol.ids import RoundNumber
from worker.train.batch import add_gradients
from worker.train.optimizer import InnerOptimizer

if TYPE_CHECKING:
    from coordinator.datasets import Dataset
    from coordinator.engine.config import EngineConfig, InnerRecipe
    from coordinator.run.folder import RunFolder
    from moe.shard import ShardModel

REPORT_EVERY = 10
WARMUP_SHARE = 0.02
"""Share of the steps over which the rate rises: 8 of 400, what `benchmarks.parity` tunes its rate with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralPlan:
    """What is trained: data in order of `data_seed`, `steps` steps of `batch_sequences` sequences."""

    recipe: InnerRecipe
    steps: int
    batch_sequences: int
    sequence_length: int
    data_seed: int
    factor_at: Callable[[int], float]
    """What the recipe's rates are multiplied by at a step, 0-based."""


class CentralTraining:
    """One model's training, step by step."""

    def __init__(
        self, shard: ShardModel, plan: CentralPlan, dataset: Dataset, *, micro_batch: int | None = None
    ) -> None:
        self._optimizer = InnerOptimizer(shard, plan.recipe, plan.data_seed)
        self._plan = plan
        self._dataset = dataset
        self._micro_batch = min(micro_batch or plan.batch_sequences, plan.batch_sequences)
        self.shard = shard
        self.step = 0
        """Steps done."""

    @property
    def is_done(self) -> bool:
        """Whether the plan's steps are done."""
        return self.step >= self._plan.steps

    def advance(self) -> float:
        """One step; its training loss, nats a token."""
        plan = self._plan
        self.shard.train()
        tokens_BL = torch.from_numpy(self._batch().astype("int64"))
        batch = add_gradients(self.shard, tokens_BL, self._micro_batch)
        self._optimizer.step(plan.factor_at(self.step), self.step)
        if batch.chosen is not None:
            self.shard.move_selection_biases(batch.chosen, plan.recipe.selection_bias_rate)
        self.step += 1
        return float(batch.nll)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, for `torch.save`."""
        return {
            "step": self.step,
            "parameters": [parameter.detach() for parameter in self._optimizer.parameters],
            "selection_biases": [bias.detach() for bias in self.shard.selection_biases],
            "optimizer": self._optimizer.state_dict(),
        }

    @torch.no_grad()
    def take_up(self, state: dict[str, Any]) -> None:
        """Become what `state` was taken of."""
        for parameter, value in zip(self._optimizer.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        for bias, value in zip(self.shard.selection_biases, state.get("selection_biases", ()), strict=True):
            bias.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    def _batch(self) -> Any:
        plan = self._plan
        size = self._dataset.train_sequences(plan.sequence_length)
        start = self.step * plan.batch_sequences % max(1, size - plan.batch_sequences)
        return self._dataset.sequences(plan.data_seed, start, plan.batch_sequences, plan.sequence_length)


def cosine(final_share: float, steps: int) -> Callable[[int], float]:
    """Factors: a short linear warm-up, then a cosine from 1 to `final_share` at the last step."""
    warmup = max(1, round(WARMUP_SHARE * steps))

    def rate(step: int) -> float:
        progress = step / max(1, steps - 1)
        wave = final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return min(1.0, (step + 1) / warmup) * wave

    return rate


def train_lone(folder: Path, *, on_progress: Callable[[int, int], None]) -> float:
    """Train one worker for as many inner steps as the run in `folder` plans; its loss on the held-out sequences.

    It is given every advantage that one machine has: it holds the whole model and keeps its moments.
    """
    from coordinator.run.folder import RunFolder
    from moe.full import evaluate_loss, full_model

    run = RunFolder.open(folder)
    settings, layout, dataset = run.settings(), run.layout(), run.dataset()
    config = _engine_config(run)
    factors = factors_by_round(config)
    plan = CentralPlan(
        recipe=config.inner,
        steps=len(factors),
        batch_sequences=config.inner.batch_sequences,
        sequence_length=settings.sequence_length,
        data_seed=settings.seed,
        factor_at=factors.__getitem__,
    )
    training = CentralTraining(first_shard(run), plan, dataset)
    while not training.is_done:
        training.advance()
        if training.step % REPORT_EVERY == 0 or training.is_done:
            on_progress(training.step, plan.steps)
    tokens = dataset.heldout_all(settings.sequence_length, settings.heldout_limit)
    model = full_model(layout, training.shard.held_blocks())
    loss, _ = evaluate_loss(model, torch.from_numpy(tokens.astype("int64")), settings.evaluation_batch)
    return loss


def first_shard(run: RunFolder, *, device: str = "cpu", compute_dtype: torch.dtype | None = None) -> ShardModel:
    """The whole model as the run began with it, to be trained."""
    from coordinator.store.versions import Versions
    from coordinator.work.publishing import FIRST_VERSION
    from moe.shard import build_shard
    from protocol.errors import LocalError

    layout = run.layout()
    versions = Versions(run.root / "versions", run.artifacts().blocks, layout)
    digest = versions.manifest_digest(FIRST_VERSION)
    if digest is None:
        raise LocalError(f"{run.root} does not keep version {FIRST_VERSION}")
    blocks = versions.load_blocks(versions.manifest(digest))
    return build_shard(
        layout,
        range(layout.columns),
        blocks,
        device=device,
        compute_dtype=compute_dtype,
        seed=run.settings().seed,
        masters=_engine_config(run).inner.masters,
    )


def factors_by_round(config: EngineConfig) -> list[float]:
    """For every inner step of a run, the rate that a whole lease of its round would name, as a share of the recipe's.

    Warmed up once, at the very start.
    """
    from coordinator.engine.schedules import learning_rate, recipe_steps

    recipe = config.inner
    factors: list[float] = []
    for number in range(1, config.max_rounds + 1):
        round_number = RoundNumber(number)
        share = learning_rate(config, round_number) / recipe.learning_rate
        factors += [share] * recipe_steps(config, round_number)
    warm = ((step + 1) / (recipe.warmup_steps + 1) for step in range(len(factors)))
    return [factor * min(1.0, share) for factor, share in zip(factors, warm, strict=True)]


def _engine_config(run: RunFolder) -> EngineConfig:
    settings = run.settings()
    sequences = run.dataset().train_sequences(settings.sequence_length)
    return settings.engine_config(run_id=run.run_id, columns=run.layout().columns, train_sequences=sequences)
