"""What a submission's measuring may stop at: from what is asked of it, and from what is usual among its peers.

Decides the bounds that a command carries (`EarlyStop`); enough.py reads them. Holds always: where nothing is known of
at least `MIN_GAINS` others (a run's first submissions), gains are measured on the whole draw.
"""

from __future__ import annotations

from coordinator.engine import pacing
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.enough import EarlyStop
from coordinator.engine.history import UsualGain
from coordinator.engine.lease import GrantedLease
from coordinator.engine.screening import MIN_GAINS
from coordinator.engine.state import EngineState

SPREAD_MARGIN = 1.1
"""Most medians are of standard deviations of four sequences, whose own median is 0.89 of the truth (chi, 3 degrees)."""


def early_stop(state: EngineState, lease: GrantedLease) -> EarlyStop | None:
    """For a submission that is about to be measured: by this round's peers, or by those of the round before."""
    usual = state.index.tally.usual_gain(MIN_GAINS) or state.usual_gain
    return bounds(state.config.screening, usual, pacing.steps_share(state, lease))


def bounds(config: ScreeningConfig, usual: UsualGain | None, steps_share: float) -> EarlyStop | None:
    """Where so much is usual, for a lease of this share of the round's steps."""
    if not config.enabled or config.early_margin <= 0.0 or usual is None or usual.spread <= 0.0:
        return None
    return EarlyStop(
        least=max(config.min_heldout_gain, config.min_heldout_gain_share * steps_share * usual.gain),
        full_least=-min(config.max_lone_loss, config.max_peer_loss),
        spread=SPREAD_MARGIN * usual.spread,
        margin=config.early_margin,
        doubt_margin=config.gain_error_margin,
        max_doubt=config.max_doubt,
    )
