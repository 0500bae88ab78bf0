"""What an operator may set about reputation: how fast trust grows, and what takes it away.

Nothing here decides; `trust.py` does, by these and by a worker's record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReputationConfig:
    """How a worker's record becomes trust. What is set aside for how long stands in `quarantine_*`."""

    first_weight: float = 0.5
    """What a newcomer's submissions weigh who was not invited with `--trusted`; it rises to 1."""
    full_after: int = 10
    """Valid submissions in a row after which a worker has full weight."""
    vouched_after: int = 3
    """Passed audits without which a newcomer to an open run weighs nothing, where audits have a budget."""
    probation: int = 3
    """Valid submissions in a row after which whoever was set aside, or unbanned, weighs anything again."""
    memory: float = 20.0
    """Judged submissions that a record reaches back: the share of refused ones fades by 1/memory with each."""
    quarantine_share: float = 0.3
    """Share of refused among judged submissions that honest work stays below: at or above it, a worker is set aside."""
    most_doublings: int = 6
    """Each quarantine lasts twice as long as the one before, so many times at most."""


def reputation_problems(config: ReputationConfig) -> Iterator[tuple[bool, str]]:
    """Whether each condition holds, and what to say where it does not."""
    yield 0 < config.first_weight <= 1, f"reputation.first_weight must be above 0 to 1, got {config.first_weight}"
    for name in ("full_after", "vouched_after", "probation"):
        count = getattr(config, name)
        yield count >= 1, f"reputation.{name} must be 1 or more, got {count}"
    yield config.memory >= 4, f"reputation.memory must be 4 or more submissions, got {config.memory}"
    share = config.quarantine_share
    yield 0 < share <= 1, f"reputation.quarantine_share must be above 0 to 1, got {share}"
    doublings = config.most_doublings
    yield 0 <= doublings <= 20, f"reputation.most_doublings must be 0 to 20, got {doublings}"
