"""Where a lease's sequences come from: assigned by the coordinator, which is the only way that there is today.

Decides nothing about training: whatever the source, a lease is trained on exactly `data.count` sequences, in order.
Touches the network through the port that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.lease import Lease
from protocol.sequences import decode_sequences, max_payload_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceShape:
    """What every sequence of a run is like."""

    tokens: int
    """Of one row: the run's sequence length and the token that is only predicted."""
    vocab_size: int


class DataSource(Protocol):
    """What gives the sequences of a lease.

    The same lease gives the same sequences again, also in another process: whoever goes on with a lease that was
    interrupted must find the rows that it began with.
    """

    async def sequences(self, lease: Lease, shape: SequenceShape, on_bytes: Callable[[int], None]) -> NDArray[np.int64]:
        """[`lease.data.count`, `shape.tokens`], every token below `shape.vocab_size`.

        `on_bytes` is told of every piece that came over the network. MalformedMessage where what came is not that.
        """


class LeaseDownloads(Protocol):
    """The coordinator, as far as assigned data needs it."""

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
        """The payload with the lease's sequences, of at most `max_bytes`."""


class AssignedData:
    """The rows that the coordinator drew for the lease, downloaded from it."""

    def __init__(self, coordinator: LeaseDownloads) -> None:
        self._coordinator = coordinator

    async def sequences(self, lease: Lease, shape: SequenceShape, on_bytes: Callable[[int], None]) -> NDArray[np.int64]:
        """See `DataSource`."""
        bound = max_payload_bytes(lease.data.count, shape.tokens)
        payload = await self._coordinator.download_lease_data(lease.lease_id, bound, on_bytes)
        return decode_sequences(payload, lease.data.count, shape.tokens, shape.vocab_size)
