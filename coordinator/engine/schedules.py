"""What a round's number decides: the learning rate, how many inner steps the recipe asks for, and which directions a
`lora` trunk is trained in.

Pure functions of the configuration and the round. Hold always: with no warm-up the first round has the recipe's first
value; the last round has the final value exactly; in between both move one way only (after the warm-up, for the rate).
A constant rate that decays over the last rounds alone is the warmup-stable-decay schedule (arXiv:2404.06395).
"""

from __future__ import annotations

import math
from dataclasses import replace

from coordinator.engine.config import EngineConfig
from coordinator.engine.draws import Draws
from protocol.ids import RoundNumber
from protocol.recipe import LORA_TRUNK, Recipe, recipe_of


def learning_rate(config: EngineConfig, round_number: RoundNumber) -> float:
    """A round's rate: a linear ramp over `warmup_rounds`, then `learning_rate`, then down to `final_lr_share` of it."""
    inner = config.inner
    if round_number <= inner.warmup_rounds:
        return inner.learning_rate * round_number / (inner.warmup_rounds + 1)
    if inner.schedule == "constant":
        return inner.learning_rate
    decaying = inner.decay_share * (config.max_rounds - 1 - inner.warmup_rounds)
    left = max(0, config.max_rounds - round_number) / decaying if decaying > 0 else 1.0
    if left >= 1.0:
        return inner.learning_rate
    kept = left if inner.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return inner.learning_rate * (inner.final_lr_share + (1.0 - inner.final_lr_share) * kept)


def lease_recipe(config: EngineConfig, round_number: RoundNumber, steps: int) -> Recipe:
    """What a lease of so many steps names in this round: both rates follow the schedule."""
    inner, rate = config.inner, learning_rate(config, round_number)
    return replace(
        recipe_of(inner),
        learning_rate=rate,
        muon_learning_rate=inner.muon_learning_rate * rate / inner.learning_rate,
        warmup_steps=min(inner.warmup_steps, steps),
    )


def lora_seed_of(config: EngineConfig, draws: Draws, round_number: RoundNumber) -> int:
    """What the fixed factors of a round's leases are drawn from: the same for `lora_epoch_rounds` rounds; secret until
    then, as all draws are. 0 where there are none."""
    inner = config.inner
    epoch = (round_number - 1) // inner.lora_epoch_rounds
    return draws.seed(0, "lora", epoch) if inner.trunk == LORA_TRUNK else 0


def recipe_steps(config: EngineConfig, round_number: RoundNumber) -> int:
    """Inner steps of a whole lease in this round: from `inner_steps` to `final_inner_steps`, by equal ratios."""
    first, final = config.inner.inner_steps, config.inner.final_inner_steps
    if final is None or config.max_rounds == 1:
        return first
    progress = min(1.0, (round_number - 1) / (config.max_rounds - 1))
    return max(1, round(first * math.pow(final / first, progress)))
