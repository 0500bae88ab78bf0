"""Who measures what submissions gain, and how surely it is known, in a sentence for the operator.

Decides nothing.
"""

from __future__ import annotations

from itertools import islice
from statistics import median

from coordinator.engine import measuring
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.state import EngineState

MOST_READ = 256
"""Submissions of a round whose errors are looked at."""


def gains_told(state: EngineState) -> str:
    """For a status."""
    if not state.config.screening.enabled:
        return "not measured (screening is off)"
    return f"{_by_whom(state)}; {_how_surely(state)}"


def _by_whom(state: EngineState) -> str:
    config, totals = state.config.delegation, state.totals
    if not config.enabled:
        return "measured here (delegation.enabled is off)"
    workers = [worker for worker in map(state.workers.__getitem__, state.index.trusted) if worker.present]
    count = sum(1 for worker in workers if measuring.may_measure(worker))
    if not count:
        return "measured here: no trusted worker offers to (join --measure)"
    if state.data_epoch:
        return "measured here: no training text is left that nobody was leased"
    said = (
        f"measured by {count} trusted worker{'s' if count > 1 else ''}, 1 of {1.0 / config.checked_share:.3g} checked"
    )
    if totals.gains_delegated or totals.gains_checked:
        checked = f"{totals.gains_checked} answers held against another's, {totals.gains_false} of them false"
        said += f" ({totals.gains_delegated} so far; {checked})"
    return said


def _how_surely(state: EngineState) -> str:
    """What the sampling behind this round's gains leaves open."""
    accepted = (one for one in state.leases_of_round() if one.status is LeaseStatus.ACCEPTED)
    found = list(islice((one for one in accepted if one.heldout_gain_se > 0.0), MOST_READ))
    if not found:
        return "how surely is told once some of a round are"
    error, gain = 2.0 * median(one.heldout_gain_se for one in found), median(one.heldout_gain for one in found)
    return (
        f"this round's are {gain:.3g} nats a token, each known to ± {error:.2g} (2 standard errors, over the sequences "
        "that it took)"
    )
