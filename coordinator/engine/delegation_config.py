"""What an operator may set about measuring by others: what trusted workers measure, and how they are checked.

Nothing here decides; `measuring.py`, `delegation.py` and `validating.py` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegationConfig:
    """Gains and held-out losses that trusted workers measure. Nothing is delegated as long as none of them offers to
    (`join --measure`)."""

    enabled: bool = True
    """Whether trusted workers that offer to measure submissions' gains, and published versions' held-out losses, do.
    What they do not answer in time, and all that they would have refused, is measured here."""
    sequences: int = 64
    """Sequences that a gain is measured on by others: of training text that no lease has named, nor ever will in its
    epoch. Submissions that were committed before anybody was given them share them."""
    checked_share: float = 0.125
    """Share of what is delegated, drawn in secret, that is measured twice: by trusted workers of two owners, or by one
    and the coordinator. Where they differ, the coordinator finds out who lied."""
    wait_s: float = 120.0
    """What is not answered so long after its submission came is measured here."""
    validation_wait_s: float = 3600.0
    """A version that nobody has validated so long after it was published is validated here. Long, since whoever may is
    training by then, and idle at the round's end."""
    tolerance: float = 1e-3
    """Nats a token by which a sequence's loss may differ between two honest machines."""


def delegation_problems(config: DelegationConfig) -> Iterator[tuple[bool, str]]:
    """Whether each condition holds, and what to say where it does not."""
    yield 8 <= config.sequences <= 4096, f"delegation.sequences must be 8 to 4096, got {config.sequences}"
    share = config.checked_share
    yield 0 < share <= 1, f"delegation.checked_share must be above 0 to 1, got {share}: nobody is believed unchecked"
    for name in ("wait_s", "validation_wait_s"):
        wait_s = getattr(config, name)
        yield wait_s > 0, f"delegation.{name} must be above 0, got {wait_s}"
    yield (
        config.tolerance > 0,
        f"delegation.tolerance must be above 0, got {config.tolerance}: machines differ",
    )
