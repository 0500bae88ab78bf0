"""Codecs of a few bits a value, whose values share scales in groups.

Decides how a tensor is walked (whole granules at a time, so that temporaries stay in a processor's cache and a span
can be decoded alone), what is kept as state, and what is refused. A codec on top of it says how a group's scale is
found and how its values become bytes. Always: a piece's size follows from the number of values; scales are bf16; a
decoded value is one product of a small number and its group's scale, rounded once, so every device gives the same
bits; a value that is not finite is refused at encoding and never hidden.

Loads no torch before a tensor is at hand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import LocalError, MalformedMessage
from protocol.specs import GRANULE, Encoded, TensorSpec, WireSpec

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_NORMAL = 2.0**-126
"""Of fp32, and of bf16. Scales below it would have no reciprocal."""
LARGEST_BF16 = (2.0 - 2.0**-7) * 2.0**127
_HUGE_BYTES = 1 << 22
"""numpy asks for huge pages from here on; smaller tensors are left to torch, whose memory has been used before."""
_GRANULES_AT_ONCE = {"cpu": 2}
"""512 KiB of fp32 in each temporary: three of them lie in the second cache of most processors."""
_GRANULES_AT_ONCE_ELSEWHERE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedCodec(ABC):
    """A codec whose values share a bf16 scale in groups of `group`, which divides `GRANULE`."""

    name: str
    group: int
    has_state: bool
    state_decay: float = 1.0

    @property
    @abstractmethod
    def bits_per_parameter(self) -> float:
        """Of a large tensor, all in."""

    @abstractmethod
    def code_bytes(self, elements: int) -> int:
        """Bytes of the codes of the first `elements` values: whole granules, or all. Even."""

    @abstractmethod
    def _pack(self, wanted_GN: Tensor, elements: int, scales_G: Tensor, codes: Tensor) -> None:
        """Write the scales and codes of `elements` fp32 values; what follows them in the last group is zero."""

    @property
    def filled(self) -> int:
        """Codes are there for a multiple of so many values."""
        return self.group

    @abstractmethod
    def _unpack(self, codes: Tensor, levels: Tensor) -> None:
        """Write what the codes stand for, before scaling. MalformedMessage where that is nothing."""

    @property
    def scales_per_group(self) -> int:
        """How many scales a group has."""
        return 1

    def wire_specs(self, spec: TensorSpec) -> tuple[WireSpec, ...]:
        """Scales, and codes. Both have even sizes, so that in a file of many tensors scales lie at even offsets."""
        return (
            WireSpec("BF16", (self._scales(spec.elements),), part="scales"),
            WireSpec("U8", (self.code_bytes(spec.elements),), part="codes"),
        )

    def encode(self, tensor: Tensor, state: Tensor | None = None) -> Encoded:
        """On the tensor's device. Where there is state, it is what was wanted less what will be decoded, in fp32.

        MalformedMessage where a value, or its sum with what the state holds, is not finite.
        """
        import torch

        flat, owed = tensor.detach().reshape(-1), self._owed(tensor, state)
        scales = torch.empty(self._scales(flat.numel()), dtype=torch.bfloat16, device=flat.device)
        codes = torch.empty(self.code_bytes(flat.numel()), dtype=torch.uint8, device=flat.device)
        left = torch.empty(flat.shape, dtype=torch.float32, device=flat.device) if self.has_state else None
        for start, stop in _spans(0, flat.numel(), flat.device.type):
            wanted = flat[start:stop].to(torch.float32)
            if owed is not None:
                owed_here = owed[start:stop]
                wanted = wanted + (owed_here if self.state_decay == 1 else owed_here * self.state_decay)
            groups = slice(self._scales(start), self._scales(stop))
            coded = codes[self.code_bytes(start) : self.code_bytes(stop)]
            self._pack(self._in_groups(wanted), stop - start, scales[groups], coded)
            if left is not None:
                self._decode(scales[groups], coded, left[start:stop])
                torch.sub(wanted, left[start:stop], out=left[start:stop])
        return Encoded((scales.cpu(), codes.cpu()), None if left is None else left.reshape(tensor.shape))

    def decode(self, parts: tuple[Tensor, ...], spec: TensorSpec) -> Tensor:
        """Every span of it."""
        return self.decode_span(parts, spec, 0, spec.elements).reshape(spec.shape)

    def decode_span(self, parts: tuple[Tensor, ...], spec: TensorSpec, start: int, stop: int) -> Tensor:
        """On the device of the pieces. MalformedMessage where a code stands for no value."""
        del spec
        scales, codes = parts
        values = new_values(stop - start, codes)
        for begin, end in _spans(start, stop, codes.device.type):
            groups = scales[self._scales(begin) : self._scales(end)]
            coded = codes[self.code_bytes(begin) : self.code_bytes(end)]
            self._decode(groups, coded, values[begin - start : end - start])
        return values

    def decode_into(self, parts: tuple[Tensor, ...], values: Tensor) -> None:
        """What `decode` gives, in `values`' dtype, rounded once: its own memory is written to, and it is contiguous."""
        scales, codes = parts
        flat = values.view(-1)
        for begin, end in _spans(0, flat.numel(), codes.device.type):
            groups = scales[self._scales(begin) : self._scales(end)]
            self._decode(groups, codes[self.code_bytes(begin) : self.code_bytes(end)], flat[begin:end])

    def _groups(self, elements: int) -> int:
        return -(-elements // self.group)

    def _scales(self, elements: int) -> int:
        return self._groups(elements) * self.scales_per_group

    def _owed(self, tensor: Tensor, state: Tensor | None) -> Tensor | None:
        """What earlier encodings left, flat, on the tensor's device."""
        if state is None or not self.has_state:
            return None
        if state.shape != tensor.shape:
            raise LocalError(f"codec {self.name}: a state of {tuple(state.shape)} for a tensor {tuple(tensor.shape)}")
        return state.detach().reshape(-1).to(tensor.device)

    def _in_groups(self, wanted: Tensor) -> Tensor:
        """[groups, group], filled up with zeros."""
        import torch

        missing = -wanted.numel() % self.group
        return (torch.nn.functional.pad(wanted, (0, missing)) if missing else wanted).view(-1, self.group)

    def _decode(self, scales_G: Tensor, codes: Tensor, values: Tensor) -> None:
        missing = -values.numel() % self.filled
        if missing:
            levels = values.new_empty(values.numel() + missing)
            self._unpack(codes, levels)
            values.copy_(levels[: values.numel()])
        else:
            self._unpack(codes, values)
        scales = scales_G.to(values.dtype)
        groups, rest = divmod(values.numel(), self.group)
        values[: groups * self.group].view(-1, self.group).mul_(scales[:groups].unsqueeze(-1))
        if rest:
            values[-rest:].mul_(scales[-1])


def new_values(elements: int, like: Tensor) -> Tensor:
    """[elements] fp32 of any content, in new memory on `like`'s device: huge pages where it is large and there are any.

    In pages of 4 KiB that memory costs more time, the first time that it is written to, than what is decoded into it.
    """
    import torch

    if like.device.type != "cpu" or 4 * elements < _HUGE_BYTES:
        return torch.empty(elements, dtype=torch.float32, device=like.device)
    import numpy as np

    return torch.from_numpy(np.empty(elements, dtype=np.float32))  # numpy asks the system for them, torch does not


def require_finite(per_group: Tensor) -> None:
    """MalformedMessage unless all of them are, none below 0; a group's NaN or infinity must show in its number."""
    if not math.isfinite(float(per_group.amax())):
        raise MalformedMessage("a value that is not finite has no encoding")


def _spans(start: int, stop: int, device: str) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces of whole granules, and what is left of the last one as a piece of its own."""
    step = GRANULE * _GRANULES_AT_ONCE.get(device, _GRANULES_AT_ONCE_ELSEWHERE)
    whole = stop - stop % GRANULE
    for begin in range(start, whole, step):
        yield begin, min(begin + step, whole)
    if max(start, whole) < stop:
        yield max(start, whole), stop
