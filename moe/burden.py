"""What training a shard takes of a machine's memory, part by part: on its device, and beside it in the host's.

Decides nothing; it adds up what `moe.weighing` says of each tensor and `moe.passing` of what passes. Weights, gradients
and moments are exact. On a CPU the device's memory is the host's. A block cache is mapped: the system takes it back
when it needs to, so it is told of and not counted. Touches nothing.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from moe.layout import FP32_BYTES, Layout
from moe.passing import activation_bytes, kept_by_library
from moe.rungs import Schedule
from moe.weighing import Weighed, weighed
from protocol.codecs import BF16, codec_named
from protocol.recipe import BF16_MASTERS, COMPACT, MUON, Recipe
from protocol.residency import ABSENT

GPU_RESERVE: Final = 0.10
"""Of all that is on a GPU: its caching allocator rounds sizes up and fragments; long runs are usually seen to lose a
tenth."""
LIBRARIES: Final = 32 << 20
"""On a CPU, what torch's libraries take as soon as they multiply, whatever the model: buffers of theirs, and a
thread's arena."""
ROUNDING: Final = 88 << 20
"""On a CPU, what stays of the optimizer's pieces, of up to 4 MiB, where weights and moments are rounded at random:
measured, 60 to 100 MB (docs/decisions/0053)."""
_GROWN: Final = 1.125
"""Of a payload that is being written: its memory grows by an eighth at a time."""

