"""What training a shard takes of a machine's memory, part by part: on its device, and beside it in the host's.

Decides nothing; it adds up what `moe.weighing` says of each tensor and `moe.passing` of what passes. Weights, gradients
and moments are exact. On a CPU the device's memory is the host's. A block cache is mapped: the system takes it back
when it needs to, so it is told of and not counted. Touches nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from moe.frozen_bytes import FrozenBytes, frozen_bytes
from moe.head import adds_in_slices
from moe.layout import FP32_BYTES, Layout
from moe.passing import activation_bytes, kept_by_library
from moe.rungs import Schedule
from moe.second_card import SecondCard
from moe.stand_ins import DEVICE, StandIns
from moe.weighing import BF16_BYTES, SLICES, Weighed, gradients_by_layers, inputs_by_layers, weighed
from protocol.codecs import BF16, FP32, codec_named
from protocol.ids import TRUNK
from protocol.recipe import AS_COMPUTED, BF16_MASTERS, COMPACT, FROZEN_TRUNK, LORA_TRUNK, MUON, Recipe
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
USUAL_BATCH: Final = 16
"""Sequences of a step, where no lease is there that says it."""

HeldIn = Literal["device", "host", "second", "files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One part of the memory that a shard takes."""

    part: str
    memory_bytes: int
    why: str
    where: HeldIn = "device"
    """`host`: beside a GPU. `second`: on another card, as much as it holds. `files`: mapped, and not counted."""


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
    second: SecondCard | None = None
    """A second card, for experts that would else lie in the host's memory."""
    batch_sequences: int = 0
    """Of a whole step; 0: nobody knows yet, and as many as the recipe's default are taken."""

    def lines(self, columns: int, schedule: Schedule) -> tuple[PlanLine, ...]:
        """Every part of its memory."""
        tensors = _tensors(self.layout, columns, self.recipe)
        kept = _kept_lines(self, tensors, columns, schedule)
        held = (*kept, _passing_line(self, tensors, schedule, kept))
        beside = (*_host_lines(self, tensors, columns, schedule), _file_line(self, columns))
        return (*held, _reserve_line(self, held, schedule), *beside)

    def needed(self, columns: int, schedule: Schedule) -> Memory:
        """All of it."""
        return memory_of(self.lines(columns, schedule))


def memory_of(lines: tuple[PlanLine, ...]) -> Memory:
    """Their sums."""
    return Memory(*(sum(one.memory_bytes for one in lines if one.where == where) for where in ("device", "host")))


def held_bytes(layout: Layout, columns: int, *, compute_bytes: int = FP32_BYTES, recipe: Recipe | None = None) -> int:
    """Weights, gradients and moments of what is held, and the frozen rest in its codes: all but what passes through."""
    load = Burden(layout=layout, recipe=recipe or Recipe(), sequence_length=1, compute_bytes=compute_bytes)
    tensors = _tensors(layout, columns, load.recipe)
    return sum(line.memory_bytes for line in _kept_lines(load, tensors, columns, Schedule(1, place=DEVICE)))


@dataclass(frozen=True, slots=True)
class _Of:
    """Of which model, by what tells two of them apart."""

    text: str
    residency: str
    column_parts: int
    layout: Layout = field(compare=False)


def _tensors(layout: Layout, columns: int, recipe: Recipe) -> tuple[Weighed, ...]:
    """A search asks for the same ones again and again."""
    return _weighed(_of(layout), columns, recipe)


def _of(layout: Layout) -> _Of:
    return _Of(json.dumps(layout.config_json, sort_keys=True), layout.residency, len(layout.parts), layout)


@functools.lru_cache(maxsize=256)
def _weighed(of: _Of, columns: int, recipe: Recipe) -> tuple[Weighed, ...]:
    return tuple(weighed(of.layout, columns, recipe))


