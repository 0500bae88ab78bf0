"""What each tensor of a shard takes in memory while it is trained, by its recipe's rungs of the memory ladder.

Decides nothing: it adds up what `moe.masters`, the experts and the worker's optimizer do, and a test of each holds the
two together. Allocates nothing: shapes are the layout's, what a tensor is for is read off a model without memory.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from moe.config import config_from_json
from moe.families import family_named
from moe.layer_cut import why_not_by_layers
from moe.layout import FP32_BYTES, Layout
from moe.masters import masters_of
from moe.optimised import FACTORS, MATRICES, ROUNDED, OptimiserGroups
from moe.recomputed import layers_of
from moe.selection import layer_of
from moe.skeleton import meta_model
from moe.table_rows import is_plain_table
from moe.trunk import TrunkSort, trunk_sort
from protocol.lease import trunk_part
from protocol.recipe import BF16_MASTERS, COMPACT, MUON, Recipe

BF16_BYTES: Final = 2
WHOLE: Final = "whole"
ROWS: Final = "rows"
SLICES: Final = "slices"
CODED_BLOCK: Final = 256
"""Values of a moment in 8 bits that share a scale."""
CODED_BYTES: Final = 1 + 4 / CODED_BLOCK
"""Of a moment in 8 bits, with its block's scale."""
SMALLEST_CODED: Final = 4096
"""Elements of a tensor whose moments are kept in 8 bits: below, nothing is saved (as in Dettmers et al. 2021)."""
MATRICES_AT_ONCE: Final = 1 << 24
"""Elements that Muon works on together, of a tensor of many matrices."""
_COPIES: Final = 7
"""In fp32, that Muon makes of them: momentum, what it looks ahead to, the iterate and its products, the update."""
SPAN_AT_ONCE: Final = 1 << 20
"""Elements that are rounded together."""
_SPAN_COPIES: Final = 16
"""In fp32, of a span, while weights or moments are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """One tensor of a shard."""

    elements: int
    """All of it, of as many columns as are held."""
    rows: int
    """Matrices that it is made of where it has some for each column, else 1."""
    group: str
    """Of the optimizer; empty: no gradient moves it, or the trunk's mode leaves it as it is."""
    is_expert: bool
    layer: int
    """That it lies in; -1: in none."""
    is_head: bool
    """Whether logits are made with it."""
    added: str
    """How a part's gradient comes to what other parts' came to, layer by layer: `whole`, when it is all there; by
    `rows` that a part has (moe.table_rows), or, with a head that is cast, in `slices` (moe.head)."""
    is_halved: bool
    """Whether bf16 masters of it take two bytes whatever it is multiplied in."""

    def weight_bytes(self, recipe: Recipe, compute_bytes: int) -> int:
        """Of what is trained and what is multiplied; one copy, in that dtype, of what is large and not trained."""
        if not self.group:
            return (compute_bytes if self.is_halved else FP32_BYTES) * self.elements
        is_bf16 = self.is_rounded and recipe.masters == BF16_MASTERS
        if is_bf16 and (self.is_halved or (self.is_expert and compute_bytes == BF16_BYTES)):
            return BF16_BYTES * self.elements
        cast = BF16_BYTES if compute_bytes == BF16_BYTES else 0
        return (FP32_BYTES + cast) * self.elements

    @property
    def is_rounded(self) -> bool:
        """Whether bf16 masters are for it at all."""
        return self.group in ROUNDED

    def gradient_bytes(self) -> int:
        """fp32, whatever its weight is kept in."""
        return FP32_BYTES * self.elements if self.group else 0

    def moment_bytes(self, recipe: Recipe) -> int:
        """Of what the optimizer remembers."""
        is_compact = recipe.moments == COMPACT
        if not self.group:
            return 0
        if recipe.optimizer == MUON and self.group in MATRICES:
            return (BF16_BYTES if is_compact else FP32_BYTES) * self.elements
        if is_compact and self.elements >= SMALLEST_CODED:
            return int(2 * CODED_BYTES * self.elements)
        return 2 * FP32_BYTES * self.elements

    def step_bytes(self, recipe: Recipe) -> int:
        """Of what is made while the optimizer works on it, and dropped."""
        if recipe.optimizer == MUON and self.group in MATRICES:
            return _COPIES * FP32_BYTES * max(self.elements // self.rows, min(self.elements, MATRICES_AT_ONCE))
        return _SPAN_COPIES * FP32_BYTES * min(self.elements, SPAN_AT_ONCE) if recipe.rounds_at_random else 0


def weighed(layout: Layout, columns: int, recipe: Recipe | None = None) -> Iterator[Weighed]:
    """Every tensor of a shard that holds so many columns, but for the frozen experts; of `recipe`'s trunk."""
    kinds, halved, _, head, table = _kinds(json.dumps(layout.config_json, sort_keys=True))
    sort = trunk_sort(layout.config_json, trunk_part(recipe or Recipe()))
    if sort is not None:
        kinds = {**kinds, **{spec.name: "" for spec in layout.trunk if spec.name not in sort.small}}
        yield from _factors(layout, sort)
    held = Counter(column % len(layout.parts) for column in layout.crowded(columns))
    experts = [(spec, held[part]) for part, specs in enumerate(layout.parts) for spec in specs if held[part]]
    for spec, count in (*((spec, 1) for spec in layout.trunk), *experts):
        elements = count * spec.payload_bytes // FP32_BYTES
        is_expert = layout.family.is_expert(spec.name)
        rows = count if is_expert else 1
        yield Weighed(
            elements=elements,
            rows=rows,
            group=kinds.get(spec.name, ""),
            is_expert=is_expert,
            layer=layer_of(spec.name),
            is_head=spec.name == head,
            added=WHOLE if head == table else {head: SLICES, table: ROWS}.get(spec.name, WHOLE),
            is_halved=spec.name in halved,
        )


def _factors(layout: Layout, sort: TrunkSort) -> Iterator[Weighed]:
    """Of each matrix that has some: the trained one, and the fixed one, which is kept as the matrix is."""
    for name, shape in ((spec.name, spec.shape) for spec in layout.trunk if spec.name in sort.factored):
        for elements, group in ((shape[0] * sort.rank, FACTORS), (shape[1] * sort.rank, "")):
            yield Weighed(
                elements=elements,
                rows=1,
                group=group,
                is_expert=False,
                layer=layer_of(name),
                is_head=False,
                added=WHOLE,
                is_halved=name in sort.halved,
            )


def can_recompute(layout: Layout) -> bool:
    """Whether activations of such a model can be computed again instead of kept."""
    return _kinds(json.dumps(layout.config_json, sort_keys=True))[2]


def gradients_by_layers(of: Iterable[Weighed], *, in_slices: bool = False) -> int:
    """Bytes of these tensors' gradients that are there at most where steps go layer by layer; `in_slices`: with a head
    whose gradient is added in slices.
    """
    stages: dict[int, tuple[int, int]] = {}
    for number, one in enumerate(of):
        # a tensor that lies in no layer is a stage of its own
        place, size = one.layer if one.layer >= 0 else -1 - number, one.gradient_bytes()
        kept, added = stages.get(place, (0, 0))
        # a micro-batch's gradient of a tensor is whole before it is added, but for those that are added otherwise
        is_whole = one.added == WHOLE or (one.added == SLICES and not in_slices)
        stages[place] = kept + size, max(added, size if is_whole else 0)
    return max(kept + added for kept, added in stages.values())


def inputs_by_layers(layout: Layout, batch_tokens: int) -> int:
    """Bytes that a step layer by layer keeps of all its `batch_tokens`: they go through a layer together."""
    values = layout.config_json
    # each layer's input, the last one's answer, its gradient, and that of what lies below a tied head
    hidden_bytes = (values["num_hidden_layers"] + 3) * values["hidden_size"] * FP32_BYTES
    routed_bytes = layout.expert_layers * (2 * FP32_BYTES * values["num_experts"] + 8 * values["num_experts_per_tok"])
    return int(batch_tokens * (hidden_bytes + routed_bytes))


def can_go_by_layers(layout: Layout) -> bool:
    """Whether gradients of such a model can be taken, and used up, a layer at a time."""
    return _goes_by_layers(json.dumps(layout.config_json, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _goes_by_layers(config_text: str) -> bool:
    return not why_not_by_layers(meta_model(config_from_json(json.loads(config_text))))


@functools.lru_cache(maxsize=8)
def _kinds(config_text: str) -> tuple[dict[str, str], frozenset[str], bool, str, str]:
    """Each trained tensor's group, which are kept in two bytes where masters are bf16, `can_recompute`, the head, and
    the table of what goes in."""
    config = config_from_json(json.loads(config_text))
    model = meta_model(config)
    family = family_named(config.model_type)
    sorter = OptimiserGroups(model, family)
    kinds = {
        name: sorter.kind(name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not family.is_selection_bias(name)
    }
    head = getattr(model.get_output_embeddings(), "weight", None)  # type: ignore[no-untyped-call]
    table: Any = model.get_input_embeddings()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    head_name = names.get(id(head), "")
    table_name = names.get(id(table.weight), "") if is_plain_table(table) else ""
    return kinds, masters_of(model, family, BF16_MASTERS).halved, bool(layers_of(model)), head_name, table_name
