"""What every source of a lease's sequences must do: the coordinator's, and one that a worker could have by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import MalformedMessage
from protocol.lease import Lease
from protocol.sequences import encode_sequences, max_payload_bytes
from worker.data import AssignedData, DataSource, SequenceShape

SHAPE = SequenceShape(tokens=17, vocab_size=264)
Make = Callable[..., Lease]


class Coordinator:
    """Draws a lease's rows from its data range, and sends them."""

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
        draw = np.random.default_rng([*lease_id.encode()])
        payload = encode_sequences(draw.integers(0, 264, (20, 17)).astype("uint16"))
        assert len(payload) <= max_bytes
        on_bytes(len(payload))
        return payload


class OwnTexts:
    """Rows that are on this machine and never leave it: which of them a lease takes follows from its seed."""

    def __init__(self, rows_NL: NDArray[np.int64]) -> None:
        self._rows_NL = rows_NL

    async def sequences(self, lease: Lease, shape: SequenceShape, on_bytes: Callable[[int], None]) -> NDArray[np.int64]:
        draw = np.random.default_rng(lease.seed)
        return self._rows_NL[draw.integers(0, len(self._rows_NL), lease.data.count)]


SOURCES: dict[str, Callable[[], DataSource]] = {
    "assigned": lambda: AssignedData(Coordinator()),
    "made up": lambda: OwnTexts(np.arange(50 * 17, dtype=np.int64).reshape(50, 17) % 264),
}


@pytest.mark.parametrize("source", SOURCES)
async def test_a_lease_gets_as_many_rows_as_it_asks_for(source: str, make_lease: Make) -> None:
    rows_NL = await SOURCES[source]().sequences(make_lease(), SHAPE, lambda _count: None)
    assert rows_NL.shape == (20, 17)
    assert rows_NL.dtype == np.int64
    assert 0 <= rows_NL.min() <= rows_NL.max() < 264


@pytest.mark.parametrize("source", SOURCES)
async def test_the_same_lease_gets_the_same_rows_from_a_source_made_anew(source: str, make_lease: Make) -> None:
    lease = make_lease()
    once = await SOURCES[source]().sequences(lease, SHAPE, lambda _count: None)
    again = await SOURCES[source]().sequences(lease, SHAPE, lambda _count: None)
    assert np.array_equal(once, again)


async def test_assigned_rows_are_counted_bounded_and_compared_with_the_lease(make_lease: Make) -> None:
    asked: list[tuple[str, int]] = []

    class Short(Coordinator):
        async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
            asked.append((lease_id, max_bytes))
            on_bytes(7)
            return encode_sequences(np.zeros((19, 17), np.uint16))

    counted: list[int] = []
    lease = make_lease()
    with pytest.raises(MalformedMessage, match="expected 20 x 17"):
        await AssignedData(Short()).sequences(lease, SHAPE, counted.append)
    assert asked == [(lease.lease_id, max_payload_bytes(20, 17))]
    assert counted == [7]
