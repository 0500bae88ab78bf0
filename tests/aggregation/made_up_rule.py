"""A rule that is not in the table: the midpoint of what is left when f values are dropped on each side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aggregation.names import Base, Sees
from aggregation.reducers import Chunk, ChunkReducer, trimmed_count


def midpoint(weights: Sequence[float]) -> ChunkReducer:
    """(smallest + largest kept) / 2, per coordinate; weights decide nothing. Tolerates f, as the trimmed mean does."""
    workers = len(weights)
    trimmed = trimmed_count(workers)

    def reduce_chunk(chunk_WC: Chunk, out_C: Tensor) -> None:
        ordered_WC = torch.stack(list(chunk_WC)).sort(dim=0).values
        torch.add(ordered_WC[trimmed] / 2, ordered_WC[workers - 1 - trimmed] / 2, out=out_C)

    return reduce_chunk


ROW = Base(Sees.COORDINATES, "tests.aggregation.made_up_rule:midpoint")
