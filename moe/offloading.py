"""Which layers' frozen experts are on the device, while a model goes up and down through its layers: a pure schedule.

Decides what is fetched, used and dropped, and in which slot of the device's memory it lies. A pass forward uses layers
from the first to the last, a pass backward from the last to the first; where activations are computed again a layer is
used twice in a row, and a pass without gradients is followed by another from the first layer. Which way it goes is read
off the layers themselves, so whoever computes says only which one comes next.

Holds always: a layer is there before it is used; never more than `window` layers are; what is dropped was not asked for
again before what is kept, as far as the direction tells. A wrong guess costs a wait, no more. Touches nothing: no
torch, no device, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchLayer:
    """Bring a layer into a slot, which nothing uses."""

    layer: int
    slot: int


@dataclass(frozen=True, slots=True)
class UseLayer:
    """Compute with it: what was fetched into the slot must have come."""

    layer: int
    slot: int


@dataclass(frozen=True, slots=True)
class DropLayer:
    """Nothing more is asked of the slot; it is free when what was asked is done."""

    layer: int
    slot: int


OffloadAct = FetchLayer | UseLayer | DropLayer


class OffloadSchedule:
    """Of one model on one device."""

    def __init__(self, layer_bytes: Sequence[int], window: int = 2) -> None:
        """`layer_bytes`: what each layer takes; `window`: how many may be there at once, 1 or more."""
        if window < 1 or not layer_bytes:
            raise ValueError(f"{len(layer_bytes)} layers, {window} of them at once: at least one of each")
        self._bytes = tuple(layer_bytes)
        self.slots = min(window, len(self._bytes))
        self._lying: dict[int, int] = {}
        self._last: int | None = None
        self._goes_up = True

    @property
    def resident(self) -> frozenset[int]:
        """Layers that are there, or on their way."""
        return frozenset(self._lying)

    @property
    def resident_bytes(self) -> int:
        """What they take."""
        return sum(self._bytes[layer] for layer in self._lying)

    def use(self, layer: int) -> tuple[OffloadAct, ...]:
        """What to do, in this order, for `layer` to be computed with and the next ones to be there in time.

        What follows `UseLayer` may be done at once: it waits for nothing that the use has to do.
        """
        self._turn(layer)
        wanted = self._wanted(layer)
        acts = [] if layer in self._lying else self._bring(layer, wanted)
        acts.append(UseLayer(layer, self._lying[layer]))
        for ahead in wanted[1:]:
            if ahead not in self._lying:
                acts += self._bring(ahead, wanted)
        return tuple(acts)

    def forget(self) -> tuple[OffloadAct, ...]:
        """Drop everything: what lies in its place is of another lease."""
        acts = tuple(DropLayer(layer, slot) for layer, slot in self._lying.items())
        self._lying, self._last, self._goes_up = {}, None, True
        return acts

    def _turn(self, layer: int) -> None:
        if not 0 <= layer < len(self._bytes):
            raise ValueError(f"layer {layer} of {len(self._bytes)}")
        last, self._last = self._last, layer
        if layer == 0:
            self._goes_up = True
        elif layer == len(self._bytes) - 1:
            self._goes_up = False
        elif last is not None and layer != last:
            self._goes_up = layer > last

    def _wanted(self, layer: int) -> list[int]:
        """`layer`, and those that come next, as many as there are slots: at an end it turns round."""
        found, step, place = [layer], 1 if self._goes_up else -1, layer
        while len(found) < self.slots:
            if not 0 <= place + step < len(self._bytes):
                step, place = -step, layer
            place += step
            found.append(place)
        return found

    def _bring(self, layer: int, wanted: Sequence[int]) -> list[OffloadAct]:
        """Fetch it, in the place of one that is not wanted where all are taken."""
        acts: list[OffloadAct] = []
        taken = set(self._lying.values())
        slot = next((one for one in range(self.slots) if one not in taken), None)
        if slot is None:
            behind = [other for other in self._lying if other not in wanted]
            gone = max(behind, key=lambda other: abs(other - layer))
            slot = self._lying.pop(gone)
            acts.append(DropLayer(gone, slot))
        self._lying[layer] = slot
        acts.append(FetchLayer(layer, slot))
        return acts
