"""What audits may cost, and whose is paid for where the budget does not reach for all.

Decides how much of a round's budget is left, and with which probability a lease that was drawn is paid for. Most of a
budget that is too small goes to whom the least is known of: first whoever is in doubt, then workers by how many of
their leases somebody has computed again, fewest first, founders and who stands accused last. So each of n always-liars
is looked at once in every n audits, where draws among all would leave one in three of them out. In an open run, where
newcomers count nowhere until their first leases were computed again, whoever has most of these behind it comes first
of them: one record after another is complete, in place of all of them at the very end. The rest of it (`EVEN`)
goes to anybody alike: who guesses that it has just been audited is not safe. Holds always: what is expected to be paid
for is what the budget has; nobody's probability depends on how early it came. See docs/decisions/0043.
"""

from __future__ import annotations

from typing import Final

from coordinator.engine.config import EngineConfig
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.schedules import recipe_steps
from coordinator.engine.state import EngineState
from coordinator.engine.trust import is_doubted, trust_of

EVEN: Final = 0.25
"""Share of the budget that is drawn for without asking who was looked at before."""
KNOWN: Final = 10
"""Audits after which a worker is no better known by one more."""
_TURNS: Final = KNOWN + 3


def turn_of(config: EngineConfig, worker: WorkerRecord) -> int:
    """Whose audits are paid for first: 0 for who is in doubt, the last turn for who needs none.

    Those are founders, and whoever stands accused: that one weighs nothing whatever it sends, and one more audit of
    each of its leases would leave none for the others.
    """
    if worker.trusted or worker.accused is not None:
        return _TURNS - 1
    if is_doubted(config, worker):
        return 0
    looked_at = worker.audits_passed + worker.audits_failed + worker.undecided_in_row
    if config.open_run:
        return 1 + min(KNOWN, config.audits.first - 1 - looked_at) if looked_at < config.audits.first else 1 + KNOWN
    return 1 + min(KNOWN, looked_at)


def expect(state: EngineState, lease: GrantedLease) -> None:
    """A lease was granted: so much may have to be spent on auditing it."""
    worker = state.workers[lease.worker]
    cost = trust_of(state.config, worker).audit_probability * cost_of(state, lease)
    by_turn = list(state.round.audits_expected_by or (0.0,) * _TURNS)
    by_turn[turn_of(state.config, worker)] += cost
    state.update_round(audits_expected=state.round.audits_expected + cost, audits_expected_by=tuple(by_turn))


def share_paid(state: EngineState, worker: WorkerRecord) -> float:
    """How likely an audit of this worker's that was drawn is paid for."""
    available, expected = state.config.audits.budget + state.round.audit_carried, state.round.audits_expected
    if available >= expected:
        return 1.0
    turn, by_turn = turn_of(state.config, worker), state.round.audits_expected_by or (0.0,) * _TURNS
    left = available - sum(by_turn[:turn])
    # whose turn has changed since its lease was granted may be the only one in it, with nothing expected
    in_turn = 0.0 if left <= 0.0 else min(1.0, left / by_turn[turn]) if by_turn[turn] else 1.0
    return EVEN * available / expected + (1.0 - EVEN) * in_turn


def credit(state: EngineState) -> float:
    """Whole leases' work that audits may still take this round. As long as there is any, the next one is paid for: what
    it overdraws is taken from the rounds to come, so that a budget below one lease buys one every few rounds."""
    return state.config.audits.budget + state.round.audit_carried - state.round.audit_spent


def charge(state: EngineState, lease: GrantedLease) -> None:
    """One more audit is to be paid for."""
    state.update_round(audit_spent=state.round.audit_spent + cost_of(state, lease))


def cost_of(state: EngineState, lease: GrantedLease) -> float:
    """What computing it again takes, in whole leases."""
    return lease.inner_steps / recipe_steps(state.config, lease.round)


def carried_over(state: EngineState) -> float:
    """What the next round begins with, beside its own budget: at most as much again."""
    return min(credit(state), state.config.audits.budget)
