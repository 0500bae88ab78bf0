"""Tensors as bytes: one safetensors file whose every byte but the values is known beforehand.

Both sides derive the header from the specs that were leased, so a payload is accepted only if its header is exactly
that one and its size exactly the expected size; nothing is allocated before. Written by hand, not by the safetensors
library, because the size is agreed before the bytes exist, and the library's spacing is no promise; what is written
here any safetensors reader opens. Finiteness is for the caller to check. Little-endian machines only, as the format
is.

Format: https://huggingface.co/docs/safetensors (u64 header length, JSON header padded with spaces to 8 bytes, tensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from protocol.codecs import Codec
from protocol.errors import LocalError, MalformedMessage

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""A header of 100 000 tensors takes about 10 MiB; only read to explain a refusal."""
_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """Name and shape that a tensor must have."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or self.name == "__metadata__" or not self.name.isprintable():
            raise LocalError(f"not a tensor name: {self.name!r}")
        if len(self.shape) > _MAX_DIMENSIONS or any(size < 0 for size in self.shape):
            raise LocalError(f"tensor {self.name}: not a shape: {self.shape}")

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def payload_size(specs: Sequence[TensorSpec], codec: Codec) -> int:
    """Exact bytes of the payload that holds tensors of these specs."""
    return len(_header(_by_name(specs), codec)) + _values_bytes(specs, codec)


def encode_parts(tensors: Mapping[str, Tensor], codec: Codec) -> Iterator[bytes | memoryview]:
    """The payload in pieces (header, then each tensor by name), for a writer that wants no second copy in memory."""
    yield _header([TensorSpec(name, tuple(tensors[name].shape)) for name in sorted(tensors)], codec)
    for name in sorted(tensors):
        yield _bytes_of(codec.encode(tensors[name]))


def encode_tensors(tensors: Mapping[str, Tensor], codec: Codec) -> bytes:
    """One safetensors file: wire dtype by `codec`, names in order, the same bytes for the same tensors."""
    return b"".join(encode_parts(tensors, codec))


def decode_tensors(
    payload: bytes | bytearray | memoryview | Path | BinaryIO,
    specs: Sequence[TensorSpec],
    codec: Codec,
    *,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """fp32 tensors by name; MalformedMessage, before allocating, unless `payload` is exactly `specs` in `codec`.

    `only` names those that are wanted: no others are read.
    """
    if isinstance(payload, Path):
        with payload.open("rb") as file:
            return _decode(_FileSource(file), specs, codec, only)
    if isinstance(payload, bytes | bytearray | memoryview):
        return _decode(_MemorySource(memoryview(payload).cast("B")), specs, codec, only)
    return _decode(_FileSource(payload), specs, codec, only)


def _decode(
    source: _FileSource | _MemorySource, specs: Sequence[TensorSpec], codec: Codec, only: Collection[str] | None
) -> dict[str, Tensor]:
    ordered = _by_name(specs)
    header = _header(ordered, codec)
    expected = len(header) + _values_bytes(specs, codec)
    if source.total_bytes != expected or source.read(0, len(header)) != header:
        raise MalformedMessage(_difference(source, ordered, codec, expected))
    decoded = {}
    offset = len(header)
    for spec in ordered:
        if only is None or spec.name in only:
            encoded = torch.empty(spec.shape, dtype=codec.wire_dtype)
            source.read_into(_bytes_of(encoded), offset)
            decoded[spec.name] = codec.decode(encoded)
        offset += spec.elements * codec.wire_dtype.itemsize
    return decoded


def _by_name(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    ordered = sorted(specs)
    for first, second in pairwise(ordered):
        if first.name == second.name:
            raise LocalError(f"tensor {first.name} is expected twice")
    return ordered


def _values_bytes(specs: Sequence[TensorSpec], codec: Codec) -> int:
    return sum(spec.elements for spec in specs) * codec.wire_dtype.itemsize


def _header(ordered: Sequence[TensorSpec], codec: Codec) -> bytes:
    entries = {}
    offset = 0
    for spec in ordered:
        end = offset + spec.elements * codec.wire_dtype.itemsize
        entries[spec.name] = {
            "dtype": codec.safetensors_dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class _MemorySource:
    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.total_bytes = len(view)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])

    def read_into(self, target: memoryview, offset: int) -> None:
        target[:] = self._view[offset : offset + len(target)]


class _FileSource:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total_bytes = file.seek(0, 2)

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def read_into(self, target: memoryview, offset: int) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(target):
            got = self._file.readinto(target[done:])  # type: ignore[attr-defined]  # a buffered file has it
            if not got:
                raise LocalError("a payload became shorter while it was read")
            done += got


def _difference(source: _FileSource | _MemorySource, ordered: Sequence[TensorSpec], codec: Codec, expected: int) -> str:
    """What is wrong with a payload that is already refused, in words. Reads at most the header."""
    if source.total_bytes != expected:
        return f"payload has {source.total_bytes} bytes, expected {expected}"
    length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, source.total_bytes - _LENGTH_BYTES):
        return f"tensor header claims {length} bytes, expected {len(_header(ordered, codec)) - _LENGTH_BYTES}"
    try:
        entries = json.loads(source.read(_LENGTH_BYTES, length))
    except (ValueError, RecursionError):
        return "tensor header is not JSON"
    if not isinstance(entries, dict):
        return "tensor header is not a JSON object"
    return _entry_difference(entries, ordered, codec)


def _entry_difference(entries: dict[str, object], ordered: Sequence[TensorSpec], codec: Codec) -> str:
    for spec in ordered:
        entry = entries.get(spec.name)
        if not isinstance(entry, dict):
            return f"tensor {spec.name} is missing"
        if entry.get("dtype") != codec.safetensors_dtype:
            return f"tensor {spec.name} has dtype {_short(entry.get('dtype'))}, expected {codec.safetensors_dtype}"
        if entry.get("shape") != list(spec.shape):
            return f"tensor {spec.name} has shape {_short(entry.get('shape'))}, expected {list(spec.shape)}"
    unexpected = sorted(set(entries) - {spec.name for spec in ordered})
    if unexpected:
        return f"tensor {_short(unexpected[0])} was not asked for"
    return "tensor header is not canonical: names sorted, offsets contiguous from 0, no metadata, spaces to 8 bytes"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
