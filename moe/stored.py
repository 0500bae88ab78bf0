"""Tensors of a safetensors file where they lie: what its header says, checked, and values read a span at a time.

Decides whether a header can be believed. Reads only. Holds always: nothing is allocated that the file does not have the
bytes for; a tensor lies inside the file and overlaps no other; a file that fails or shrinks while it is read ends in
one sentence, not in a signal (it is read, never mapped).

Format: https://huggingface.co/docs/safetensors. The library's reader does not tell where a tensor begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from protocol.errors import ConfigError

SPAN: Final = 1 << 22
"""Values read at a time: 16 MiB as fp32."""
MAX_HEADER_BYTES: Final = 100_000_000
"""What the safetensors library itself takes."""
_MOST_DIMENSIONS: Final = 8
_LENGTH_BYTES: Final = 8

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. `stored_tensors` is the way to get one that can be read."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    """As the header spells it."""
    path: Path = Path()
    begin: int = 0
    """Its first byte in the file."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def value_bytes(self) -> int:
        """Bytes of one value."""
        return _DTYPES[self.dtype].itemsize

    @property
    def payload_bytes(self) -> int:
        """Bytes of its values."""
        return self.elements * self.value_bytes

    def read(self, start: int, stop: int) -> Tensor:
        """[stop - start]: those of its flattened values, as they are stored; ConfigError where they cannot be read."""
        values = torch.empty(stop - start, dtype=_DTYPES[self.dtype])
        self._read_into(values, start)
        return values

    def fill(self, values: Tensor, start: int) -> None:
        """Flattened values from `start` on into `values`, 1-D and in one piece, in whatever dtype that has."""
        if values.dtype == _DTYPES[self.dtype]:
            self._read_into(values, start)
            return
        for first in range(0, values.numel(), SPAN):
            part = values[first : first + SPAN]
            part.copy_(self.read(start + first, start + first + part.numel()))

    def _read_into(self, values: Tensor, start: int) -> None:
        target = values.view(torch.uint8).numpy().data
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.begin + start * self.value_bytes)
                while done < len(target):
                    got = file.readinto(target[done:])
                    if not got:
                        raise ConfigError(f"{self.path} became shorter while it was read: fetch it again")
                    done += got
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {(error.strerror or str(error)).lower()}") from error

    def spans(self, start: int, stop: int) -> Iterator[Tensor]:
        """Those values in fp32, some at a time."""
        for first in range(start, stop, SPAN):
            yield self.read(first, min(first + SPAN, stop)).to(torch.float32)

    def rows(self, start: int, stop: int) -> Tensor:
        """Those of its rows, whole, as they are stored."""
        width = math.prod(self.shape[1:])
        return self.read(start * width, stop * width).view(stop - start, *self.shape[1:])


def stored_tensors(path: Path) -> tuple[dict[str, StoredTensor], int]:
    """Every tensor of a safetensors file, and how many bytes were read; ConfigError says why it cannot be used."""
    try:
        total_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > min(MAX_HEADER_BYTES, total_bytes - _LENGTH_BYTES):
                raise _NoHeader(f"its header claims {length} bytes, the file has {total_bytes}")
            text = file.read(length)
        begin = _LENGTH_BYTES + length
        return _tensors(path, _entries(text), begin, total_bytes), begin
    except (OSError, _NoHeader) as error:
        raise ConfigError(
            f"{path} cannot be read as safetensors, it may be cut short: fetch it again ({error})"
        ) from error


class _NoHeader(Exception):
    """What is wrong with a header."""


def _entries(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise _NoHeader("its header is not JSON") from error
    if not isinstance(found, dict):
        raise _NoHeader("its header is not a JSON object")
    found.pop("__metadata__", None)
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NoHeader("its header has a name twice")
    return found


def _tensors(path: Path, entries: Mapping[str, Any], begin: int, total_bytes: int) -> dict[str, StoredTensor]:
    found = {name: _tensor(path, name, entry, begin) for name, entry in entries.items()}
    end = begin
    for tensor in sorted(found.values(), key=lambda one: (one.begin, one.payload_bytes)):
        if tensor.begin != end:
            raise _NoHeader(f"{tensor.name:.80} does not begin where the tensor before it ends")
        end += tensor.payload_bytes
    if end != total_bytes:
        raise _NoHeader(f"its tensors end at byte {end}, the file at {total_bytes}")
    return found


def _tensor(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    try:
        dtype, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _NoHeader(f"{name:.80} lacks its type, shape or place") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _NoHeader(f"{name:.80} is kept as {dtype!r:.20}, which is not read")
    sizes = [*shape, first, end] if isinstance(shape, list) else [None]
    if any(type(size) is not int or size < 0 for size in sizes) or len(sizes) > _MOST_DIMENSIONS + 2:
        raise _NoHeader(f"{name:.80} has no shape or place that can be")
    tensor = StoredTensor(name, tuple(shape), dtype, path, begin + first)
    if tensor.payload_bytes != end - first:
        raise _NoHeader(f"{name:.80} takes {tensor.payload_bytes} bytes, its place has {end - first}")
    return tensor
