"""A submission: how a pseudo-gradient becomes bytes, and comes back out of them, whole or one block of it.

Decides the names that tensors have in a payload (`BLOCK/PARAMETER`); the bytes themselves are `tensors.py`'s, in the
run's codec, and the payload's digest is that of all of its bytes. Always: what is decoded has exactly the names and
shapes that were leased, in fp32; a block that is read alone is what it is in the whole, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from torch import Tensor

from protocol.codecs import Codec
from protocol.ids import BlockId
from protocol.specs import TensorSpec, submission_name
from protocol.tensors import EncodedTensor, decode_tensors, encode_tensors, encoded_tensors

Blocks = Mapping[BlockId, Mapping[str, Tensor]]
"""Block, then parameter name, then tensor: a base version, or a pseudo-gradient."""
_Either = TypeVar("_Either", Tensor, EncodedTensor)
EncodedBlocks = Mapping[BlockId, Mapping[str, EncodedTensor]]
"""A pseudo-gradient in the same order, where its payload lies."""
Payload = bytes | bytearray | memoryview | Path | BinaryIO


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
    return _by_block(decode_tensors(payload, list(specs), codec), blocks)


def encoded_submission(
    payload: memoryview, specs: Iterable[TensorSpec], codec: Codec, blocks: Iterable[BlockId]
) -> dict[BlockId, dict[str, EncodedTensor]]:
    """A payload of `specs` by block, as `decode_submission`, of which nothing is decoded yet (`encoded_tensors`)."""
    return _by_block(encoded_tensors(payload, list(specs), codec), blocks)


def encoded_block(
    payload: memoryview, specs: Iterable[TensorSpec], codec: Codec, block: BlockId
) -> dict[str, EncodedTensor]:
    """One block of a payload of `specs`, as `encoded_submission` has it; the payload's size and header are checked."""
    prefix = submission_name(block, "")
    whole = list(specs)
    wanted = {spec.name for spec in whole if spec.name.startswith(prefix)}
    found = encoded_tensors(payload, whole, codec, only=wanted)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _by_block(flat: Mapping[str, _Either], blocks: Iterable[BlockId]) -> dict[BlockId, dict[str, _Either]]:
    found: dict[BlockId, dict[str, _Either]] = {block: {} for block in blocks}
    for name, tensor in flat.items():
        block, _, parameter = name.partition("/")
        found[BlockId(block)][parameter] = tensor
    return found
