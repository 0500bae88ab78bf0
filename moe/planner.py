"""How many expert columns fit into a volunteer's memory, and why.

Decides an estimate, from shapes alone; touches nothing. Weights, gradients and moments are exact; activations are an
upper estimate (every layer keeps what backward needs, nothing is recomputed), because running out of memory in
mid-lease costs more than one column too few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from moe.layout import FP32_BYTES, OPTIMIZER_MOMENTS, Layout
from protocol.residency import ABSENT
from protocol.text import human_bytes

ALLOCATOR_SLACK: Final = 1.10
"""Caching allocators round sizes up and fragment; a tenth is what long runs on GPUs are usually seen to lose."""


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


def plan(
    layout: Layout, memory_bytes: int, *, batch_sequences: int, sequence_length: int, compute_bytes: int = FP32_BYTES
) -> Plan:
    """The largest number of columns whose training fits into `memory_bytes`. `compute_bytes` is 2 for bf16."""
    fewest = layout.top_k if layout.residency == ABSENT else 1
    tokens = batch_sequences * sequence_length

    def needed(columns: int) -> tuple[tuple[PlanLine, ...], int]:
        lines = _lines(layout, columns, tokens, compute_bytes)
        return lines, int(sum(line.memory_bytes for line in lines) * ALLOCATOR_SLACK)

    columns = next(
        (count for count in range(layout.columns, fewest - 1, -1) if needed(count)[1] <= memory_bytes), fewest
    )
    lines, total = needed(columns)
    fits = total <= memory_bytes
    return Plan(
        columns=columns,
        fits=fits,
        memory_bytes=memory_bytes,
        needed_bytes=total,
        lines=lines,
        reason=_reason(layout, columns, fewest, total, memory_bytes, needed(min(columns + 1, layout.columns))[1]),
    )


def _lines(layout: Layout, columns: int, tokens: int, compute_bytes: int) -> tuple[PlanLine, ...]:
    trainable = layout.trainable_bytes(columns)
    copies = 0 if compute_bytes == FP32_BYTES else trainable // FP32_BYTES * compute_bytes
    others = layout.columns - columns
    frozen_why = f"{others} other columns, without gradients or moments"
    return (
        PlanLine(part="weights", memory_bytes=trainable + copies, why=f"trunk and {columns} columns, fp32"),
        PlanLine(part="start", memory_bytes=trainable, why="their values at the lease's start, to subtract from"),
        PlanLine(part="gradients", memory_bytes=trainable, why="fp32"),
        PlanLine(part="moments", memory_bytes=OPTIMIZER_MOMENTS * trainable, why="AdamW: two a parameter, fp32"),
        PlanLine(
            part="frozen",
            memory_bytes=layout.frozen_bytes(columns, compute_bytes=compute_bytes),
            why=frozen_why if layout.residency != ABSENT else "none: the other columns are absent",
        ),
        PlanLine(
            part="activations",
            memory_bytes=activation_bytes(layout, tokens, compute_bytes),
            why=f"{tokens} tokens a micro-batch, kept for backward",
        ),
    )


def activation_bytes(layout: Layout, tokens: int, compute_bytes: int = FP32_BYTES) -> int:
    """Upper estimate of what forward keeps for backward, and of the largest passing tensors, for so many tokens."""
    layers, sparse = layout.config_json["num_hidden_layers"], layout.expert_layers
    attention, expert, dense = _layer_bytes(layout, tokens, compute_bytes)
    # Logits, their log-softmax and their gradient in fp32.
    head = 3 * _logits_bytes(layout, tokens)
    return int(layers * attention + sparse * expert + (layers - sparse) * dense + head)


def sequences_at_once(layout: Layout, wanted: int, sequence_length: int, memory_bytes: int) -> int:
    """How many sequences go through a whole fp32 model at a time where nothing is kept for backward: `wanted`, or as
    few as `memory_bytes` hold what passes of, by the same upper estimate; one at the least.
    """
    attention, expert, dense = _layer_bytes(layout, sequence_length, FP32_BYTES)
    # One layer's tensors at a time, and at the end logits and their log-softmax.
    passing = max(attention + max(expert, dense), 2 * _logits_bytes(layout, sequence_length))
    return max(1, min(wanted, memory_bytes // passing))


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


def _reason(layout: Layout, columns: int, fewest: int, total: int, memory_bytes: int, next_total: int) -> str:
    offered, needs = human_bytes(memory_bytes), human_bytes(total)
    if total > memory_bytes:
        why = ", the top-k of a shard whose other columns are absent" if layout.residency == ABSENT else ""
        return f"not even {fewest} of {layout.columns} columns fit{why}: {needs} needed, {offered} offered"
    if columns == layout.columns:
        return f"all {columns} columns fit: {needs} of {offered}"
    more = f"one more would need {human_bytes(next_total)}"
    return f"{columns} of {layout.columns} columns fit: {needs} of {offered}; {more}"