Where = Literal["device", "host", "files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One part of the memory that a shard takes."""

    part: str
    memory_bytes: int
    why: str
    where: Where = "device"
    """`host`: beside a GPU. `files`: mapped, and not counted."""


class Memory(NamedTuple):
    """Bytes, offered or needed."""

    device: int
    host: int
    """Beside a GPU; on a CPU nothing."""

    def holds(self, needed: Memory) -> bool:
        """Whether that fits."""
        return needed.device <= self.device and needed.host <= self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class Burden:
    """What one machine trains, but for how many columns of it and in what way."""

    layout: Layout
    recipe: Recipe
    sequence_length: int
    compute_bytes: int = FP32_BYTES
    """2 where matrices are multiplied in bf16."""
    on_gpu: bool = False
    codec: str = BF16.name
    """What submissions are sent in."""

    def lines(self, columns: int, schedule: Schedule) -> tuple[PlanLine, ...]:
        """Every part of its memory."""
        tensors = _tensors(self.layout, columns)
        held = (*_kept_lines(self, tensors, columns), _passing_line(self, tensors, schedule))
        beside = (*_host_lines(self, tensors), _file_line(self, columns))
        return (*held, _reserve_line(self, held, schedule), *beside)

    def needed(self, columns: int, schedule: Schedule) -> Memory:
        """All of it."""
        return memory_of(self.lines(columns, schedule))


def memory_of(lines: tuple[PlanLine, ...]) -> Memory:
    """Their sums."""
    return Memory(*(sum(one.memory_bytes for one in lines if one.where == where) for where in ("device", "host")))


def held_bytes(layout: Layout, columns: int, *, compute_bytes: int = FP32_BYTES, recipe: Recipe | None = None) -> int:
    """Weights, gradients and moments of what is held, and the frozen rest: all but what passes through."""
    load = Burden(layout=layout, recipe=recipe or Recipe(), sequence_length=1, compute_bytes=compute_bytes)
    return sum(line.memory_bytes for line in _kept_lines(load, _tensors(layout, columns), columns))


@dataclass(frozen=True, slots=True)
class _Of:
    """Of which model, by what tells two of them apart."""

    text: str
    residency: str
    layout: Layout = field(compare=False)


def _tensors(layout: Layout, columns: int) -> tuple[Weighed, ...]:
    """A search asks for the same ones again and again."""
    text = json.dumps(layout.config_json, sort_keys=True)
    return _weighed(_Of(text, layout.residency, layout), columns)


@functools.lru_cache(maxsize=32)
def _weighed(of: _Of, columns: int) -> tuple[Weighed, ...]:
    return tuple(weighed(of.layout, columns))


def _kept_lines(load: Burden, tensors: tuple[Weighed, ...], columns: int) -> tuple[PlanLine, ...]:
    layout, recipe = load.layout, load.recipe
    is_bf16, is_compact = recipe.masters == BF16_MASTERS, recipe.moments == COMPACT
    weights = sum(one.weight_bytes(recipe, load.compute_bytes) for one in tensors)
    kept_in = "bf16, what is small fp32" if is_bf16 else "fp32"
    what = {
        (True, True): "Muon: one a parameter, bf16; AdamW elsewhere: two, 8 bits",
        (True, False): "Muon: one a parameter; AdamW elsewhere: two; fp32",
        (False, True): "AdamW: two a parameter, 8 bits",
        (False, False): "AdamW: two a parameter, fp32",
    }[recipe.optimizer == MUON, is_compact]
    others = f"{layout.columns - columns} other columns, without gradients or moments"
    return (
        PlanLine(part="weights", memory_bytes=weights, why=f"trunk and {columns} columns, {kept_in}"),
        PlanLine(part="gradients", memory_bytes=sum(one.gradient_bytes() for one in tensors), why="fp32"),
        PlanLine(part="moments", memory_bytes=sum(one.moment_bytes(recipe) for one in tensors), why=what),
        PlanLine(
            part="frozen",
            memory_bytes=layout.frozen_bytes(columns, compute_bytes=load.compute_bytes),
            why=others if layout.residency != ABSENT else "none: the other columns are absent",
        ),
    )


def _passing_line(load: Burden, tensors: tuple[Weighed, ...], schedule: Schedule) -> PlanLine:
    """What is there for a while, one thing after the other: the largest of them."""
    tokens = schedule.micro_batch * load.sequence_length
    how = "computed again in the backward pass" if schedule.recomputed else "kept for backward"
    step = max(tensors, key=lambda one: one.step_bytes(load.recipe))
    found = {
        f"{tokens} tokens a micro-batch, {how}": _activations(load, tensors, schedule),
        "copies that the optimizer makes of a tensor in a step": step.step_bytes(load.recipe),
    }
    if not load.on_gpu:
        gone = sum(one.gradient_bytes() + one.moment_bytes(load.recipe) for one in tensors)
        found["what is sent, when gradients and moments are gone"] = max(0, _sent_bytes(load, tensors) - gone)
    why = max(found, key=lambda one: found[one])
    return PlanLine(part="passing", memory_bytes=found[why], why=why)


def _activations(load: Burden, tensors: tuple[Weighed, ...], schedule: Schedule) -> int:
    """With the gradients that a second micro-batch makes beside those of the first."""
    heads = [one.gradient_bytes() for one in tensors if one.is_head]
    others = [one.gradient_bytes() for one in tensors if not one.is_head]
    return activation_bytes(
        load.layout,
        schedule.micro_batch * load.sequence_length,
        load.compute_bytes,
        recomputed=schedule.recomputed,
        sequence_length=load.sequence_length,
        added_bytes=(max(heads, default=0), max(others, default=0)),
    )


def _sent_bytes(load: Burden, tensors: tuple[Weighed, ...]) -> int:
    """Of the pseudo-gradient in fp32, its payload, and, where a codec leaves something for the next lease, what it was
    given, what it left and what it would give back, the latter two as bytes, too.
    """
    codec = codec_named(load.codec)
    each = FP32_BYTES + codec.bits_per_parameter / 8 * _GROWN + (4 * FP32_BYTES if codec.has_state else 0)
    return int(each * sum(one.elements for one in tensors))


def _reserve_line(load: Burden, held: tuple[PlanLine, ...], schedule: Schedule) -> PlanLine:
    if load.on_gpu:
        total = sum(line.memory_bytes for line in held)
        return PlanLine(part="reserve", memory_bytes=int(total * GPU_RESERVE), why="what a GPU's allocator loses")
    tokens = schedule.micro_batch * load.sequence_length
    kept = kept_by_library(
        load.layout,
        tokens,
        load.compute_bytes,
        load.sequence_length,
        recomputed=schedule.recomputed,
        given_back=schedule.given_back,
    )
    if load.recipe.rounds_at_random and not schedule.given_back:
        kept += ROUNDING
    return PlanLine(
        part="reserve", memory_bytes=LIBRARIES + kept, why="what torch's libraries take, and the C library keeps"
    )


def _host_lines(load: Burden, tensors: tuple[Weighed, ...]) -> tuple[PlanLine, ...]:
    """Beside a GPU: the larger of what is there when progress is kept, and when the work is sent."""
    if not load.on_gpu:
        return ()
    kept = sum(one.weight_bytes(load.recipe, FP32_BYTES) + one.moment_bytes(load.recipe) for one in tensors)
    found = {
        "weights and moments, when progress is kept": kept,
        "the pseudo-gradient and its payload, when it is sent": _sent_bytes(load, tensors),
    }
    why = max(found, key=lambda one: found[one])
    block = max(spec.payload_bytes for spec in (*load.layout.trunk, *load.layout.column))
    return (
        PlanLine(part="host work", memory_bytes=found[why], why=why, where="host"),
        PlanLine(part="decoded", memory_bytes=block, why="a tensor of a fetched block, in fp32", where="host"),
    )


def _file_line(load: Burden, columns: int) -> PlanLine:
    needed = load.layout.needed_blocks(range(columns))
    return PlanLine(
        part="block cache",
        memory_bytes=sum(load.layout.block_bytes(block) for block in needed),
        why=f"{len(needed)} blocks, mapped: at most so much on disk, and what the system can spare in memory",
        where="files",
    )
