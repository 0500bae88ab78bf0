"""From one published block to the next: what is published, how the step to it is written, and how it is taken.

Decides the arithmetic, to the bit, so that everybody who has one block comes to the same next one: the decoded step is
rounded to fp32 as its codec says, and only then added, value by value, to the block in fp32, rounding to nearest even,
with denormal numbers kept. Two roundings, never a fused multiply-add (two calls of torch, on any device). What is
published is the sum, not what the coordinator aims at: the difference, `master` less block, is carried into the next
step, so that what a coarse codec rounds away is late and not lost (error feedback: Seide et al. 2014, "1-Bit Stochastic
Gradient Descent"). A step that cannot be written, or leads out of the finite numbers, is none: the block is published
whole. Touches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.codecs import FP32, GRANULE, Codec
from protocol.errors import BarnraiseError
from protocol.specs import TensorSpec
from protocol.submission import Payload
from protocol.tensors import decode_tensors, encode_each

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One block as it is published."""

    block: Tensors
    """fp32; `master` itself where there is no step."""
    delta: bytes | None = None
    """The payload of the step to it; None: it is to be had whole alone."""
    is_exact: bool = True
    """Whether `block` is the master, bit for bit, so that nothing is carried."""


def published(base: Mapping[str, Tensor], master: Mapping[str, Tensor], codec: Codec) -> Publication:
    """What is published of `master` where `base` was before: fp32 tensors of the same names and shapes, all finite.

    Beside it, the step and one tensor are in memory.
    """
    whole = Publication(block=dict(master))
    if codec.name == FP32.name:
        return whole
    specs = [TensorSpec(name, tuple(tensor.shape)) for name, tensor in master.items()]
    try:
        delta = b"".join(encode_each(specs, lambda name: master[name] - base[name], codec))
        block = stepped(base, delta, specs, codec)
    except BarnraiseError:  # a codec refuses what it cannot write: a difference that is too large for fp32, say
        return whole
    # one norm sees a value that is not finite; it overflows above 1e19, too, where nobody misses a step
    if not all(math.isfinite(float(torch.linalg.vector_norm(tensor))) for tensor in block.values()):
        return whole
    exact = all(_same_bits(block[name], master[name]) for name in block)
    return Publication(block=block, delta=delta, is_exact=exact)


def stepped(base: Mapping[str, Tensor], delta: Payload, specs: Sequence[TensorSpec], codec: Codec) -> Tensors:
    """The block that `delta` leads to from `base`: fp32 tensors by name, on the device of `base`.

    MalformedMessage, before allocating, where `delta` is not exactly `specs` in `codec`. Whether the block is the right
    one only its digest tells.
    """
    decode_tensors(delta, specs, codec, only=())  # refuses all of it before anything is made of a part
    return {spec.name: _added(base[spec.name], _one(delta, spec.name, specs, codec)) for spec in specs}


def stepped_parts(
    base: Payload, deltas: Sequence[tuple[Payload, Codec]], specs: Sequence[TensorSpec]
) -> Iterator[bytes | memoryview]:
    """The payload of the block that `deltas`, the earliest first, lead to from the payload `base`: in pieces.

    One tensor is in memory at a time where payloads are files. MalformedMessage as `stepped` raises it.
    """

    def tensor_of(name: str) -> Tensor:
        tensor = _one(base, name, specs, FP32)
        for delta, codec in deltas:
            tensor = _added(tensor, _one(delta, name, specs, codec))
        return tensor

    yield from encode_each(specs, tensor_of, FP32)


def _one(payload: Payload, name: str, specs: Sequence[TensorSpec], codec: Codec) -> Tensor:
    return decode_tensors(payload, specs, codec, only={name})[name]


def _added(value: Tensor, step: Tensor) -> Tensor:
    return torch.add(value, step.to(value.device))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """By granules, of which the first differs as a rule."""
    one_P, other_P = (tensor.contiguous().view(-1).view(torch.int32) for tensor in (one, other))
    return all(
        torch.equal(one_P[start : start + GRANULE], other_P[start : start + GRANULE])
        for start in range(0, one_P.numel(), GRANULE)
    )