def _kept_lines(load: Burden, tensors: tuple[Weighed, ...], columns: int, schedule: Schedule) -> tuple[PlanLine, ...]:
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
    trunk = {FROZEN_TRUNK: "frozen trunk", LORA_TRUNK: f"trunk with factors of rank {recipe.lora_rank}"}
    coded = f"{recipe.frozen_dtype}, " if recipe.frozen_dtype != AS_COMPUTED else ""
    others = f"{layout.columns - columns} other columns, {coded}without gradients or moments"
    return (
        PlanLine(
            part="weights",
            memory_bytes=weights,
            why=f"{trunk.get(recipe.trunk, 'trunk')} and {columns} columns, {kept_in}",
        ),
        _gradient_line(load, tensors, columns, schedule),
        PlanLine(part="moments", memory_bytes=sum(one.moment_bytes(recipe) for one in tensors), why=what),
        PlanLine(
            part="frozen",
            memory_bytes=_frozen(load, columns, schedule).device,
            why=others if layout.residency != ABSENT else "none: the other columns are absent",
        ),
    )


def _gradient_line(load: Burden, tensors: tuple[Weighed, ...], columns: int, schedule: Schedule) -> PlanLine:
    if schedule.by_layers:
        at_once = gradients_by_layers(tensors, in_slices=bool(_put_off(load, tensors, schedule)))
        return PlanLine(part="gradients", memory_bytes=at_once, why="fp32, of a layer at a time")
    return PlanLine(part="gradients", memory_bytes=sum(one.gradient_bytes() for one in tensors), why="fp32")


def _frozen(load: Burden, columns: int, schedule: Schedule) -> FrozenBytes:
    stand_ins = StandIns(dtype=load.recipe.frozen_dtype, place=schedule.place, second=load.second)
    return _frozen_bytes(_of(load.layout), columns, stand_ins, load.compute_bytes, not load.on_gpu)


@functools.lru_cache(maxsize=256)
def _frozen_bytes(of: _Of, columns: int, stand_ins: StandIns, compute_bytes: int, on_cpu: bool) -> FrozenBytes:
    return frozen_bytes(of.layout, columns, stand_ins, compute_bytes=compute_bytes, on_cpu=on_cpu)


def _inputs(load: Burden, schedule: Schedule) -> int:
    """Of a step layer by layer: what is kept of the whole batch."""
    if not schedule.by_layers:
        return 0
    batch = max(load.batch_sequences or USUAL_BATCH, schedule.micro_batch)
    return inputs_by_layers(load.layout, batch * load.sequence_length)


def _passing_line(
    load: Burden, tensors: tuple[Weighed, ...], schedule: Schedule, kept: tuple[PlanLine, ...]
) -> PlanLine:
    """What is there for a while, one thing after the other: the largest of them."""
    tokens = schedule.micro_batch * load.sequence_length
    how = "computed again in the backward pass" if _is_recomputed(schedule) else "kept for backward"
    step = max(tensors, key=lambda one: one.step_bytes(load.recipe))
    found = {
        f"{tokens} tokens a micro-batch, {how}": _activations(load, tensors, schedule),
        "copies that the optimizer makes of a tensor in a step": step.step_bytes(load.recipe),
    }
    if not load.on_gpu:
        gone = sum(line.memory_bytes for line in kept if line.part in ("gradients", "moments"))
        found["a tensor of what is sent, when gradients and moments are gone"] = max(
            0, sent_bytes(load, _largest_sent(tensors)) - gone
        )
    why = max(found, key=lambda one: found[one])
    return PlanLine(part="passing", memory_bytes=found[why], why=why)


def _is_recomputed(schedule: Schedule) -> bool:
    return schedule.recomputed or schedule.by_layers


def _activations(load: Burden, tensors: tuple[Weighed, ...], schedule: Schedule) -> int:
    """With the gradients that a second micro-batch makes beside those of the first."""
    put_off = _put_off(load, tensors, schedule)
    if schedule.by_layers:  # it is counted with a layer's
        tensors = ()
    heads = [put_off, *(one.gradient_bytes() for one in tensors if one.is_head)]
    others = [one.gradient_bytes() for one in tensors if not one.is_head]
    inputs = 0 if schedule.inputs_on_host else _inputs(load, schedule)
    return inputs + activation_bytes(
        load.layout,
        schedule.micro_batch * load.sequence_length,
        load.compute_bytes,
        recomputed=_is_recomputed(schedule),
        sequence_length=load.sequence_length,
        added_bytes=(max(heads, default=0), max(others, default=0)),
    )


