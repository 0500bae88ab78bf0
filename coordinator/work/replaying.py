"""Audits carried out: a lease computed again, or what two workers sent for the same lease, held against each other.

Decides no verdict: distances are facts. Touches payloads, which it reads. Always: both sides have been through a codec,
so that what coding costs is no difference; what an auditor sent is decoded as carefully as what anybody sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aggregation.norms import block_norm
from aggregation.replayed import ReplayDistance, replay_distance
from coordinator.engine.commands import CompareSubmissions, ReplayLease
from coordinator.engine.lease import GrantedLease
from coordinator.store.ports import BlobStore
from coordinator.work.port import Replay
from moe.layout import Layout, submission_specs
from protocol.codecs import codec_named
from protocol.errors import LocalError, MalformedMessage
from protocol.ids import Digest
from protocol.submission import Blocks, EncodedBlocks, decode_submission, encode_submission, encoded_submission

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
    sent = _submission(layout, payloads, lease, command.digest, command.codec)
    again, arithmetic = replay(lease, base, sequences_NL, command.micro_batch, command.arithmetic)
    codec = codec_named(command.codec)
    specs = submission_specs(layout, lease.columns)
    coded = decode_submission(encode_submission(again, codec), specs, codec, lease.blocks)
    return replay_distance(sent, coded), arithmetic


def compared(command: CompareSubmissions, *, layout: Layout, payloads: BlobStore) -> ReplayDistance:
    """How far what was sent is from what the auditor sent. MalformedMessage where the auditor's is no answer."""
    sent = _submission(layout, payloads, command.lease, command.digest, command.codec)
    again = _submission(layout, payloads, command.again, command.again_digest, command.again_codec)
    for block, tensors in again.items():
        norm_l2 = block_norm(tensors)
        if not math.isfinite(norm_l2):
            raise MalformedMessage(f"block {block} holds a value that is not finite (norm {norm_l2})")
    return replay_distance(sent, again)


def _submission(layout: Layout, payloads: BlobStore, lease: GrantedLease, digest: Digest, codec: str) -> EncodedBlocks:
    specs = submission_specs(layout, lease.columns)
    return encoded_submission(payloads.view(digest), specs, codec_named(codec), lease.blocks)
