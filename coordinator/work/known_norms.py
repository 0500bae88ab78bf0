"""Norms of submitted blocks, each taken once: screening compares them, and the outer step clips to them.

Decides how many are remembered. Holds always: a norm is that of the bytes under its digest, which never change, so one
that is remembered is what would be found anew. Touches nothing; for one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from aggregation.norms import block_norm
from aggregation.pieces import Piece
from coordinator.work.threads import one_thread
from protocol.ids import BlockId, Digest

REMEMBERED = 1 << 14
"""A round of 256 workers with 64 blocks each: a few megabytes."""


class KnownNorms:
    """L2 norms by submission and block."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Digest, BlockId], float] = OrderedDict()

    def of(self, payload: Digest, block: BlockId, tensors: Mapping[str, Piece]) -> float:
        """Of `tensors`, which are what the payload holds of the block; NaN or infinite where one of its values is."""
        norm_l2 = self._known.get((payload, block))
        if norm_l2 is None:
            with one_thread():
                norm_l2 = self._known[payload, block] = block_norm(tensors)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return norm_l2
