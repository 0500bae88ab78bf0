"""How many expert columns fit into a volunteer's memory, on which rungs of the memory ladder, and why.

Decides an estimate, from shapes and a run's recipe; touches nothing. Weights, gradients and moments are exact;
activations are an upper estimate, because running out of memory in mid-lease costs more than one column too few.
Activations are recomputed where that makes room for more columns, which are worth more than a third of the speed: of
all that a machine may choose by itself this alone costs time (docs/decisions/0047).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moe.frozen_bytes import FrozenBytes, frozen_bytes
from moe.head import tokens_at_once
from moe.layout import FP32_BYTES, Layout
from moe.stand_ins import DECODED, DEVICE, HOST, MAPPED, StandIns
from moe.weighing import Weighed, can_recompute, weighed
from protocol.recipe import AS_COMPUTED, BF16_MASTERS, COMPACT, FROZEN_TRUNK, LORA_TRUNK, MUON, Recipe
from protocol.residency import ABSENT
from protocol.text import human_bytes

ALLOCATOR_SLACK: Final = 1.10
"""Caching allocators round sizes up and fragment; a tenth is what long runs on GPUs are usually seen to lose."""

SENT_BYTES: Final = FP32_BYTES + 2 * 1.125
"""Of a trained value: the pseudo-gradient, and its payload in bf16, whose memory grows by an eighth at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One part of the memory that a shard takes."""

    part: str
    memory_bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The largest shard that fits; with `fits` false, the smallest one and how much is missing."""

    columns: int
    fits: bool
    memory_bytes: int
    """What was offered."""
    needed_bytes: int
    lines: tuple[PlanLine, ...]
    reason: str
    recomputed: bool = False
    """Whether activations are computed again instead of kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burden:
    """What one machine trains, but for how many columns of it."""

    layout: Layout
    recipe: Recipe
    tokens: int
    """Of a micro-batch."""
    compute_bytes: int
    """2 where matrices are multiplied in bf16."""
    place: str = DEVICE
    """Where frozen experts lie: a name of `moe.stand_ins`."""

    @property
    def frozen(self) -> StandIns:
        """How what is not held stands in."""
        return StandIns(dtype=self.recipe.frozen_dtype, place=self.place)

    def lines(self, columns: int, *, recomputed: bool) -> tuple[PlanLine, ...]:
        """Every part of its memory."""
        tensors = list(weighed(self.layout, columns, self.recipe))
        return (*_kept_lines(self, tensors, columns), _passing_line(self, tensors, recomputed=recomputed))

    def needed_bytes(self, columns: int, *, recomputed: bool) -> int:
        """All of it, with what an allocator loses."""
        lines = self.lines(columns, recomputed=recomputed)
        return int(sum(line.memory_bytes for line in lines) * ALLOCATOR_SLACK)


def plan(
    layout: Layout,
    memory_bytes: int,
    *,
    batch_sequences: int,
    sequence_length: int,
    compute_bytes: int = FP32_BYTES,
    recipe: Recipe | None = None,
) -> Plan:
    """The largest number of columns whose training fits into `memory_bytes`. `compute_bytes` is 2 for bf16."""
    load = Burden(
        layout=layout,
        recipe=recipe or Recipe(),
        tokens=batch_sequences * sequence_length,
        compute_bytes=compute_bytes,
    )
    fewest = layout.min_columns

    def most(*, recomputed: bool) -> int:
        return _most(
            lambda count: load.needed_bytes(count, recomputed=recomputed) <= memory_bytes, fewest, layout.columns
        )

    kept = most(recomputed=False)
    with_recomputation = most(recomputed=True) if can_recompute(layout) else 0
    recomputed = with_recomputation > kept or (not kept and can_recompute(layout))
    columns = max(kept, with_recomputation, fewest)
    total = load.needed_bytes(columns, recomputed=recomputed)
    one_more = load.needed_bytes(min(columns + 1, layout.columns), recomputed=can_recompute(layout))
    return Plan(
        columns=columns,
        fits=total <= memory_bytes,
        memory_bytes=memory_bytes,
        needed_bytes=total,
        lines=load.lines(columns, recomputed=recomputed),
        reason=_reason(layout, columns, fewest, total, memory_bytes, one_more, recomputed=recomputed),
        recomputed=recomputed,
    )


def _most(fits: Callable[[int], bool], fewest: int, most: int) -> int:
    """The largest count that fits, 0 where none does: what fits one column more fits one fewer."""
    low, high = fewest - 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if low >= fewest else 0


def held_bytes(layout: Layout, columns: int, *, compute_bytes: int = FP32_BYTES, recipe: Recipe | None = None) -> int:
    """Weights, gradients and moments of what is held, and the frozen rest: all but what passes through."""
    load = Burden(layout=layout, recipe=recipe or Recipe(), tokens=1, compute_bytes=compute_bytes)
    return sum(line.memory_bytes for line in _kept_lines(load, list(weighed(layout, columns, load.recipe)), columns))


def _kept_lines(load: Burden, tensors: list[Weighed], columns: int) -> tuple[PlanLine, ...]:
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
    kept = {DECODED: "decoded", DEVICE: "", HOST: "in main memory", MAPPED: "in their files"}[load.place]
    coded = recipe.frozen_dtype if recipe.frozen_dtype != AS_COMPUTED else ""
    how = ", ".join(word for word in (coded, kept, "without gradients or moments") if word)
    others = f"{layout.columns - columns} other columns, {how}"
    trunk = {FROZEN_TRUNK: "frozen trunk", LORA_TRUNK: f"trunk with factors of rank {recipe.lora_rank}"}.get(
        recipe.trunk, "trunk"
    )
    return (
        PlanLine(part="weights", memory_bytes=weights, why=f"{trunk} and {columns} columns, {kept_in}"),
        PlanLine(part="gradients", memory_bytes=sum(one.gradient_bytes() for one in tensors), why="fp32"),
        PlanLine(part="moments", memory_bytes=sum(one.moment_bytes(recipe) for one in tensors), why=what),
        PlanLine(
            part="frozen",
            memory_bytes=_frozen(load, columns).device,
            why=others if layout.residency != ABSENT else "none: the other columns are absent",
        ),
    )


def _frozen(load: Burden, columns: int) -> FrozenBytes:
    on_cpu = load.compute_bytes == FP32_BYTES
    return frozen_bytes(load.layout, columns, load.frozen, compute_bytes=load.compute_bytes, on_cpu=on_cpu)


def _passing_line(load: Burden, tensors: list[Weighed], *, recomputed: bool) -> PlanLine:
    """What is there for a while, one thing after the other: the largest of them."""
    how = "computed again in the backward pass" if recomputed else "kept for backward"
    step = max(tensors, key=lambda one: one.step_bytes(load.recipe))
    found = {
        f"{load.tokens} tokens a micro-batch, {how}": activation_bytes(
            load.layout, load.tokens, load.compute_bytes, recomputed=recomputed
        ),
        "copies that the optimizer makes of a tensor in a step": step.step_bytes(load.recipe),
        "what is sent, when gradients and moments are gone": _sent_bytes(load, tensors),
    }
    why = max(found, key=lambda one: found[one])
    return PlanLine(part="passing", memory_bytes=found[why], why=why)


def _sent_bytes(load: Burden, tensors: list[Weighed]) -> int:
    """Of the pseudo-gradient and its payload, what is more than gradients and moments were."""
    if load.compute_bytes != FP32_BYTES:  # a GPU: these two are in the host's memory
        return 0
    sent = sum(SENT_BYTES * one.elements for one in tensors if one.group)
    return max(0, int(sent) - sum(one.gradient_bytes() + one.moment_bytes(load.recipe) for one in tensors))


def activation_bytes(layout: Layout, tokens: int, compute_bytes: int = FP32_BYTES, *, recomputed: bool = False) -> int:
    """Upper estimate of what forward keeps for backward, and of the largest passing tensors, for so many tokens."""
    layers, sparse = layout.config_json["num_hidden_layers"], layout.expert_layers
    attention, expert, dense = _layer_bytes(layout, tokens, compute_bytes)
    # Of a chunk's logits: products, shares, and the gradient that these become.
    head = 3 * _logits_bytes(layout, min(tokens, tokens_at_once(layout.config_json["vocab_size"])))
    if recomputed:
        inputs = layers * tokens * layout.config_json["hidden_size"] * FP32_BYTES
        return int(inputs + max(attention + max(expert, dense), head))
    return int(layers * attention + sparse * expert + (layers - sparse) * dense + head)


def sequences_at_once(layout: Layout, wanted: int, sequence_length: int, memory_bytes: int) -> int:
    """How many sequences go through a whole fp32 model at a time where nothing is kept for backward: `wanted`, or as
    few as `memory_bytes` hold what passes of, by the same upper estimate; one at the least.
    """
    attention, expert, dense = _layer_bytes(layout, sequence_length, FP32_BYTES)
    # One layer's tensors at a time, and at the end a chunk of logits and their log-softmax, whatever comes before them.
    logits = 2 * _logits_bytes(layout, min(sequence_length, tokens_at_once(layout.config_json["vocab_size"])))
    return max(1, min(wanted, memory_bytes // max(attention + max(expert, dense), logits)))


def _layer_bytes(layout: Layout, tokens: int, compute_bytes: int) -> tuple[int, int, int]:
    """Of one layer: attention, experts, and what is there in place of experts."""
    values: Any = layout.config_json
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    # Of heads whose queries and keys have a part that is rotated and one that is not, both parts.
    halves = (values.get("qk_nope_head_dim") or 0) + (values.get("qk_rope_head_dim") or 0)
    head_dim = halves or values.get("head_dim") or hidden // heads
    queries = heads * head_dim
    keys = (values.get("num_key_value_heads") or heads) * head_dim
    # Residual stream twice and norms in fp32; queries, keys, values before and after norm and rotation; their output.
    attention = tokens * (6 * hidden * FP32_BYTES + (5 * queries + 6 * keys) * compute_bytes)
    width = values[layout.family.expert_width]
    # A token's copy for each expert, the two projections, the gated product, the output before and after weighting.
    expert = tokens * values["num_experts_per_tok"] * (3 * hidden + 5 * width) * compute_bytes
    dense = tokens * 4 * (values.get("intermediate_size") or width) * compute_bytes
    return attention, expert, dense


def _logits_bytes(layout: Layout, tokens: int) -> int:
    return int(tokens * layout.config_json["vocab_size"] * FP32_BYTES)


def _reason(
    layout: Layout, columns: int, fewest: int, total: int, memory_bytes: int, next_total: int, *, recomputed: bool
) -> str:
    offered, needs = human_bytes(memory_bytes), human_bytes(total)
    if total > memory_bytes:
        why = ", the top-k of a shard whose other columns are absent" if layout.residency == ABSENT else ""
        return f"not even {fewest} of {layout.columns} columns fit{why}: {needs} needed, {offered} offered"
    how = ", where activations are computed again" if recomputed else ""
    if columns == layout.columns:
        return f"all {columns} columns fit: {needs} of {offered}{how}"
    more = f"one more would need {human_bytes(next_total)}"
    return f"{columns} of {layout.columns} columns fit: {needs} of {offered}{how}; {more}"
