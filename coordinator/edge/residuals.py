"""What a commit says about residuals, checked before the engine hears of it; and what workers are asked to open.

Decides what can be true: for a codec that keeps nothing, nothing; for any other, for each block of the lease what the
lease names or nothing, and a digest of what came out and of what is left where the submission comes to nothing. And
how often an audit asks, and from which byte on: a worker that cannot answer is leased to all the same, one whose line
breaks again and again is asked for as long as more has come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordinator.engine.openings import asked_of
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from moe.layout import Layout, block_tensor_specs
from protocol.codecs import FP32, codec_named
from protocol.errors import FinalRefusal
from protocol.ids import Digest, LeaseId, WorkerId
from protocol.lease import Lease
from protocol.tensor_headers import payload_size
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


MOST_ASKED = 3
"""Times in one process's life that a worker is asked for one residual from the same byte on: twice for a line that
broke before anything came."""


class _Asked(NamedTuple):
    times: int
    offset: int


class Openings:
    """What each worker was asked to open, and from which byte on."""

    def __init__(self, here: Callable[[LeaseId, Digest], int]) -> None:
        """`here`: how many bytes of a residual have come of which the rest has not."""
        self._here = here
        self._asked: dict[WorkerId, dict[tuple[LeaseId, Digest], _Asked]] = {}

    def wanted(self, state: EngineState, worker: WorkerId) -> list[tuple[LeaseId, Digest]]:
        """What it may be asked for now; nothing while it has a lease to train."""
        if state.open_lease_of(worker) is not None:
            return []
        keys = [(record.lease.lease_id, digest) for record, digest in asked_of(state, worker)]
        asked = {key: times for key, times in self._asked.pop(worker, {}).items() if key in keys}
        if asked:
            self._asked[worker] = asked  # of audits that are over nothing is remembered
        return [key for key in keys if key not in asked or self._may_ask(key, asked[key])]

    def ask(self, worker: WorkerId, wanted: Sequence[tuple[LeaseId, Digest]]) -> list[pb.WantedResidual]:
        """For the wire; each counts as asked once more, where nothing came of it since."""
        if not wanted:
            return []
        before = self._asked.get(worker, {})
        here = {key: self._here(*key) for key in wanted}
        counted = {key: self._once_more(before.get(key), offset) for key, offset in here.items()}
        self._asked[worker] = {**before, **counted}
        return [pb.WantedResidual(lease_id=key[0], digest=key[1], offset=offset) for key, offset in here.items()]

    def _may_ask(self, key: tuple[LeaseId, Digest], asked: _Asked) -> bool:
        return asked.times < MOST_ASKED or self._here(*key) > asked.offset

    @staticmethod
    def _once_more(before: _Asked | None, offset: int) -> _Asked:
        again = before is not None and offset <= before.offset
        return _Asked(times=before.times + 1, offset=before.offset) if again and before else _Asked(1, offset)


def residual_bytes(layout: Layout, record: LeaseRecord, digest: Digest) -> int:
    """What a residual that the commit of `record` named has to have."""
    named = dict(zip((*record.residuals_in, *record.residuals_out), 2 * record.lease.blocks, strict=True))
    return payload_size(block_tensor_specs(layout, named[digest], record.lease.trunk), FP32)
