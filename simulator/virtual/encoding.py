"""What simulated volunteers send, and what their encodings lose: as the real worker codes it, without its disk.

Decides nothing about the run. Holds always: a worker's encodings feed back what its earlier ones lost, as its lease
names it; of its latest two submissions it has every residual that an audit may ask for. Touches nothing.
"""

from __future__ import annotations

import torch

from coordinator.engine.openings import asked_of
from coordinator.engine.state import EngineState
from protocol.errors import MalformedMessage
from protocol.ids import Digest, LeaseId, WorkerId
from protocol.lease import Lease
from protocol.submission import Blocks
from worker.outbox import RESIDUALS_OF
from worker.train.residuals import Coded, coded

LARGEST = 1e30
"""What stands for no number where a codec has no encoding of that: a liar's worst, and still a number when squared."""


class Encodings:
    """Of all volunteers of one swarm."""

    def __init__(self) -> None:
        self._kept: dict[WorkerId, list[dict[Digest, bytes]]] = {}

    def coded(self, worker: WorkerId, lease: Lease, gradient: Blocks) -> Coded:
        """The submission of `gradient`."""
        try:
            made = coded(lease, gradient, lambda digest: self.residual(worker, digest))
        except MalformedMessage:  # a liar's values, which are no numbers
            made = coded(lease, _numbers(gradient), lambda digest: self.residual(worker, digest))
        if made.residuals is not None:
            latest = {**made.residuals, **{one: self.residual(worker, one) or b"" for one in made.began if one}}
            self._kept[worker] = [latest, *self._kept.get(worker, [])][:RESIDUALS_OF]
        return made

    def residual(self, worker: WorkerId, digest: Digest) -> bytes | None:
        """A residual that `worker` has; None where it has not."""
        return next((kept[digest] for kept in self._kept.get(worker, []) if digest in kept), None)

    def asked(self, state: EngineState, worker: WorkerId) -> list[tuple[LeaseId, bytes]]:
        """What `worker` is to open for audits, and has: for which lease, and the bytes."""
        wanted = ((record.lease.lease_id, self.residual(worker, one)) for record, one in asked_of(state, worker))
        return [(lease_id, content) for lease_id, content in wanted if content is not None]


def _numbers(gradient: Blocks) -> Blocks:
    return {
        block: {
            name: torch.nan_to_num(tensor, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
            for name, tensor in tensors.items()
        }
        for block, tensors in gradient.items()
    }
