"""How fp32 tensors are written for the wire: each codec is a dtype and the two conversions.

A codec is named in the run's description; everything decodes back to fp32. bf16 keeps fp32's range, so no scale is
needed, and rounds to nearest even with a relative error of at most 2**-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protocol.errors import MalformedMessage


class Codec(Protocol):
    """One encoding of fp32 tensors."""

    @property
    def name(self) -> str:
        """As the run's description spells it."""

    @property
    def wire_dtype(self) -> torch.dtype:
        """What the encoded tensors are made of."""

    @property
    def safetensors_dtype(self) -> str:
        """`wire_dtype` as a safetensors header spells it."""

    def encode(self, tensor: Tensor) -> Tensor:
        """`tensor` as contiguous `wire_dtype` in main memory, of the same shape."""

    def decode(self, tensor: Tensor) -> Tensor:
        """An encoded tensor as fp32, of the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CastCodec:
    """A codec that is a cast and nothing else."""

    name: str
    wire_dtype: torch.dtype
    safetensors_dtype: str

    def encode(self, tensor: Tensor) -> Tensor:
        """Cast to the wire dtype; a no-op view where it already is that."""
        return tensor.detach().to(device="cpu", dtype=self.wire_dtype).contiguous()

    def decode(self, tensor: Tensor) -> Tensor:
        """Cast back to fp32; exact for both dtypes."""
        return tensor.to(torch.float32)


FP32: Codec = CastCodec(name="fp32", wire_dtype=torch.float32, safetensors_dtype="F32")
BF16: Codec = CastCodec(name="bf16", wire_dtype=torch.bfloat16, safetensors_dtype="BF16")

_CODECS = {codec.name: codec for codec in (FP32, BF16)}


def codec_named(name: str) -> Codec:
    """The codec that `name` stands for; raises MalformedMessage listing the known ones."""
    codec = _CODECS.get(name)
    if codec is None:
        raise MalformedMessage(f"unknown codec {name[:32]!r}; known are {', '.join(sorted(_CODECS))}")
    return codec
