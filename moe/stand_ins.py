"""How experts that a shard does not hold stand in: in which numbers, and where these lie while nobody computes.

Decides what is computed with: a function of the recipe's `frozen_dtype` and of a block's bytes as they were leased, and
of nothing else, so that a replay and every other worker come to the same. Bytes that came in the codec that they are
kept in stay what they are; others are encoded once, from what they decode to. Biases are never coded. *Where* they lie
is the machine's choice and changes no number. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from moe.families import Family
from moe.second_card import SecondCard
from protocol.codecs import CODECS
from protocol.codecs_int import IntCodec
from protocol.encoded_block import lying_in
from protocol.errors import LocalError
from protocol.recipe import AS_COMPUTED
from protocol.specs import TensorSpec

DECODED: Final = "decoded"
"""On the device, as they are multiplied, in one tensor with the held ones: nothing is made of them in a step."""
DEVICE: Final = "device"
"""On the device, as the recipe keeps them: coded, if it codes them, else as `DECODED`."""
HOST: Final = "host"
"""In main memory, brought to the device a layer ahead. Where the device computes in main memory, as `DEVICE`."""
MAPPED: Final = "mapped"
"""In the files that their blocks were fetched into, read when they are needed: a layer ahead, where there is a device
to bring them to."""
PLACES: Final = (DECODED, DEVICE, HOST, MAPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """What stands in for experts that are not held."""

    dtype: str = AS_COMPUTED
    """A recipe's `frozen_dtype`."""
    place: str = DEVICE
    """One of `PLACES`: this machine's choice."""
    second: SecondCard | None = None
    """Of `HOST`: where the first layers lie, as many as it holds, and are multiplied."""

    @property
    def codec(self) -> IntCodec | None:
        """What they are coded in; None: they are numbers. LocalError for a dtype that is none."""
        if self.dtype == AS_COMPUTED:
            return None
        codec = CODECS.get(self.dtype)
        if not isinstance(codec, IntCodec):
            raise LocalError(f"frozen experts cannot be kept in {self.dtype!r:.40}")
        return codec

    @property
    def are_whole(self) -> bool:
        """Whether they lie decoded beside the held ones."""
        return self.place == DECODED or (self.place == DEVICE and self.dtype == AS_COMPUTED)

    def values(self, block: Mapping[str, Tensor], name: str, family: Family) -> Tensor:
        """What the expert tensor `name` of a column that is not held is computed with, fp32."""
        codec = self.codec
        if codec is None or not is_coded(family, name):
            return block[name]
        lying = lying_in(block, name)
        if lying is not None and lying.codec.name == codec.name:
            return block[name]
        values = block[name]
        return codec.decode(codec.encode(values).parts, TensorSpec(name, tuple(values.shape)))


AS_THEY_CAME: Final = StandIns()


def is_coded(family: Family, name: str) -> bool:
    """Whether the column tensor `name` is one of those that codes are made of: experts' matrices."""
    return any(part.matrices and name.endswith(part.suffix) for part in family.experts)


def coded_parts(block: Mapping[str, Tensor], name: str, codec: IntCodec) -> tuple[Tensor, ...]:
    """Scales and codes of a block's tensor, in main memory: those that came, where they came in this codec."""
    lying = lying_in(block, name)
    if lying is not None and lying.codec.name == codec.name:
        return lying.parts
    return codec.encode(block[name]).parts
