"""Tensors as bytes: one safetensors file whose every byte but the values is known beforehand.

Both sides derive the header from the specs that were leased, so a payload is accepted only if its header is exactly
that one and its size exactly the expected size; nothing is allocated before. Tensors are decoded whole, or stay where
they lie (a mapped file) and are decoded a span at a time. Written by hand, not by the safetensors library, because the
size is agreed before the bytes exist, and the library's spacing is no promise; what is written here any safetensors
reader opens. Finiteness is for the caller to check. Little-endian machines only, as the format is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from protocol.codecs import FP32, CastCodec, Codec
from protocol.errors import LocalError, MalformedMessage
from protocol.specs import Spanned, TensorSpec, WireDtype, WireSpec
from protocol.tensor_headers import by_name, bytes_of, difference, header_of, values_bytes, wire_bytes

_Found = TypeVar("_Found")

DTYPES: Mapping[WireDtype, torch.dtype] = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


def encode_parts(
    tensors: Mapping[str, Tensor], codec: Codec, states: MutableMapping[str, Tensor] | None = None
) -> Iterator[bytes | memoryview]:
    """The payload in pieces (header, then each tensor by name), for a writer that wants no second copy in memory.

    `states` holds what a codec left of earlier encodings of the same tensors, by name, and is brought up to date.
    """
    specs = [TensorSpec(name, tuple(tensors[name].shape)) for name in sorted(tensors)]
    yield from encode_each(specs, tensors.__getitem__, codec, states)


def encode_each(
    specs: Sequence[TensorSpec],
    tensor_of: Callable[[str], Tensor],
    codec: Codec,
    states: MutableMapping[str, Tensor] | None = None,
) -> Iterator[bytes | memoryview]:
    """As `encode_parts`, of tensors that are asked for one at a time, when their turn comes."""
    ordered = by_name(specs)
    yield header_of(ordered, codec)
    for spec in ordered:
        pieces, state = encode_one(spec, tensor_of(spec.name), codec, None if states is None else states.get(spec.name))
        if states is not None and state is not None:
            states[spec.name] = state
        yield from pieces


def encode_one(
    spec: TensorSpec, tensor: Tensor, codec: Codec, state: Tensor | None = None
) -> tuple[Iterator[memoryview], Tensor | None]:
    """What a payload has of one tensor, for whoever writes several at a time; and what its encoding leaves, if any."""
    encoded = codec.encode(tensor, state)
    return map(bytes_of, _as_promised(encoded.parts, spec, codec)), encoded.state


def fp32_parts(tensors: Mapping[str, Tensor | Spanned]) -> Iterator[bytes | memoryview]:
    """As `encode_parts` in fp32, of tensors that may be made a span at a time. LocalError where one has too few."""
    specs = by_name([TensorSpec(name, tuple(tensor.shape)) for name, tensor in tensors.items()])
    yield header_of(specs, FP32)
    for spec in specs:
        tensor = tensors[spec.name]
        if isinstance(tensor, Tensor):
            yield from map(bytes_of, FP32.encode(tensor).parts)
            continue
        written = 0
        for span in tensor.spans():
            yield bytes_of(span)
            written += span.numel()
        if written != spec.elements:
            raise LocalError(f"tensor {spec.name}: {written} values of {spec.elements} were made")


def encode_tensors(
    tensors: Mapping[str, Tensor], codec: Codec, states: MutableMapping[str, Tensor] | None = None
) -> bytes:
    """One safetensors file: dtypes by `codec`, names in order, the same bytes for the same tensors (and states)."""
    payload = io.BytesIO()  # joined, all the pieces would be in memory beside what becomes of them
    for piece in encode_parts(tensors, codec, states):
        payload.write(piece)
    return payload.getvalue()


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


def tensor_readers(file: BinaryIO, specs: Sequence[TensorSpec], codec: Codec) -> dict[str, Callable[[], Tensor]]:
    """What reads each tensor, when it is wanted, from a file that stays; refuses as `decode_tensors` does."""
    source = _FileSource(file)
    return _each(source, specs, codec, None, lambda at, spec: partial(_read_tensor, source, at, spec, codec))


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """One tensor where its payload lies, in its codec's pieces: nothing of it is in memory before it is asked for."""

    spec: TensorSpec
    parts: tuple[Tensor, ...]
    """Views of the payload; never written to."""
    codec: Codec

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.spec.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of what is decoded."""
        return torch.float32

    def span(self, start: int, stop: int) -> Tensor:
        """[stop - start] of the flattened values; see `Codec.decode_span`, also for what it raises."""
        return self.codec.decode_span(self.parts, self.spec, start, stop)

    @property
    def uncast(self) -> Tensor | None:
        """All values, flat, where they lie, if these are numbers of another dtype and decoding is a cast; else None."""
        return self.parts[0].reshape(-1) if isinstance(self.codec, CastCodec) else None

    def whole(self) -> Tensor:
        """All of it, in its shape: a view of the payload where the codec changes nothing (fp32)."""
        return _as_asked(self.codec.decode(self.parts, self.spec), self.spec, self.codec)


def encoded_tensors(
    payload: memoryview, specs: Sequence[TensorSpec], codec: Codec, *, only: Collection[str] | None = None
) -> dict[str, EncodedTensor]:
    """Tensors by name, where they lie in `payload`, a writable buffer that they keep; refuses as `decode_tensors` does.

    Pieces need not begin at a multiple of their dtype's size, which costs little on the machines that torch runs on.
    """

    def lying(offset: int, spec: TensorSpec) -> EncodedTensor:
        parts = []
        for wire in codec.wire_specs(spec):
            parts.append(_lying(payload, offset, wire))
            offset += wire_bytes(wire)
        return EncodedTensor(spec, tuple(parts), codec)

    return _each(_MemorySource(payload), specs, codec, only, lying)


def _lying(payload: memoryview, offset: int, wire: WireSpec) -> Tensor:
    dtype = DTYPES[wire.dtype]
    if not wire.elements:
        return torch.empty(wire.shape, dtype=dtype)
    return torch.frombuffer(payload, dtype=dtype, count=wire.elements, offset=offset).view(wire.shape)


def _decode(
    source: _FileSource | _MemorySource, specs: Sequence[TensorSpec], codec: Codec, only: Collection[str] | None
) -> dict[str, Tensor]:
    return _each(source, specs, codec, only, lambda offset, spec: _read_tensor(source, offset, spec, codec))


def _each(
    source: _FileSource | _MemorySource,
    specs: Sequence[TensorSpec],
    codec: Codec,
    only: Collection[str] | None,
    read: Callable[[int, TensorSpec], _Found],
) -> dict[str, _Found]:
    """What `read` makes of each tensor's offset and spec, once the payload's size and header are what they must be."""
    ordered = by_name(specs)
    header = header_of(ordered, codec)
    expected = len(header) + values_bytes(ordered, codec)
    if source.total_bytes != expected or source.read(0, len(header)) != header:
        raise MalformedMessage(difference(source, ordered, codec, expected))
    found = {}
    offset = len(header)
    for spec in ordered:
        if only is None or spec.name in only:
            found[spec.name] = read(offset, spec)
        offset += values_bytes([spec], codec)
    return found


def _read_tensor(source: _FileSource | _MemorySource, offset: int, spec: TensorSpec, codec: Codec) -> Tensor:
    parts: list[Tensor] = []
    for wire in codec.wire_specs(spec):
        parts.append(torch.empty(wire.shape, dtype=DTYPES[wire.dtype]))
        target = bytes_of(parts[-1])
        source.read_into(target, offset)
        offset += len(target)
    return _as_asked(codec.decode(tuple(parts), spec), spec, codec)


def _as_asked(tensor: Tensor, spec: TensorSpec, codec: Codec) -> Tensor:
    if tensor.dtype != torch.float32 or tuple(tensor.shape) != spec.shape:
        raise LocalError(f"codec {codec.name} made {tensor.dtype} {tuple(tensor.shape)} of {spec.name} {spec.shape}")
    return tensor


def _as_promised(parts: tuple[Tensor, ...], spec: TensorSpec, codec: Codec) -> tuple[Tensor, ...]:
    """`parts`, which everybody else would refuse if they were not as the codec says beforehand."""
    got = [(part.dtype, tuple(part.shape)) for part in parts]
    expected = [(DTYPES[wire.dtype], wire.shape) for wire in codec.wire_specs(spec)]
    if got != expected:
        raise LocalError(f"codec {codec.name} wrote {spec.name} as {got}, promised were {expected}")
    return parts


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
