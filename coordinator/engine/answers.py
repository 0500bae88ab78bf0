"""What a trusted worker says of a submission, or of a version, that it was given to measure.

Decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class GainAnswer:
    """Losses of the item's sequences, nats a token, all finite."""

    worker: WorkerId
    before: tuple[float, ...]
    """Of each of the N sequences, under the version that the submission starts from, or that is validated."""
    after: tuple[float, ...]
    """Of the sequences of each part, one part after the other, with so much of the submission taken; of a version none.
    """
