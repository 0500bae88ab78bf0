"""One honest worker alone: the same model, data, batch, rates and number of inner steps, and nobody to average with.

Decides the baseline that a swarm must beat. It is given every advantage that one machine has: it holds the whole model
and keeps its optimizer's moments from one round to the next, where a lease begins with fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from protocol.ids import RoundNumber

if TYPE_CHECKING:
    from coordinator.engine.config import EngineConfig
    from coordinator.runfolder import RunFolder
    from moe.shard import ShardModel

REPORT_EVERY = 10


def train_lone(folder: Path, *, on_progress: Callable[[int, int], None]) -> float:
    """Train one worker for as many inner steps as the run in `folder` plans; its loss on the held-out sequences."""
    from coordinator.runfolder import RunFolder
    from moe.config import config_from_json
    from moe.full import evaluate_loss, full_model, initial_blocks
    from moe.shard import build_shard

    run = RunFolder.open(folder)
    settings, layout, dataset = run.settings(), run.layout(), run.dataset()
    blocks = initial_blocks(config_from_json(layout.config_json), layout, settings.seed)
    shard = build_shard(layout, range(layout.columns), blocks, seed=settings.seed)
    _train(shard, run, on_progress)
    tokens = dataset.heldout_all(settings.sequence_length, settings.heldout_limit)
    model = full_model(layout, shard.held_blocks())
    loss, _ = evaluate_loss(model, torch.from_numpy(tokens.astype("int64")), settings.evaluation_batch)
    return loss


def _train(shard: ShardModel, run: RunFolder, on_progress: Callable[[int, int], None]) -> None:
    config, recipe = _engine_config(run), _engine_config(run).inner
    settings, dataset = run.settings(), run.dataset()
    groups = shard.parameter_groups(recipe.learning_rate, recipe.router_lr_scale, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(recipe.adam_beta1, recipe.adam_beta2), eps=recipe.adam_eps, fused=True)
    shares = [float(group["lr"]) / recipe.learning_rate for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shard.train()
    steps = config.max_rounds * recipe.inner_steps
    for step in range(steps):
        rate = _rate(config, step)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        start = step * recipe.batch_sequences % max(1, config.train_sequences - recipe.batch_sequences)
        tokens = dataset.sequences(settings.seed, start, recipe.batch_sequences, settings.sequence_length)
        total: Any = shard.loss(torch.from_numpy(tokens.astype("int64"))).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            on_progress(step + 1, steps)


def _engine_config(run: RunFolder) -> EngineConfig:
    settings = run.settings()
    sequences = run.dataset().train_sequences(settings.sequence_length)
    return settings.engine_config(run_id=run.run_id, columns=run.layout().columns, train_sequences=sequences)


def _rate(config: EngineConfig, step: int) -> float:
    """The rate that a lease of the round to which `step` belongs would name; warmed up once, at the very start."""
    from coordinator.engine.pacing import learning_rate

    recipe = config.inner
    warm = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    return warm * learning_rate(config, RoundNumber(step // recipe.inner_steps + 1))
