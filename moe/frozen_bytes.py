"""What experts that a shard does not hold take in memory, by what they are kept in and where they lie.

Decides nothing: it adds up what `moe.frozen` and `moe.brought` allocate, and a test holds the two together. Allocates
nothing. Of files that are mapped the system keeps what it has room for, which is nobody's memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe.brought import slots_for
from moe.frozen import frozen_layers, on_second, workspace_elements
from moe.kept import KeptForm
from moe.layout import FP32_BYTES, Layout
from moe.stand_ins import DECODED, DEVICE, HOST, StandIns, is_coded
from protocol.residency import ABSENT


class FrozenBytes(NamedTuple):
    """Of one shard."""

    device: int
    """Where products are taken: on a CPU that is main memory."""
    host: int
    """Main memory beside a device that has its own."""
    second: int = 0
    """Of a second device."""


def frozen_bytes(
    layout: Layout, columns_held: int, stand_ins: StandIns, *, compute_bytes: int = FP32_BYTES, on_cpu: bool = True
) -> FrozenBytes:
    """Of the columns that a shard of so many does not hold, with what is decoded of them at a time."""
    count = 0 if layout.residency == ABSENT else layout.columns - columns_held
    if not count:
        return FrozenBytes(0, 0)
    one, held = layout.specs_of(0), layout.crowded(columns_held)
    coded = [spec for spec in one if is_coded(layout.family, spec.name)]
    whole = sum(spec.payload_bytes for spec in one) // FP32_BYTES
    biases = (whole - sum(spec.payload_bytes for spec in coded) // FP32_BYTES) * count * compute_bytes
    if stand_ins.are_whole:
        return FrozenBytes(whole * count * compute_bytes, 0)
    dtype = torch.float32 if compute_bytes == FP32_BYTES else torch.bfloat16
    form = KeptForm(codec=stand_ins.codec, dtype=dtype)
    layers = [list(specs.values()) for specs in frozen_layers(layout, held).values()]
    sizes = [form.layer_bytes(specs) for specs in layers]
    passing = biases + workspace_elements(layers, compute_bytes) * compute_bytes
    if stand_ins.place in (DECODED, DEVICE) or (stand_ins.place == HOST and on_cpu):
        return FrozenBytes(passing + sum(sizes), 0)
    if on_cpu:
        return FrozenBytes(passing, 0)
    away = on_second(layers, form, stand_ins)
    second = passing - biases + sum(sizes[:away]) if away else 0
    if not (left := sizes[away:]):
        return FrozenBytes(biases, 0, second)
    brought = slots_for(left) * max(left)
    return FrozenBytes(passing + brought, sum(left) if stand_ins.place == HOST else brought, second)
