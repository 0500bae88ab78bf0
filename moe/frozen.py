"""Experts that a shard does not hold, where they are not whole beside the held ones: coded, or elsewhere, or both.

Decides which store has them, and how many are decoded together: by their size alone, so that where they lie changes no
bit. Holds always: what is decoded lies in one piece of memory of a device, which the next piece takes over; no gradient
flows to it, and none of it is a parameter, a buffer, or in a state dict. Decoded in plain torch, in the forward pass
and again in the backward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from moe.brought import BroughtStore, FileSource, HostSource, lane_to, slots_for
from moe.kept import FrozenSpec, FrozenStore, KeptForm, Layers, LyingStore, ReadsAhead, ResidentStore, SplitStore
from moe.layout import Layout
from moe.slots import experts_of, held_slots, slot_order
from moe.stand_ins import DEVICE, HOST, StandIns, is_coded
from protocol.ids import column_block
from protocol.residency import ABSENT
from protocol.submission import Blocks

AT_ONCE_BYTES: Final = 1 << 26
"""Of experts that are decoded together, where not even one is larger: on a GPU enough of them for a grouped product, on
a CPU little beside what a worker takes anyway."""


def frozen_layers(layout: Layout, held: tuple[int, ...]) -> dict[str, dict[str, FrozenSpec]]:
    """Paths of the experts' modules that have frozen ones, in the order of layers, to what each calls its matrices."""
    shapes = {spec.name: spec.shape for spec in layout.column}
    found: dict[str, dict[str, FrozenSpec]] = {}
    for path, names in experts_of(layout).items():
        whole = {name: f"{path}.{name}" for name in names}
        count = len(_frozen_columns(layout, held, whole[names[0]]))
        if not count:
            continue
        found[path] = {
            name: FrozenSpec(name=full, shape=(shapes[full][0], shapes[full][1]), count=count)
            for name, full in whole.items()
            if is_coded(layout.family, full)
        }
    return found


def _frozen_columns(layout: Layout, held: tuple[int, ...], name: str) -> tuple[int, ...]:
    return slot_order(layout, held, name)[len(held_slots(layout, held, name)) :]


def at_once(spec: FrozenSpec, itemsize: int) -> int:
    """How many of a layer's experts are decoded together."""
    return max(1, min(spec.count, AT_ONCE_BYTES // (spec.elements * itemsize)))


def workspace_elements(layers: Layers, itemsize: int) -> int:
    """Of what is decoded together, at most."""
    return max(at_once(spec, itemsize) * spec.elements for specs in layers for spec in specs)


class StoredMatrix:
    """One matrix of all frozen experts of a layer: `moe.piecewise.FrozenMatrix`."""

    def __init__(self, store: FrozenStore, layer: int, spec: FrozenSpec, workspace: Tensor, most: int | None) -> None:
        """`most`: so many are decoded together, at most; None: all for which there is room."""
        self._store, self._layer, self._spec, self._workspace = store, layer, spec, workspace
        self.count = spec.count
        room = at_once(spec, workspace.itemsize)
        self.at_once = room if most is None else min(most, room)

    def expect(self, pieces: Sequence[tuple[int, int]]) -> None:
        """These experts [first, last) are asked for next, in this order."""
        if isinstance(self._store, ReadsAhead):
            self._store.expect(self._layer, self._spec, pieces, self._workspace)

    def values(self, first: int, last: int) -> Tensor:
        """[last - first, N, H], at most `at_once` of them; good until the next call for any matrix of the shard."""
        return self._store.values(self._layer, self._spec, first, last, self._workspace)


class FrozenExperts:
    """Those of one shard."""

    def __init__(
        self,
        layout: Layout,
        held: tuple[int, ...],
        store: FrozenStore,
        workspaces: list[Tensor],
        most: int | None = None,
    ) -> None:
        """`workspaces`: of each layer, on the device that it is multiplied on. `most`: experts decoded together."""
        self._store, self._workspaces, self._most = store, workspaces, most
        layers = frozen_layers(layout, held)
        self._layers = {path: (layer, specs) for layer, (path, specs) in enumerate(layers.items())}
        first = [next(iter(specs.values())).name for specs in layers.values()]
        self._columns = [_frozen_columns(layout, held, name) for name in first]

    def has(self, name: str) -> bool:
        """Whether some of the column tensor `name` lies here: biases never do."""
        return any(spec.name == name for _, specs in self._layers.values() for spec in specs.values())

    @torch.no_grad()
    def take(self, blocks: Blocks) -> None:
        """Stand for what `blocks` have of the columns that are not held."""
        self._store.take([[blocks[column_block(one)] for one in columns] for columns in self._columns])

    def let_go(self) -> None:
        """Keep no block that is others' memory: `take` comes before the next pass."""
        self._store.let_go()

    def matrices(self, path: str) -> dict[str, StoredMatrix]:
        """What products of the experts' module at `path` are taken of, by what it calls them."""
        layer, specs = self._layers.get(path, (0, {}))
        return {
            name: StoredMatrix(self._store, layer, spec, self._workspaces[layer], self._most)
            for name, spec in specs.items()
        }


def frozen_experts(
    layout: Layout, held: tuple[int, ...], stand_ins: StandIns, dtype: torch.dtype, device: torch.device
) -> FrozenExperts | None:
    """What is not held of a shard, with nothing taken yet; None where there is nothing, or it lies beside the held."""
    layers = [] if layout.residency == ABSENT else [list(one.values()) for one in frozen_layers(layout, held).values()]
    if stand_ins.are_whole or not layers:
        return None
    form = KeptForm(codec=stand_ins.codec, dtype=dtype)
    away, second = on_second(layers, form, stand_ins), stand_ins.second
    count, workspaces = workspace_elements(layers, dtype.itemsize), list[Tensor]()
    if away and second is not None:
        workspaces += [torch.empty(count, dtype=dtype, device=second.device)] * away
    if layers[away:]:
        workspaces += [torch.empty(count, dtype=dtype, device=device)] * (len(layers) - away)
    rest = _store(layers[away:], form, stand_ins.place, device) if layers[away:] else None
    if away and second is not None:
        rest = SplitStore(ResidentStore(layers[:away], form, torch.device(second.device)), away, rest)
    assert rest is not None
    return FrozenExperts(layout, held, rest, workspaces)


def on_second(layers: Layers, form: KeptForm, stand_ins: StandIns) -> int:
    """How many layers, the first ones, lie on the second card: as many as it holds beside what is decoded of them."""
    if stand_ins.second is None or stand_ins.place != HOST:
        return 0
    left = stand_ins.second.memory_bytes - workspace_elements(layers, form.dtype.itemsize) * form.dtype.itemsize
    sizes = itertools.accumulate(form.layer_bytes(specs) for specs in layers)
    return sum(size <= left for size in sizes)


def _store(layers: Layers, form: KeptForm, place: str, device: torch.device) -> FrozenStore:
    if place == DEVICE or (place == HOST and device.type == "cpu"):
        return ResidentStore(layers, form, device)
    if device.type == "cpu":
        return LyingStore(form)
    slots = slots_for(layers)
    source = HostSource(layers, form) if place == HOST else FileSource(layers, form, slots)
    return BroughtStore(source, layers, form, device, lane_to(device, slots), slots)