def _put_off(load: Burden, tensors: tuple[Weighed, ...], schedule: Schedule) -> int:
    """Bytes of logits' gradients that are kept until a head's own is added in slices (moe.head); 0 where it is not."""
    tokens, values = schedule.micro_batch * load.sequence_length, load.layout.config_json
    is_bf16 = load.recipe.masters == BF16_MASTERS
    heads = [one for one in tensors if one.added == SLICES and one.group]
    is_sliced = any(load.compute_bytes != FP32_BYTES or (is_bf16 and one.is_halved) for one in heads)
    hidden = int(values["hidden_size"])
    if not schedule.by_layers or not adds_in_slices(tokens, hidden, load.compute_bytes, is_sliced=is_sliced):
        return 0
    return tokens * (int(values["vocab_size"]) + hidden) * load.compute_bytes


def sent_bytes(load: Burden, elements: int) -> int:
    """Of a submission, which is written a tensor at a time, the largest of so many values: it in fp32, and beside
    it what it began with, where that is rounded, or what is written of it; where a codec leaves something for the next
    lease, what it was given and what it left, too.
    """
    codec = codec_named(load.codec)
    kept = 2 * FP32_BYTES if codec.has_state else 0
    begun = BF16_BYTES if load.recipe.masters == BF16_MASTERS else 0
    written = 0 if codec == FP32 else codec.bits_per_parameter / 8  # fp32 is written as it is
    return int(elements * (FP32_BYTES + max(begun, kept + written)))


def _largest_sent(tensors: tuple[Weighed, ...]) -> int:
    """Values of it: of a column's tensors each is sent by itself."""
    return max((one.elements // one.rows for one in tensors if one.group), default=0)


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


def _host_lines(load: Burden, tensors: tuple[Weighed, ...], columns: int, schedule: Schedule) -> tuple[PlanLine, ...]:
    """Beside a GPU. Progress is written a tensor at a time, too, whole ones of all columns."""
    if not load.on_gpu:
        return ()
    found = {
        "a tensor, when progress is kept": max((one.gradient_bytes() for one in tensors), default=0),
        "a tensor of what is sent": sent_bytes(load, _largest_sent(tensors)),
    }
    why = max(found, key=lambda one: found[one])
    block = max(spec.payload_bytes for spec in (*load.layout.trunk, *load.layout.column))
    return (
        PlanLine(part="host work", memory_bytes=found[why], why=why, where="host"),
        PlanLine(part="decoded", memory_bytes=block, why="a tensor of a fetched block, in fp32", where="host"),
        *_beside(load, columns, schedule),
    )


def _beside(load: Burden, columns: int, schedule: Schedule) -> Iterator[PlanLine]:
    """What a schedule keeps in main memory that could be on the device."""
    found = _frozen(load, columns, schedule)
    if found.second:
        why = "other columns of the first layers, which are multiplied there"
        yield PlanLine(part="other columns", memory_bytes=found.second, why=why, where="second")
    if frozen := found.host:
        why = "other columns, brought to the device a layer ahead"
        yield PlanLine(part="other columns", memory_bytes=frozen, why=why, where="host")
    if schedule.inputs_on_host:
        kept = _inputs(load, schedule)
        yield PlanLine(part="inputs", memory_bytes=kept, why="what each layer was given", where="host")


def _file_line(load: Burden, columns: int) -> PlanLine:
    needed = load.layout.needed_blocks(range(columns))
    return PlanLine(
        part="block cache",
        memory_bytes=load.layout.block_bytes(TRUNK) + (len(needed) - 1) * load.layout.block_bytes(needed[-1]),
        why=f"{len(needed)} blocks, mapped: at most so much on disk, and what the system can spare in memory",
        where="files",
    )
