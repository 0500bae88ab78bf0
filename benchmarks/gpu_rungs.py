"""Pieces of `benchmarks.gpu` about memory: each rung against its plan, cards that are simulated, and running out.

A rung is a line of `RUNGS`: what it changes of the recipe, and of what a machine chooses for itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu_sizes import Size
from benchmarks.gpu_steps import Found, Job, recipe_with, trained
from benchmarks.gpu_where import Where
from benchmarks.report import Row
from moe.planner import plan
from moe.stand_ins import DEVICE, HOST
from protocol.recipe import Recipe
from worker.machine.probe import GPU_SHARE

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRung:
    """One rung of the memory ladder, or several together."""

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recomputed: bool = False
    is_cut: bool = False
    """Whether a batch goes through the model in parts."""
    place: str = DEVICE
    """Where experts that are not held lie."""
    by_layers: bool = False


SPARE: Final[Mapping[str, Any]] = {"masters": "bf16", "moments": "compact"}
RUNGS: Final = (
    GpuRung(name="none: Muon, fp32"),
    GpuRung(name="none: AdamW, fp32", recipe={"optimizer": "adamw"}),
    GpuRung(name="compact moments, Muon", recipe={"moments": "compact"}),
    GpuRung(name="compact moments, AdamW", recipe={"moments": "compact", "optimizer": "adamw"}),
    GpuRung(name="bf16 masters, Muon", recipe={"masters": "bf16"}),
    GpuRung(name="bf16 masters, AdamW", recipe={"masters": "bf16", "optimizer": "adamw"}),
    GpuRung(name="batch in parts", is_cut=True),
    GpuRung(name="recomputed", recomputed=True),
    GpuRung(name="frozen experts in 8 bits", recipe={"frozen_dtype": "int8"}),
    GpuRung(name="frozen experts in 4 bits", recipe={"frozen_dtype": "int4"}),
    GpuRung(name="frozen experts in host memory", place=HOST),
    GpuRung(name="frozen experts in 4 bits in host memory", recipe={"frozen_dtype": "int4"}, place=HOST),
    GpuRung(name="by layers", recipe={"clipping": "layer"}, by_layers=True, is_cut=True),
    GpuRung(name="trunk at low rank", recipe={"trunk": "lora"}),
    GpuRung(name="trunk frozen", recipe={"trunk": "frozen"}),
    GpuRung(name="all of them, Muon", recipe=SPARE, recomputed=True, is_cut=True),
    GpuRung(
        name="all of them, by layers, 4 bits in host memory, trunk at low rank",
        recipe={**SPARE, "frozen_dtype": "int4", "trunk": "lora", "clipping": "layer"},
        is_cut=True,
        place=HOST,
        by_layers=True,
    ),
)
"""A new rung is a line here."""


def rung_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """Each rung at the shape's second number of held columns."""
    for rung in RUNGS:
        yield rung.name, partial(_rung, size, rung)


def _rung(size: Size, rung: GpuRung, where: Where, _folder: Any) -> Row:
    job = Job(
        layout=size.rungs.cut(),
        columns=size.rungs.held[-1],
        recipe=recipe_with(**rung.recipe),
        batch=size.batch,
        length=size.length,
        steps=size.steps,
        micro_batch=size.micro_batch if rung.is_cut else None,
        recomputed=rung.recomputed,
        place=rung.place,
        by_layers=rung.by_layers,
    )
    found = trained(where, job)
    return {**told(found, job, where), "held": f"{job.columns} of {job.layout.columns}"}


def told(found: Found, job: Job, where: Where) -> dict[str, Any]:
    """Time, speed and memory beside the plan; on a CPU a share of it says something from 1 GiB on."""
    plan_bytes = job.plan_bytes(where)
    return {
        "step_s": found.step_s,
        "tokens_per_s": job.tokens / found.step_s,
        "peak_bytes": found.peak_bytes,
        "plan_bytes": plan_bytes,
        "of_plan": found.peak_bytes / plan_bytes if where.is_gpu or found.peak_bytes >= GIB else None,
    }


CARD_RECIPES: Final[Mapping[str, Recipe]] = {
    "fp32, Muon": recipe_with(),
    "bf16 masters, compact moments, Muon": recipe_with(**SPARE),
}


def card_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """Each card with each recipe."""
    for gib in size.cards_gib:
        for name, recipe in CARD_RECIPES.items():
            yield f"{gib:g} GiB: {name}", partial(_card, size, gib, recipe)


def _card(size: Size, gib: float, recipe: Recipe, where: Where, _folder: Any) -> Row:
    """What a worker on such a card would hold, and what that takes."""
    cut, cap_bytes = size.card.cut(), int(gib * GIB)
    compute_bytes = 2 if where.bf16 else 4
    planned = plan(
        cut,
        int(cap_bytes * GPU_SHARE),
        batch_sequences=1,
        sequence_length=size.length,
        compute_bytes=compute_bytes,
        recipe=recipe,
        on_gpu=where.is_gpu,
    )
    row: dict[str, Any] = {"held": f"{planned.columns if planned.fits else 0} of {cut.columns}"}
    if not planned.fits:
        return {**row, "plan_bytes": planned.needed_bytes, "noted": planned.reason}
    job = Job(
        layout=cut,
        columns=planned.columns,
        recipe=recipe,
        batch=size.micro_batch,
        length=size.length,
        steps=size.steps,
        micro_batch=1,
        recomputed=planned.schedule.recomputed,
        place=planned.schedule.place,
        by_layers=planned.schedule.by_layers,
    )
    try:
        with where.capped(cap_bytes):
            return {**row, **told(trained(where, job), job, where), "noted": planned.reason}
    except torch.OutOfMemoryError as error:
        where.free()
        return {**row, "plan_bytes": planned.needed_bytes, "error": f"planned to fit, and does not: {error!s:.160}"}


def oom_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """A batch that does not fit, and the steps go on with a smaller one."""
    yield "a batch of which a quarter fits", partial(_out_of_memory, size)


def _out_of_memory(size: Size, where: Where, _folder: Any) -> Row:
    job = Job(
        layout=size.rungs.cut(),
        columns=size.rungs.held[-1],
        recipe=recipe_with(**SPARE),
        batch=size.batch,
        length=size.length,
        steps=size.steps,
    )
    quarter = dataclasses.replace(job, micro_batch=max(1, size.batch // 4))
    assert quarter.micro_batch is not None
    cap_bytes = quarter.plan_bytes(where)
    with where.capped(cap_bytes):
        found = trained(where, job, around=None if where.is_gpu else partial(ShortOfRoom, most=quarter.micro_batch))
    ended = found.metrics.micro_batch
    fine = ended < size.batch and found.metrics.inner_steps_done == size.steps
    return {
        "step_s": found.step_s,
        "tokens_per_s": job.tokens / found.step_s,
        "peak_bytes": found.peak_bytes,
        "noted": f"{size.batch} sequences were cut to {ended} at a time" + ("" if fine else ": NOT as it should be"),
        "holds": fine,
    }


class ShortOfRoom:
    """A shard on a machine that has room for `most` sequences at once: stands in for a card that is full."""

    def __init__(self, shard: Any, *, most: int) -> None:
        self._shard, self._most = shard, most

    def loss(self, tokens_ML: Tensor, counts: Any = None) -> Any:
        """Out of memory, as torch says it, where there are too many."""
        if len(tokens_ML) > self._most:
            raise torch.OutOfMemoryError("out of memory, for the benchmark's sake")
        return self._shard.loss(tokens_ML, counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)
