"""The experts of a shard: their weights from blocks, and how they come into the model's modules.

Decides in which tensors they lie: held ones first, in what they are multiplied in, the others behind them or apart
(`moe.frozen`). Holds always: what a shard computes with of a column that it does not hold is what `StandIns.values`
gives, whenever it was built or loaded anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe.blocks import joined
from moe.experts import attach_experts
from moe.frozen import FrozenExperts
from moe.layout import Layout
from moe.masters import Masters
from moe.slots import experts_of, held_slots, slot_order
from moe.stand_ins import StandIns
from moe.undispatched import attach_undispatched
from protocol.ids import column_block
from protocol.residency import FROZEN
from protocol.submission import Blocks


def expert_tensors(
    layout: Layout,
    held: tuple[int, ...],
    blocks: Blocks,
    where: torch.device,
    dtype: torch.dtype,
    masters: Masters,
    stand_ins: StandIns,
    apart: FrozenExperts | None,
) -> dict[str, Tensor]:
    """Experts as [slots, ...], in the dtype that they are multiplied in, but for those that lie `apart`; what routers
    have, as their class holds it."""
    found = {}
    for spec in layout.column:
        expert, order = layout.family.is_expert(spec.name), slot_order(layout, held, spec.name)
        here = held_slots(layout, held, spec.name)
        there = here if apart is not None and apart.has(spec.name) else order
        stacked = torch.empty((len(there), *spec.shape), device=where, dtype=dtype if expert else torch.float32)
        for slot, column in enumerate(there):
            block = blocks[column_block(column)]
            if slot < len(here):
                stacked[slot].copy_(masters.begun(spec.name, block[spec.name]))
            else:
                stacked[slot].copy_(stand_ins.values(block, spec.name, layout.family))
        found[spec.name] = stacked if expert else joined(list(stacked), spec.name, layout)
    return found


def attach_all(
    module: nn.Module,
    layout: Layout,
    held: tuple[int, ...],
    tensors: dict[str, Tensor],
    blocks: Blocks,
    masters: Masters,
    apart: FrozenExperts | None,
) -> None:
    """Move the expert tensors out of `tensors` into their modules, held ones first."""
    family = layout.family
    for path, names in experts_of(layout).items():
        first = f"{path}.{names[0]}"
        order, here = slot_order(layout, held, first), held_slots(layout, held, first)
        # In a frozen shard the router counts experts of the whole model; in an absent one, those that are there.
        is_whole = layout.residency == FROZEN
        slots = [order.index(one) for one in layout.columns_with(first)] if is_whole else list(range(len(here)))
        experts, weights = module.get_submodule(path), {name: tensors.pop(f"{path}.{name}") for name in names}
        rounded = {name for name in names if f"{path}.{name}" in masters.rounded}
        frozen = {} if apart is None else apart.matrices(path)
        if family.undispatched:
            attach_undispatched(experts, family.undispatched, slots, len(here), weights, rounded, frozen)
        else:
            attach_experts(experts, slots, len(here), weights, rounded, frozen)
        for name in names:
            parameter = experts.get_parameter(name)
            if parameter.data_ptr() == weights[name].data_ptr():
                continue
            with torch.no_grad():  # the cast slice has lost bits: take the fp32 rows again
                for slot, column in enumerate(here):
                    parameter[slot].copy_(blocks[column_block(column)][f"{path}.{name}"])
