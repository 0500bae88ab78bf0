"""What a commit says about residuals, checked before the engine hears of it.

Decides what can be true: for a codec that keeps nothing, nothing; for any other, for each block of the lease what the
lease names or nothing, and a digest of what came out and of what is left where the submission comes to nothing.
"""

from __future__ import annotations

import re

from protocol.codecs import codec_named
from protocol.errors import FinalRefusal
from protocol.ids import Digest
from protocol.lease import Lease
from protocol.v1 import barnraise_pb2 as pb

_HEX = re.compile(r"[0-9a-f]{64}")


def check_residuals(lease: Lease, request: pb.CommitSubmissionRequest) -> None:
    """FinalRefusal, which says what is wrong."""
    count = len(lease.blocks) if codec_named(lease.codec).has_state else 0
    for name in ("residuals_in", "residuals_out", "residuals_back"):
        got = getattr(request, name)
        if len(got) != count:
            raise FinalRefusal(f"lease {lease.lease_id}: {name} names {count} blocks in {lease.codec}, got {len(got)}")
        if not all(_HEX.fullmatch(one) or (name == "residuals_in" and not one) for one in got):
            raise FinalRefusal(f"lease {lease.lease_id}: {name} holds something else than SHA-256 in hexadecimal")
    leased = lease.residuals or (Digest(""),) * count
    if any(one not in ("", named) for one, named in zip(request.residuals_in, leased, strict=True)):
        raise FinalRefusal(f"lease {lease.lease_id} names other residuals to begin with than the commit does")
