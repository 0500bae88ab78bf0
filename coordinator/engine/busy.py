"""What share of their time workers train: from what they said of their leases, and from how long rounds took.

Decides nothing; for operators and volunteers, who want to know whether lines or machines are the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from coordinator.engine.state import EngineState

LATEST = 5
"""Rounds that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The median worker's latest round."""

    trains_s: float
    round_s: float
    """From one round's opening to the next."""

    @property
    def share(self) -> float:
        """Of its time, in training; a late lease's may have been another round's."""
        return min(1.0, self.trains_s / self.round_s)


def busy(state: EngineState) -> Busy | None:
    """Of the workers that are there and have finished a lease; None before a round has closed."""
    trained = [record.reports[-1].train_s for record in state.workers.values() if record.present and record.reports]
    latest = state.history[-LATEST:]
    if not trained or not latest or state.round.round == latest[-1].round:
        return None
    round_s = (state.round.opened_at_s - latest[0].opened_at_s) / len(latest)
    return Busy(trains_s=median(trained), round_s=round_s) if round_s > 0.0 else None
