"""When each setting of a run counts: at a start of the machine's, at `init` once and for all, or from round to round.

Decides which settings are the run's and which the rounds'; `MACHINE` are the machine's. Touches nothing.
"""

from __future__ import annotations

from enum import StrEnum

from coordinator.engine.changes import FIXED
from coordinator.settings import MACHINE, RunSettings


class Counts(StrEnum):
    """When the value of a setting is taken, and how it is changed."""

    MACHINE = "machine"
    """At each start; edit `settings.toml`."""
    RUN = "run"
    """At `init`, once and for all."""
    ROUND = "round"
    """When a round opens; `barnraise coordinator set` changes it."""


def counts(key: str) -> Counts:
    """When `key` counts: a field of `RunSettings`, or one of the engine's as `quorum` and `inner.learning_rate`."""
    if key in RunSettings.model_fields:
        return Counts.MACHINE if key in MACHINE else Counts.RUN
    return Counts.RUN if key in FIXED else Counts.ROUND
