"""What a worker has understood of a run, and what it has fetched for a lease: data, and no more.

Decides nothing but whether a run's description makes sense. Touches nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe.layout import Layout, layout
from protocol.codecs import codec_named
from protocol.errors import MalformedMessage
from protocol.ids import BlockId, Digest
from protocol.lease import ALL_OF_TRUNK, Lease, TrunkPart
from worker.data import SequenceShape
from worker.lease import RunDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that this worker has understood: its description, and the model's layout made from it."""

    description: RunDescription
    layout: Layout

    @property
    def sequences(self) -> SequenceShape:
        """What a lease's sequences are like."""
        length, values = self.description.sequence_length, self.layout.config_json
        return SequenceShape(tokens=length + 1, vocab_size=int(values["vocab_size"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedLease:
    """Everything training needs, checked and on this machine."""

    lease: Lease
    run: Run
    digests: dict[BlockId, Digest]
    sequences: NDArray[np.int64]
    """[N, L]: the lease's sequences in order."""


def understand_run(description: RunDescription) -> Run:
    """The run's layout, from its closed configuration; MalformedMessage or ConfigError with the reason. Loads torch."""
    from moe.config import config_from_json

    try:
        values = json.loads(description.model_json)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("the run's model configuration is not JSON") from error
    if not isinstance(values, dict):
        raise MalformedMessage("the run's model configuration is not a JSON object")
    codec_named(description.codec)
    cut = layout(config_from_json(values), description.residency, description.column_parts)
    return Run(description=description, layout=cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPart:
    """Sequences `start` to `stop`, the last not included, with `share` of the submission taken from the base."""

    share: float
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedItem:
    """Everything measuring needs, checked and on this machine."""

    item_id: str
    run: Run
    columns: tuple[int, ...]
    """Of the submission; none where a version is to be measured, and no submission."""
    codec: str
    digests: dict[BlockId, Digest]
    """Of every block of the base version, in the block cache."""
    payload: bytes
    """The submission's, under its digest."""
    sequences: NDArray[np.int64]
    """[N, L+1]."""
    parts: tuple[MeasuredPart, ...]
    trunk: TrunkPart = ALL_OF_TRUNK
    """What the submission has of it."""
