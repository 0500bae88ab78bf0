"""What a worker has earned: the work of its leases that stands, in sequences of the training data.

Decides nothing (credit.py does). Its fields are a format (records.py): snapshots have them by these names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """One worker's, over the whole run; begins at nothing where an older release did not count."""

    sequences: int = 0
    """Of its accepted leases, as the coordinator assigned them."""
    leases: int = 0
    rounds: int = 0
    """In which at least one lease of it stands."""
    lost_sequences: int = 0
    """Credited once and taken back."""
    lost_leases: int = 0


NOTHING_EARNED = Credit()
