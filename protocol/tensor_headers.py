"""What surrounds the values of a safetensors file: names, dtypes, shapes and offsets, all known beforehand.

Decides the order of tensors (by name) and what their pieces are called on the wire; says in words how a header that was
refused differs from the one that was expected. Reads a refused header at most, and of that no more than its bound.
Loads no torch before a tensor is at hand: sizes are reckoned by processes that have none.

Format: https://huggingface.co/docs/safetensors (u64 header length, JSON header padded with spaces to 8 bytes, tensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

from protocol.codecs import Codec
from protocol.errors import LocalError
from protocol.specs import TensorSpec, WireDtype, WireSpec

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""A header of 100 000 tensors takes about 10 MiB; only read to explain a refusal."""
_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8


ITEM_BYTES: Final[Mapping[WireDtype, int]] = {
    "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4,
}  # fmt: skip


class PayloadSource(Protocol):
    """Where a payload lies."""

    total_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """A part of it."""


def by_name(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """In the order of the bytes; LocalError where two have one name."""
    ordered = sorted(specs)
    for first, second in pairwise(ordered):
        if first.name == second.name:
            raise LocalError(f"tensor {first.name} is expected twice")
    return ordered


def payload_size(specs: Sequence[TensorSpec], codec: Codec) -> int:
    """Exact bytes of the payload that holds tensors of these specs."""
    return len(header_of(specs, codec)) + values_bytes(specs, codec)


def values_bytes(specs: Sequence[TensorSpec], codec: Codec) -> int:
    """Of all their pieces."""
    return sum(wire_bytes(wire) for spec in specs for wire in codec.wire_specs(spec))


def wire_bytes(wire: WireSpec) -> int:
    """Of one piece."""
    return wire.elements * ITEM_BYTES[wire.dtype]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, as bytes."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _wires(ordered: Sequence[TensorSpec], codec: Codec) -> dict[str, WireSpec]:
    """Each piece of each tensor under its name on the wire, in the order of the bytes."""
    wires: dict[str, WireSpec] = {}
    for spec in ordered:
        for wire in codec.wire_specs(spec):
            name = f"{spec.name}#{wire.part}" if wire.part else spec.name
            if name in wires:
                raise LocalError(f"two tensors would be called {name} on the wire")
            wires[name] = wire
    return wires


def header_of(specs: Sequence[TensorSpec], codec: Codec) -> bytes:
    """All that comes before the values."""
    return header_of_wires(_wires(by_name(specs), codec))


def header_of_wires(wires: Mapping[str, WireSpec]) -> bytes:
    """As `header_of`, of pieces by name in the order of their bytes."""
    entries = {}
    offset = 0
    for name, wire in wires.items():
        end = offset + wire_bytes(wire)
        entries[name] = {"dtype": wire.dtype, "shape": list(wire.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def difference(source: PayloadSource, ordered: Sequence[TensorSpec], codec: Codec, expected: int) -> str:
    """What is wrong with a payload that is already refused, in words. Reads at most the header."""
    if source.total_bytes != expected:
        return f"payload has {source.total_bytes} bytes, expected {expected}"
    length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, source.total_bytes - _LENGTH_BYTES):
        return f"tensor header claims {length} bytes, expected {len(header_of(ordered, codec)) - _LENGTH_BYTES}"
    try:
        entries = json.loads(source.read(_LENGTH_BYTES, length))
    except (ValueError, RecursionError):
        return "tensor header is not JSON"
    if not isinstance(entries, dict):
        return "tensor header is not a JSON object"
    return _entry_difference(entries, ordered, codec)


def _entry_difference(entries: dict[str, object], ordered: Sequence[TensorSpec], codec: Codec) -> str:
    wires = _wires(ordered, codec)
    for name, wire in wires.items():
        entry = entries.get(name)
        if not isinstance(entry, dict):
            return f"tensor {name} is missing"
        if entry.get("dtype") != wire.dtype:
            return f"tensor {name} has dtype {_short(entry.get('dtype'))}, expected {wire.dtype}"
        if entry.get("shape") != list(wire.shape):
            return f"tensor {name} has shape {_short(entry.get('shape'))}, expected {list(wire.shape)}"
    unexpected = sorted(set(entries) - wires.keys())
    if unexpected:
        return f"tensor {_short(unexpected[0])} was not asked for"
    return "tensor header is not canonical: names sorted, offsets contiguous from 0, no metadata, spaces to 8 bytes"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
