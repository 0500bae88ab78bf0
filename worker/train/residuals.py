"""A pseudo-gradient as it is sent, and what its encoding loses: the residual, which the next encoding is given.

Decides what a residual's bytes are: for each block one safetensors file in fp32, so that its digest is the same whoever
computes it, and what went in, what is decoded and what comes out add up to the rounding of fp32. Always: a residual
goes in where the lease names it, and it is here, whole; one that is not finite is none; what is left of a submission
that comes to nothing grows to `MOST_RESIDUAL` times the length of what was computed at most, so that refusals do not
add up to a submission that nobody can accept. Touches nothing: `worker.outbox` keeps the bytes. See
docs/decisions/0030.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregation.norms import block_norm
from protocol.codecs import FP32, Codec, codec_named
from protocol.errors import MalformedMessage
from protocol.ids import BlockId, Digest, digest_of
from protocol.lease import Lease
from protocol.specs import TensorSpec
from protocol.submission import Blocks, encode_submission, submission_name
from protocol.tensors import decode_tensors, encode_tensors

MOST_RESIDUAL = 2.0
"""L2 norm, in those of the lease's own pseudo-gradient, block by block: with another one of these it is as long as a
coordinator takes for honest (`screening.max_norm_factor`). What was longer already is half as long after a refusal."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """What a submission is made of. Digests are of each of the lease's blocks; () where the codec keeps nothing."""

    payload: bytes
    began: tuple[Digest, ...] = ()
    """What the encoding began with; "": nothing."""
    left: tuple[Digest, ...] = ()
    back: tuple[Digest, ...] = ()
    """What is left where the submission comes to nothing: what it began with, and all that was computed."""
    residuals: Mapping[Digest, bytes] | None = None
    """The bytes of `left` and `back`."""


def coded(lease: Lease, gradient: Blocks, kept: Callable[[Digest], bytes | None]) -> Coded:
    """`gradient` as `lease` wants it sent; `kept` gives the bytes of a residual, None where it is not here."""
    codec = codec_named(lease.codec)
    if not codec.has_state:
        return Coded(payload=encode_submission(gradient, codec))
    named = dict(zip(lease.blocks, lease.residuals, strict=False))
    began: dict[BlockId, Digest] = {}
    states: dict[str, Tensor] = {}
    for block in lease.blocks:
        found = _decoded(kept(named[block]), gradient[block]) if named.get(block) else None
        began[block] = named[block] if found is not None else Digest("")
        states |= {submission_name(block, name): tensor for name, tensor in (found or {}).items()}
    before = dict(states)
    payload = encode_submission(gradient, codec, states)
    left = {block: _bytes_of(_of_block(states, block, gradient[block])) for block in lease.blocks}
    back = {block: _bytes_of(_back(before, block, gradient[block], codec)) for block in lease.blocks}
    digests = {content: digest_of(content) for content in (*left.values(), *back.values())}
    return Coded(
        payload=payload,
        began=tuple(began.values()),
        left=tuple(digests[content] for content in left.values()),
        back=tuple(digests[content] for content in back.values()),
        residuals={digest: content for content, digest in digests.items()},
    )


def _decoded(content: bytes | None, like: Tensors) -> dict[str, Tensor] | None:
    specs = [TensorSpec(name, tuple(tensor.shape)) for name, tensor in like.items()]
    try:
        return None if content is None else decode_tensors(content, specs, FP32)
    except MalformedMessage:  # of another shape: another model's, or another release's
        return None


def _of_block(states: Tensors, block: BlockId, like: Tensors) -> dict[str, Tensor]:
    """What an encoding left, by parameter; zeros where it left nothing."""
    found = {name: states.get(submission_name(block, name)) for name in like}
    return {name: torch.zeros_like(like[name]) if one is None else one for name, one in found.items()}


def _back(before: Tensors, block: BlockId, gradient: Tensors, codec: Codec) -> dict[str, Tensor]:
    began = _of_block(before, block, gradient)
    whole = {name: gradient[name].detach().cpu().float().add(began[name], alpha=codec.state_decay) for name in gradient}
    most, norm_l2 = max(MOST_RESIDUAL * block_norm(gradient), block_norm(began) / 2), block_norm(whole)
    return whole if norm_l2 <= most else {name: tensor * (most / norm_l2) for name, tensor in whole.items()}


def _bytes_of(residual: Tensors) -> bytes:
    if not all(bool(tensor.isfinite().all()) for tensor in residual.values()):
        residual = {name: torch.zeros_like(tensor) for name, tensor in residual.items()}
    return encode_tensors({name: tensor.detach().cpu() for name, tensor in residual.items()}, FP32)
