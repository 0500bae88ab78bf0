"""What a tensor must look like: by name and shape, and as the pieces that a codec makes of it for the wire.

Loads no torch, so that settings and help texts can name codecs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from protocol.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

WireDtype = Literal["U8", "I8", "I16", "I32", "I64", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F32"]
"""As a safetensors header spells it."""
GRANULE = 65_536
"""Coordinates: spans that are decoded alone begin at a multiple of it, and every codec's groups divide it."""
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


@dataclass(frozen=True, slots=True)
class WireSpec:
    """One piece of an encoded tensor. Dtype and shape follow from the tensor's spec alone, never from its values."""

    dtype: WireDtype
    shape: tuple[int, ...]
    part: str = ""
    """What the piece is, where a codec makes several of one tensor: it lies on the wire as `NAME#PART`."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def submission_name(block: str, parameter: str) -> str:
    """What a block's parameter is called in a submission's payload."""
    return f"{block}/{parameter}"


class Encoded(NamedTuple):
    """What a codec makes of one tensor."""

    parts: tuple[Tensor, ...]
    """As the codec's `wire_specs` say, contiguous and in main memory."""
    state: Tensor | None = None
    """What the next encoding of the same tensor is to be given, as the error that this one made; None: nothing."""


class Spanned(Protocol):
    """A tensor that is made some values at a time: all of it is never in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    def spans(self) -> Iterator[Tensor]:
        """Its flattened values in order, fp32, contiguous and in main memory."""
