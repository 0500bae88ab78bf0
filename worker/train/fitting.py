"""How many sequences at a time were seen to fit, where an estimate had promised more.

Decides the micro-batch of leases to come: one that memory ran out with is not tried again as long as this process
lives, since each try costs the part of a step that was done, and a lease whose batches are cut in two ways can be
replayed by nobody (docs/decisions/0054). Kept apart for leases that take different memory. Touches nothing.
"""

from __future__ import annotations

from moe.rungs import Schedule
from protocol.lease import Lease

_Kind = tuple[object, ...]


class Fitting:
    """Of one run on one machine."""

    def __init__(self) -> None:
        self._seen: dict[_Kind, int] = {}

    def at_most(self, lease: Lease, schedule: Schedule) -> int:
        """The schedule's micro-batch, or the smaller one that an earlier lease of the kind came down to."""
        return min(schedule.micro_batch, self._seen.get(_kind(lease, schedule), schedule.micro_batch))

    def note(self, lease: Lease, schedule: Schedule, micro_batch: int) -> None:
        """What a lease ended with."""
        if micro_batch < min(schedule.micro_batch, lease.batch_sequences):
            self._seen[_kind(lease, schedule)] = micro_batch


def _kind(lease: Lease, schedule: Schedule) -> _Kind:
    recipe = lease.recipe
    kept = recipe.optimizer, recipe.masters, recipe.moments, recipe.frozen_dtype, recipe.trunk, recipe.lora_rank
    return len(lease.columns), *kept, schedule._replace(micro_batch=0)
