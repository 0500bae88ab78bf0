"""Piece of `benchmarks.gpu` about audits: how far a lease that is computed again on this device lies from itself.

Of each dtype and optimizer, after a codec as an audit compares (aggregation/replayed.py): computed again just so, cut
into other batches, taken up after a death in the middle, and, of what is multiplied in fp32, on the CPU beside the GPU.
An audit's tolerance is 0.02 (`audits.tolerance`): what lies beyond would speak against the honest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.gpu_sizes import Size
from benchmarks.gpu_where import Where
from benchmarks.replay_noise_leases import COMPUTE, NoiseTask, Sequences, apart
from benchmarks.report import Row
from coordinator.engine.config import AuditConfig
from moe.config import config_from_json, config_to_json
from moe.full import initial_blocks
from moe.layout import layout
from moe.presets import preset
from protocol.codecs import FP32
from protocol.ids import LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.recipe import OPTIMIZERS, Recipe

BATCH, CUT, LENGTH = 8, 3, 32
KEPT: Final = (("fp32", "fp32"), ("bf16", "compact"))
"""Masters and moments."""
MICRO: Final = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}


def noise_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """Each model and number of steps, by optimizer, dtype and rungs."""
    for (model, steps), optimizer, compute, kept in itertools.product(size.noise, OPTIMIZERS, COMPUTE, KEPT):
        name = f"{model}, {steps} steps, {optimizer}, {compute}, masters {kept[0]}, moments {kept[1]}"
        yield name, partial(_noise, model, steps, optimizer, compute, kept)


def _noise(
    model: str, steps: int, optimizer: str, compute: str, kept: tuple[str, str], where: Where, _folder: Any
) -> Row:
    if compute == "bf16" and where.is_gpu and not where.bf16:
        return {"noted": "this card has no bf16"}
    task = _task(model, steps, Recipe(optimizer=optimizer, masters=kept[0], moments=kept[1]), compute, where.device)
    again = task.computed()
    found = {"same": task.computed(), "cut": task.computed(micro_batch=CUT), "restart": task.restarted()}
    if where.is_gpu and compute == "fp32" and model != "100m":
        on_cpu = _task(model, steps, task.lease.recipe, compute, "cpu")
        found["cpu"] = on_cpu.computed()
    far = {name: apart(task, sent, again, FP32.name) for name, sent in found.items()}
    worst = max(far, key=lambda name: far[name])
    within = "within" if far[worst] <= AuditConfig().tolerance else "BEYOND"
    return {**far, "noted": f"farthest: {worst}, {far[worst]:.2g}, {within} the tolerance"}


def _task(model: str, steps: int, recipe: Recipe, compute: str, device: str) -> NoiseTask:
    values = dict(config_to_json(preset("tiny" if model == "micro" else model)))
    config = config_from_json({**values, **MICRO} if model == "micro" else values)
    cut = layout(config, "frozen")
    lease = Lease(
        lease_id=LeaseId("r1.1"),
        round=RoundNumber(1),
        base_version=Version(0),
        columns=tuple(range(0, cut.columns, 2)),
        data=DataRange(seed=0, start=0, count=steps * BATCH),
        seed=0,
        inner_steps=steps,
        batch_sequences=BATCH,
        recipe=recipe,
    )
    sequences_NL = _learnable(lease.data.count, int(cut.config_json["vocab_size"]))
    return NoiseTask(
        layout=cut,
        lease=lease,
        start=initial_blocks(config, cut, 0),
        sequences=sequences_NL,
        compute=compute,
        device=device,
    )


def _learnable(count: int, vocabulary: int) -> Sequences:
    """[count, LENGTH + 1]: each token follows from the one before, but for now and then."""
    draw = np.random.default_rng(0)
    tokens_NL = draw.integers(0, vocabulary, (count, LENGTH + 1))
    for place in range(1, LENGTH + 1):
        follows_N = draw.random(count) < 0.8
        tokens_NL[follows_N, place] = (5 * tokens_NL[follows_N, place - 1] + 1) % vocabulary
    return tokens_NL
