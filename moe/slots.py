"""In which order experts lie in a shard's tensors, and where: held columns first, then what stands in for the others.

Decides nothing else; touches nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe.layout import Layout
from moe.routing import in_module
from protocol.residency import FROZEN


def experts_of(layout: Layout) -> dict[str, list[str]]:
    """Paths of the modules that experts lie in, and what each calls its tensors, in the order of the family's row."""
    found: dict[str, list[str]] = {}
    for part in layout.family.experts:
        for spec in layout.column:
            if spec.name.endswith(part.suffix):
                path, name = in_module(layout.family, spec.name)
                found.setdefault(path, []).append(name)
    return found


def held_slots(layout: Layout, held: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Of the held columns those that have some of the tensor `name`, in the order of their slots in it."""
    those = layout.columns_with(name)
    return tuple(column for column in held if column in those)


def slot_order(layout: Layout, held: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Columns in the order of slots of the tensor `name`: the held ones, then, if those are frozen, the others."""
    here = held_slots(layout, held, name)
    if layout.residency != FROZEN:
        return here
    return (*here, *(column for column in layout.columns_with(name) if column not in set(here)))


def behind_slots(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that has a row for every slot of a column's tensor, where there is one beside the held ones'."""
    parent, _, leaf = name.rpartition(".")
    return dict(module.get_submodule(parent).named_buffers(recurse=False)).get(f"{leaf}_all")
