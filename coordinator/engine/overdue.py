"""Which leases a round no longer waits for, though they may still come: the overdue.

Decides when a lease is overdue: `overdue_factor` times what was expected of it after its grant. What is expected is the
longer of two: what its worker's own earlier leases took, step by step, and the median of what this round's leases
took, or have taken so far. Holds always: nobody is overdue before more than half of the round's owners have delivered,
so that neither a few fast machines nor a change that makes everybody slower decides what is slow; the moment is noted
once, and being started over does not move it.
"""

from __future__ import annotations

from statistics import median

from coordinator.engine import pacing
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.quorum import Standings, lease_durations_s
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState

_TO_DELIVER = frozenset({LeaseStatus.GRANTED, LeaseStatus.COMMITTED})


def follow(state: EngineState) -> None:
    """Note when the round's leases will be overdue, once that can be said, and which are."""
    if state.index.tally.untimed and Standings(state).trunk_has_majority():
        _note_moments(state)
    for lease_id in state.index.overdue.due(state.now_s):
        state.update_lease(lease_id, overdue=True)


def _note_moments(state: EngineState) -> None:
    config = state.config
    usual_s, pace = median(lease_durations_s(state) or [0.0]), pacing.pace_of(state)
    for record in list(state.leases_of_round()):
        if record.status in _TO_DELIVER and record.overdue_at_s is None:
            expected_s = max(usual_s, _own_s(state, pace, record))
            waited_s = max(config.overdue_factor * expected_s, expected_s + config.min_grace_s)
            overdue_at_s = record.lease.granted_at_s + waited_s + record.gap_s
            state.update_lease(record.lease.lease_id, overdue_at_s=overdue_at_s)


def _own_s(state: EngineState, pace: pacing.Pace, record: LeaseRecord) -> float:
    """By its worker's own reports; 0 where there are none: a probe is a claim, and is read by others' measures."""
    worker = state.workers[record.lease.worker]
    expected_s = pacing.expected_end_s(worker, pace, record.lease.inner_steps) if worker.reports else None
    return expected_s or 0.0
