"""Whether a lease that waits for a pause's end can still be done in time."""

from __future__ import annotations

import pytest

from tests.worker.leases import changed_lease, lease_message, read_lease
from worker.ports import Progress
from worker.suspended import KEPT_EVERY_S, SPARE, UNKNOWN_SHARE, needed_s, why_too_late

LEASE = changed_lease(read_lease(lease_message()), inner_steps=100, batch_sequences=4, ttl_s=1000.0)
HALF = Progress(inner_step=50, tokens_per_s=4 * 16 / 2.0)
"""Of sequences of 16 tokens: a step takes two seconds."""


def test_what_is_left_is_what_is_not_done_and_what_may_not_be_saved() -> None:
    assert needed_s(LEASE, HALF, 16) == SPARE * (100.0 + KEPT_EVERY_S)
    begun = Progress(inner_step=1, tokens_per_s=32.0)
    assert needed_s(LEASE, begun, 16) == SPARE * (198.0 + 2.0)
    assert needed_s(LEASE, Progress(), 16) == UNKNOWN_SHARE * 1000.0


@pytest.mark.parametrize(
    ("left_s", "pause_s", "why"),
    [
        (200.0, None, ""),
        (162.0, None, "has lasted too long"),
        (200.0, 30.0, ""),
        (200.0, 60.0, "will last too long"),
        (1e6, 1e5, ""),
    ],
)
def test_it_goes_back_as_soon_as_it_would_come_too_late(left_s: float, pause_s: float | None, why: str) -> None:
    said = why_too_late(LEASE, HALF, 16, left_s=left_s, pause_s=pause_s)
    assert why in said
    assert bool(said) == bool(why)
