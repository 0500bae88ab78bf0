"""Frozen experts that lie in main memory or in files and are brought to a device a layer ahead of their use.

Decides nothing but how `moe.offloading` is carried out: a layer is one copy, from pinned memory, in a stream of its
own. Holds always: a slot is written to when all that was asked of it is done, and read when it has come; main memory is
written to when no copy reads it any more. Of a file a layer's bytes go through as much pinned memory as the device has
slots. The device's own numbers are those of every other place (`moe.kept`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from moe.kept import FrozenSpec, KeptForm, LayerBlocks, Layers
from moe.offloading import DropLayer, FetchLayer, OffloadSchedule

AT_ONCE = 2
"""Layers that are there together: the one that is computed with, and the next."""


class CopyLane(Protocol):
    """The way from main memory to a device, one copy after the other, beside what the device computes."""

    def send(self, slot: int, source: Tensor, target: Tensor) -> None:
        """Copy into a slot when all that was asked of it before `free` is done."""

    def come(self, slot: int) -> None:
        """What is asked of the device from now on waits for the slot's last copy."""

    def free(self, slot: int) -> None:
        """Nothing more is asked of the slot: what was asked so far may still be running."""

    def drain(self, slot: int | None = None) -> None:
        """Wait here until the slot's last copy, or all, have ended: main memory may be written to."""


class PlainLane:
    """Of a device that copies and computes in order."""

    def send(self, slot: int, source: Tensor, target: Tensor) -> None:
        """At once."""
        del slot
        target.copy_(source)

    def come(self, slot: int) -> None:
        """It has."""

    def free(self, slot: int) -> None:
        """It is."""

    def drain(self, slot: int | None = None) -> None:
        """Nothing is on its way."""


class CudaLane:
    """A stream beside that in which the device computes."""

    def __init__(self, device: torch.device, slots: int) -> None:
        self._device = device
        streams: Any = torch.cuda
        self._stream = streams.Stream(device)
        self._came = [streams.Event() for _ in range(slots)]
        self._freed = [streams.Event() for _ in range(slots)]

    def send(self, slot: int, source: Tensor, target: Tensor) -> None:
        """In the stream."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._freed[slot])
            target.copy_(source, non_blocking=True)
            self._came[slot].record(self._stream)

    def come(self, slot: int) -> None:
        """For the stream that computes."""
        torch.cuda.current_stream(self._device).wait_event(self._came[slot])

    def free(self, slot: int) -> None:
        """After what was asked of the stream that computes."""
        self._freed[slot].record(torch.cuda.current_stream(self._device))

    def drain(self, slot: int | None = None) -> None:
        """Of the host."""
        if slot is None:
            self._stream.synchronize()
        else:
            self._came[slot].synchronize()


def lane_to(device: torch.device, slots: int) -> CopyLane:
    """What there is for this kind of device."""
    return CudaLane(device, slots) if device.type == "cuda" else PlainLane()


class _Source(Protocol):
    """Main memory that a layer is sent from."""

    def take(self, blocks: LayerBlocks) -> None:
        """Of these frozen columns."""

    def memory(self, layer: int, slot: int, lane: CopyLane) -> Tensor:
        """A layer's bytes, on the way to `slot`."""


class HostSource:
    """All layers, in pinned memory."""

    def __init__(self, layers: Layers, form: KeptForm) -> None:
        self._layers, self._form = layers, form
        self._memory = [pinned_memory(form.layer_bytes(specs)) for specs in layers]

    def take(self, blocks: LayerBlocks) -> None:
        """Copied."""
        for memory, specs, found in zip(self._memory, self._layers, blocks, strict=False):  # none, to let go
            self._form.fill(self._form.pieces_in(memory, specs), found)

    def memory(self, layer: int, slot: int, lane: CopyLane) -> Tensor:
        """Where it lies."""
        del slot, lane
        return self._memory[layer]


class FileSource:
    """As many layers as there are slots, read from blocks' files when they are sent."""

    def __init__(self, layers: Layers, form: KeptForm, slots: int) -> None:
        self._layers, self._form = layers, form
        largest = max(form.layer_bytes(specs) for specs in layers)
        self._memory = [pinned_memory(largest) for _ in range(slots)]
        self._blocks: LayerBlocks = ()

    def take(self, blocks: LayerBlocks) -> None:
        """Kept as they are."""
        self._blocks = tuple(blocks)

    def memory(self, layer: int, slot: int, lane: CopyLane) -> Tensor:
        """Read."""
        lane.drain(slot)
        specs = self._layers[layer]
        memory = self._memory[slot][: self._form.layer_bytes(specs)]
        self._form.fill(self._form.pieces_in(memory, specs), self._blocks[layer])
        return memory


class BroughtStore:
    """Frozen experts of which a few layers are on the device."""

    def __init__(
        self, source: _Source, layers: Layers, form: KeptForm, device: torch.device, lane: CopyLane, slots: int
    ) -> None:
        sizes = [form.layer_bytes(specs) for specs in layers]
        self._source, self._layers, self._form, self._lane = source, layers, form, lane
        self._schedule = OffloadSchedule(sizes, slots)
        self._memory = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(slots)]
        self._sizes = sizes
        self._at: tuple[int, int] | None = None

    def take(self, blocks: LayerBlocks) -> None:
        """In main memory; what is on the device is forgotten."""
        self._forget()
        self._source.take(blocks)

    def values(self, layer: int, spec: FrozenSpec, first: int, last: int, workspace: Tensor) -> Tensor:
        """Decoded on the device, when it has come; the next layer is sent."""
        if self._at is None or self._at[0] != layer:
            self._at = layer, self._bring(layer)
        pieces = self._form.pieces_in(self._memory[self._at[1]], self._layers[layer])
        return self._form.decoded(pieces, spec, first, last, workspace)

    def let_go(self) -> None:
        """Nothing is on its way any more, and files may go."""
        self._forget()
        self._source.take(())

    def _forget(self) -> None:
        for act in self._schedule.forget():
            self._lane.free(act.slot)
        self._lane.drain()
        self._at = None

    def _bring(self, layer: int) -> int:
        """Carry out what the schedule says; the slot that the layer lies in."""
        found = -1
        for act in self._schedule.use(layer):
            if isinstance(act, FetchLayer):
                source = self._source.memory(act.layer, act.slot, self._lane)
                self._lane.send(act.slot, source, self._memory[act.slot][: self._sizes[act.layer]])
            elif isinstance(act, DropLayer):
                self._lane.free(act.slot)
            else:
                self._lane.come(act.slot)
                found = act.slot
        return found


def slots_for(layers: Sequence[object]) -> int:
    """How many layers are on the device at once."""
    return min(AT_ONCE, len(layers))


def pinned_memory(size: int) -> Tensor:
    """[size] uint8 that a device can read by itself, where the system gives such."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)
