"""Stable keys of verdicts, and which of them count against a worker. Decides nothing else."""

from __future__ import annotations

MALFORMED = "malformed"
NON_FINITE = "non_finite"
NORM_TOO_LARGE = "norm_too_large"
NORM_TOO_SMALL = "norm_too_small"
HELDOUT_LOSS_ROSE = "heldout_loss_rose"
HELDOUT_GAIN_TOO_SMALL = "heldout_gain_too_small"
LATE = "late"
INCOMPLETE = "incomplete"
DUPLICATE = "duplicate"
UNMEASURABLE = "unmeasurable"

BLAMED_KEYS = frozenset(
    {MALFORMED, NON_FINITE, NORM_TOO_LARGE, NORM_TOO_SMALL, HELDOUT_LOSS_ROSE, HELDOUT_GAIN_TOO_SMALL, DUPLICATE}
)
"""Reasons that count towards quarantine. Being late, slow or gone never does, nor does a failure of ours."""
