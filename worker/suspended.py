"""Whether a lease whose training a pause stopped can still be done before its deadline.

Decides by what is left of its steps at the speed that it was trained with, with some to spare: what was not saved when
it stopped, and a machine that is slower than before. Pure.
"""

from __future__ import annotations

from worker.lease import ReceivedLease
from worker.ports import Progress
from worker.words import say

SPARE: float = 1.25
KEPT_EVERY_S: float = 30.0
"""What is trained is saved so often, so no more than this is done again."""
UNKNOWN_SHARE: float = 0.5
"""Of its time, that a lease takes whose speed nobody has seen: coordinators grant about twice what they expect."""


def needed_s(lease: ReceivedLease, progress: Progress, sequence_length: int) -> float:
    """Seconds of training that are left of `lease`."""
    if progress.tokens_per_s <= 0.0:
        return UNKNOWN_SHARE * lease.ttl_s
    step_s = lease.batch_sequences * sequence_length / progress.tokens_per_s
    unsaved_s = min(KEPT_EVERY_S, progress.inner_step * step_s)
    return SPARE * ((lease.inner_steps - progress.inner_step) * step_s + unsaved_s)


def why_too_late(
    lease: ReceivedLease, progress: Progress, sequence_length: int, *, left_s: float, pause_s: float | None
) -> str:
    """Why `lease`, whose deadline is `left_s` away, would not be done in time; empty: it would, as far as is known.

    `pause_s`: for how long the pause lasts at the least; None: nobody knows.
    """
    spare_s = left_s - needed_s(lease, progress, sequence_length)
    if pause_s is not None and pause_s > spare_s:
        return say("late.will")
    return say("late.has") if spare_s <= 0.0 else ""
