"""Audits carried out: a lease computed again, or what two workers sent for the same lease, held against each other.

Decides no verdict: distances are facts. Touches payloads, which it reads. Always: both sides have been through a codec,
so that what coding costs is no difference; or, where the codec feeds back its errors, what was computed is told from
what was sent and what the encoding began with and left, which its worker has opened. A `lora` trunk's factors are held
against each other as they are sent: the fixed ones are the same. What an auditor sent, and what a
worker opens, is decoded as carefully as what anybody sent. See docs/decisions/0030.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from aggregation.norms import block_norm
from aggregation.replayed import LARGEST_DISTANCE, PieceBlocks, ReplayDistance, replay_distance
from coordinator.engine.commands import CompareSubmissions, ReplayLease
from coordinator.engine.lease import GrantedLease
from coordinator.store.ports import BlobStore
from coordinator.work.port import Replay
from moe.layout import Layout, block_tensor_specs, submission_specs
from protocol.codecs import FP32, codec_named
from protocol.errors import LocalError, MalformedMessage
from protocol.ids import Digest
from protocol.lease import Lease
from protocol.submission import Blocks, EncodedBlocks, decode_submission, encode_submission, encoded_submission
from protocol.tensors import decode_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_REPLAY = (
    "this coordinator was started without a way to compute leases again: have trusted workers do it "
    "(audits.by_coordinator = false), or set audits.budget to 0"
)


def replayed(
    command: ReplayLease,
    replay: Replay | None,
    *,
    layout: Layout,
    payloads: BlobStore,
    base: Blocks,
    sequences_NL: NDArray[np.int64],
) -> tuple[ReplayDistance, str]:
    """How far what was sent for the command's lease is from what comes of computing it again, here and now; and in
    which arithmetic class that was.

    `base` is the lease's base version, `sequences_NL` its sequences, N of L tokens. LocalError where this process
    cannot replay, or its own replay comes to nothing finite.
    """
    if replay is None:
        raise LocalError(NO_REPLAY)
    lease = command.lease
    again, arithmetic = replay(lease, base, sequences_NL, command.micro_batch, command.arithmetic)
    if command.residuals_out:
        return _opened(command, again, layout=layout, payloads=payloads), arithmetic
    sent = _submission(layout, payloads, lease, command.digest, command.codec)
    codec = codec_named(command.codec)
    specs = submission_specs(layout, lease.columns, lease.trunk)
    coded = decode_submission(encode_submission(again, codec), specs, codec, lease.blocks)
    return replay_distance(sent, coded), arithmetic


def compared(command: CompareSubmissions, *, layout: Layout, payloads: BlobStore) -> ReplayDistance:
    """How far what was sent is from what the auditor sent. MalformedMessage where the auditor's is no answer."""
    again = _submission(layout, payloads, command.again, command.again_digest, command.again_codec)
    for block, tensors in again.items():
        norm_l2 = block_norm(tensors)
        if not math.isfinite(norm_l2):
            raise MalformedMessage(f"block {block} holds a value that is not finite (norm {norm_l2})")
    if command.residuals_out:
        return _opened(command, again, layout=layout, payloads=payloads)
    return replay_distance(_submission(layout, payloads, command.lease, command.digest, command.codec), again)


def _opened(
    command: ReplayLease | CompareSubmissions, again: PieceBlocks, *, layout: Layout, payloads: BlobStore
) -> ReplayDistance:
    """The larger of two distances, trunk and columns apart.

    Sent + left - began is what was computed, to the rounding of fp32: from the replay. And sent + left is what was to
    be encoded: what the codec makes of it, from what was sent. Without the second a lie could be sent and its opposite
    be left. What is opened and is no residual is as far as anything can be.
    """
    lease, codec = command.lease, codec_named(command.codec)
    specs = submission_specs(layout, lease.columns, lease.trunk)
    with payloads.open(command.digest) as file:
        sent = decode_submission(file, specs, codec, lease.blocks)
    try:
        began = _residuals(layout, payloads, lease, command.residuals_in)
        left = _residuals(layout, payloads, lease, command.residuals_out)
        wanted = _sum(sent, left, 1.0)
        encoded = decode_submission(encode_submission(wanted, codec), specs, codec, lease.blocks)
        sound = all(math.isfinite(block_norm(tensors)) for tensors in encoded.values())
    except MalformedMessage:
        sound = False
    if not sound:
        return ReplayDistance(trunk=LARGEST_DISTANCE, columns=LARGEST_DISTANCE)
    computed = replay_distance(_sum(wanted, began, -codec.state_decay), again)
    coded = replay_distance(sent, encoded)
    return ReplayDistance(trunk=max(computed.trunk, coded.trunk), columns=max(computed.columns, coded.columns))


def _residuals(layout: Layout, payloads: BlobStore, lease: Lease, digests: Sequence[Digest]) -> Blocks:
    found = {}
    for block, digest in zip(lease.blocks, digests, strict=True):
        specs = block_tensor_specs(layout, block, lease.trunk)
        if not digest:
            found[block] = {spec.name: torch.zeros(spec.shape) for spec in specs}
            continue
        with payloads.open(digest) as file:
            found[block] = decode_tensors(file, specs, FP32)
    return found


def _sum(left: Blocks, right: Blocks, share: float) -> Blocks:
    return {
        block: {name: tensor.add(right[block][name], alpha=share) for name, tensor in tensors.items()}
        for block, tensors in left.items()
    }


def _submission(layout: Layout, payloads: BlobStore, lease: GrantedLease, digest: Digest, codec: str) -> EncodedBlocks:
    specs = submission_specs(layout, lease.columns, lease.trunk)
    return encoded_submission(payloads.view(digest), specs, codec_named(codec), lease.blocks)
