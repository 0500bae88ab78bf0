"""Experts that a shard does not hold, where they are not whole beside the held ones: coded, or elsewhere, or both.

Decides which store has them, and how many are decoded together: by their size alone, so that where they lie changes no
bit. Holds always: what is decoded lies in one piece of memory, which the next piece takes over; no gradient flows to
it, and none of it is a parameter, a buffer, or in a state dict. Decoded in plain torch, in the forward pass and again
in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from moe.brought import BroughtStore, FileSource, HostSource, lane_to, slots_for
from moe.kept import FrozenSpec, FrozenStore, KeptForm, Layers, LyingStore, ReadsAhead, ResidentStore
from moe.layout import Layout
from moe.slots import experts_of, slot_order
from moe.stand_ins import DEVICE, HOST, StandIns, is_coded
from protocol.ids import column_block
from protocol.submission import Blocks

AT_ONCE_BYTES: Final = 1 << 26
"""Of experts that are decoded together, where not even one is larger: on a GPU enough of them for a grouped product, on
a CPU little beside what a worker takes anyway."""


def frozen_layers(layout: Layout) -> dict[str, dict[str, FrozenSpec]]:
    """Paths of the experts' modules, in the order of layers, to what each calls its matrices."""
    shapes = {spec.name: spec.shape for spec in layout.column}
    found: dict[str, dict[str, FrozenSpec]] = {}
    for path, names in experts_of(layout).items():
        whole = {name: f"{path}.{name}" for name in names}
        found[path] = {
            name: FrozenSpec(name=full, shape=(shapes[full][0], shapes[full][1]))
            for name, full in whole.items()
            if is_coded(layout.family, full)
        }
    return found


def at_once(spec: FrozenSpec, count: int, itemsize: int) -> int:
    """How many of `count` experts are decoded together."""
    return max(1, min(count, AT_ONCE_BYTES // (spec.elements * itemsize)))


def workspace_elements(layers: Layers, count: int, itemsize: int) -> int:
    """Of what is decoded together, at most."""
    return max(at_once(spec, count, itemsize) * spec.elements for specs in layers for spec in specs)


class StoredMatrix:
    """One matrix of all frozen experts of a layer: `moe.piecewise.FrozenMatrix`."""

    def __init__(
        self, store: FrozenStore, layer: int, spec: FrozenSpec, count: int, workspace: Tensor, most: int
    ) -> None:
        """`most`: so many are decoded together, at most."""
        self._store, self._layer, self._spec, self._workspace = store, layer, spec, workspace
        self.count = count
        self.at_once = min(most, at_once(spec, count, workspace.itemsize))

    def expect(self, pieces: Sequence[tuple[int, int]]) -> None:
        """These experts [first, last) are asked for next, in this order."""
        if isinstance(self._store, ReadsAhead):
            self._store.expect(self._spec, pieces, self._workspace)

    def values(self, first: int, last: int) -> Tensor:
        """[last - first, N, H], at most `at_once` of them; good until the next call for any matrix of the shard."""
        return self._store.values(self._layer, self._spec, first, last, self._workspace)


class FrozenExperts:
    """Those of one shard."""

    def __init__(
        self, layout: Layout, columns: tuple[int, ...], store: FrozenStore, workspace: Tensor, most: int | None = None
    ) -> None:
        """`most`: decoded together; None is all for which there is room."""
        self._columns, self._store, self._workspace = columns, store, workspace
        self._most = most or len(columns)
        self._layers = {path: (layer, specs) for layer, (path, specs) in enumerate(frozen_layers(layout).items())}

    def has(self, name: str) -> bool:
        """Whether the column tensor `name` lies here: biases never do."""
        return any(spec.name == name for _, specs in self._layers.values() for spec in specs.values())

    @torch.no_grad()
    def take(self, blocks: Blocks) -> None:
        """Stand for what `blocks` have of the columns that are not held."""
        self._store.take([blocks[column_block(column)] for column in self._columns])

    def let_go(self) -> None:
        """Keep no block that is others' memory: `take` comes before the next pass."""
        self._store.let_go()

    def matrices(self, path: str) -> dict[str, StoredMatrix]:
        """What products of the experts' module at `path` are taken of, by what it calls them."""
        layer, specs = self._layers[path]
        return {
            name: StoredMatrix(self._store, layer, spec, len(self._columns), self._workspace, self._most)
            for name, spec in specs.items()
        }


def frozen_experts(
    layout: Layout, held: tuple[int, ...], stand_ins: StandIns, dtype: torch.dtype, device: torch.device
) -> FrozenExperts | None:
    """What is not held of a shard, with nothing taken yet; None where there is nothing, or it lies beside the held."""
    columns = slot_order(layout, held)[len(held) :]
    if stand_ins.are_whole or not columns:
        return None
    form = KeptForm(codec=stand_ins.codec, dtype=dtype, count=len(columns))
    layers = [list(specs.values()) for specs in frozen_layers(layout).values()]
    elements = workspace_elements(layers, len(columns), dtype.itemsize)
    workspace = torch.empty(elements, dtype=dtype, device=device)
    return FrozenExperts(layout, columns, _store(layers, form, stand_ins.place, device), workspace)


def _store(layers: Layers, form: KeptForm, place: str, device: torch.device) -> FrozenStore:
    if place == DEVICE or (place == HOST and device.type == "cpu"):
        return ResidentStore(layers, form, device)
    if device.type == "cpu":
        return LyingStore(form)
    slots = slots_for(layers)
    source = HostSource(layers, form) if place == HOST else FileSource(layers, form, slots)
    return BroughtStore(source, layers, form, device, lane_to(device, slots), slots)
