"""How fp32 tensors are written for the wire: the port that every codec fills, the codecs there are, and their table.

A codec is named in the run's description; everything decodes back to fp32. The bytes of a payload are known before it
exists: each codec says which pieces it makes of a tensor of a given shape. bf16 keeps fp32's range, so no scale is
needed, and rounds to nearest even with a relative error of at most 2**-8.

A new codec is a class of its own file and an entry of `CODECS`; tests/protocol/codec_contract.py is what it must pass.
Loads no torch before a tensor is at hand, and neither may a codec's file: settings are checked against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protocol.codecs_feedback import TERNARY, TWO_BIT
from protocol.codecs_grouped import new_values
from protocol.codecs_int import INT4, INT8
from protocol.codecs_top_k import TOP_K
from protocol.errors import MalformedMessage
from protocol.specs import GRANULE, Encoded, TensorSpec, WireDtype, WireSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BF16", "CODECS", "FP32", "GRANULE", "CastCodec", "Codec", "codec_named"]


class Codec(Protocol):
    """One encoding of fp32 tensors. Holds nothing of its own: the same arguments give the same bits."""

    @property
    def name(self) -> str:
        """As the run's description spells it."""

    @property
    def bits_per_parameter(self) -> float:
        """Of a large tensor, all in."""

    @property
    def has_state(self) -> bool:
        """Whether an encoding leaves something that the next one of the same tensor is to be given."""

    @property
    def state_decay(self) -> float:
        """What part of that the next encoding adds to its tensor; `encode` does it."""

    def wire_specs(self, spec: TensorSpec) -> tuple[WireSpec, ...]:
        """The pieces that a tensor of this spec is written as, in order; their parts have different names."""

    def encode(self, tensor: Tensor, state: Tensor | None = None) -> Encoded:
        """`tensor` in pieces as `wire_specs` says; `state` is what the same tensor's last encoding left, if any."""

    def decode(self, parts: tuple[Tensor, ...], spec: TensorSpec) -> Tensor:
        """A contiguous fp32 tensor of `spec.shape`, from pieces of the right dtypes and shapes and of any content.

        Allocates in proportion to the shape. MalformedMessage where the content is invalid (an index out of range);
        whether values are finite is for the caller to check.
        """

    def decode_span(self, parts: tuple[Tensor, ...], spec: TensorSpec, start: int, stop: int) -> Tensor:
        """[stop - start]: those coordinates of the flattened tensor, in fp32; what `decode` gives there, bit for bit.

        `start` is a multiple of `GRANULE`, and `stop` is one, too, or the end. Allocates in proportion to the span, so
        that pieces which lie in a file are read where they are needed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CastCodec:
    """A codec that is a cast and nothing else."""

    name: str
    wire_dtype: WireDtype
    torch_dtype: str
    """`wire_dtype` as torch spells it."""
    bits_per_parameter: float
    has_state: bool = False
    state_decay: float = 1.0

    def wire_specs(self, spec: TensorSpec) -> tuple[WireSpec, ...]:
        """One piece of the same shape."""
        return (WireSpec(dtype=self.wire_dtype, shape=spec.shape),)

    def encode(self, tensor: Tensor, state: Tensor | None = None) -> Encoded:
        """Cast to the wire dtype; a view without a copy where it already is that."""
        import torch

        del state
        return Encoded((tensor.detach().to(device="cpu", dtype=getattr(torch, self.torch_dtype)).contiguous(),))

    def decode(self, parts: tuple[Tensor, ...], spec: TensorSpec) -> Tensor:
        """Cast back to fp32; exact for both dtypes."""
        import torch

        del spec
        if parts[0].dtype == torch.float32:
            return parts[0]
        return new_values(parts[0].numel(), parts[0]).view(parts[0].shape).copy_(parts[0])

    def decode_span(self, parts: tuple[Tensor, ...], spec: TensorSpec, start: int, stop: int) -> Tensor:
        """As `decode`."""
        import torch

        del spec
        return parts[0].reshape(-1)[start:stop].to(torch.float32)


BF16: Codec = CastCodec(name="bf16", wire_dtype="BF16", torch_dtype="bfloat16", bits_per_parameter=16)
FP32: Codec = CastCodec(name="fp32", wire_dtype="F32", torch_dtype="float32", bits_per_parameter=32)

CODECS: dict[str, Codec] = {codec.name: codec for codec in (BF16, FP32, INT8, INT4, TWO_BIT, TERNARY, TOP_K)}
"""Every codec that a run may name."""


def codec_named(name: str) -> Codec:
    """The codec that `name` stands for; raises MalformedMessage listing the known ones."""
    codec = CODECS.get(name)
    if codec is None:
        raise MalformedMessage(f"unknown codec {name[:32]!r}; known are {', '.join(sorted(CODECS))}")
    return codec
