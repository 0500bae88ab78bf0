"""A submission: how a pseudo-gradient becomes bytes, and comes back out of them, whole or one block of it.

Decides the names that tensors have in a payload (`BLOCK/PARAMETER`); the bytes themselves are `tensors.py`'s, in the
run's codec, and the payload's digest is that of all of its bytes. Always: what is decoded has exactly the names and
shapes that were leased, in fp32; a block that is read alone is what it is in the whole, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from protocol.codecs import Codec
from protocol.ids import BlockId
from protocol.specs import TensorSpec
from protocol.tensors import decode_tensors, encode_tensors

Blocks = Mapping[BlockId, Mapping[str, Tensor]]
"""Block, then parameter name, then tensor: a base version, or a pseudo-gradient."""
Payload = bytes | bytearray | memoryview | Path | BinaryIO


def submission_name(block: BlockId, parameter: str) -> str:
    """What a block's parameter is called in a payload."""
    return f"{block}/{parameter}"


def encode_submission(
    pseudo_gradient: Blocks, codec: Codec, states: MutableMapping[str, Tensor] | None = None
) -> bytes:
    """The payload of a pseudo-gradient; `states`, by the names in it, are read and replaced where a codec has some."""
    flat = {
        submission_name(block, parameter): tensor
        for block, tensors in pseudo_gradient.items()
        for parameter, tensor in tensors.items()
    }
    return encode_tensors(flat, codec, states)


def decode_submission(
    payload: Payload, specs: Iterable[TensorSpec], codec: Codec, blocks: Iterable[BlockId]
) -> dict[BlockId, dict[str, Tensor]]:
    """A payload of `specs` by block, in the order of `blocks`, which must be all of its blocks.

    MalformedMessage, before allocating, where it is anything else.
    """
    found: dict[BlockId, dict[str, Tensor]] = {block: {} for block in blocks}
    for name, tensor in decode_tensors(payload, list(specs), codec).items():
        block, _, parameter = name.partition("/")
        found[BlockId(block)][parameter] = tensor
    return found


def decode_block(payload: Payload, specs: Iterable[TensorSpec], codec: Codec, block: BlockId) -> dict[str, Tensor]:
    """One block of a payload of `specs`: the payload's size and header are checked, and only the block's bytes read."""
    prefix = submission_name(block, "")
    whole = list(specs)
    wanted = {spec.name for spec in whole if spec.name.startswith(prefix)}
    found = decode_tensors(payload, whole, codec, only=wanted)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
