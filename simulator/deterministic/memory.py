"""What a coordinator may hold at most in a simulated run, in memory and on disk.

Decides nothing. Always: a run's leases, commands and payloads do not pile up, however many leases a volunteer loses.
"""

from __future__ import annotations

from collections import Counter

from coordinator.engine.past import submissions_of
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from protocol.ids import Digest, LeaseId
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.disk import Disk

KEPT_ROUNDS = 3
"""For which a lease is kept after the last one that it could count in: to answer from, and one more."""
_OPEN = frozenset({LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED})


def check_memory(state: EngineState, disk: Disk) -> None:
    """Raises InvariantBroken where there is more than can be needed."""
    _check_leases(state)
    if len(state.pending) > len(state.leases) + 2 * (len(state.history) + 2):
        raise InvariantBroken(f"{len(state.pending)} commands are pending")
    if len(state.failures) > len(state.pending):
        failed, pending = len(state.failures), len(state.pending)
        raise InvariantBroken(f"{failed} failures are remembered for {pending} pending commands")


def payloads_without_leases(state: EngineState, disk: Disk) -> int:
    """Payloads beyond one for each lease and each step that a rollback could take back. Above 0 only for as long as
    what the last event had dropped is not carried out.
    """
    return max(0, len(disk.payloads) - len(state.leases) - len(submissions_of(state.past_steps)))


def counted_with(digest: Digest, state: EngineState) -> dict[LeaseId, str]:
    """What became of the leases whose submissions have this payload, where they count or were told that they do not."""
    records = state.leases.items()
    return {
        lease_id: f"counted in round {record.counted_in}"
        for lease_id, record in records
        if record.digest == digest and record.counted_in is not None
    }


def _check_leases(state: EngineState) -> None:
    """A round may stay open for as long as nobody brings anything, and all that time leases may be lost.

    But a worker that lost two waits for `min_lease_s` after the second and each one more, and of those that it did not
    lose no two have a column in common. So one worker's leases of a round are bounded by its columns and its age. Those
    that it computes again for audits are bounded by what there is to audit: nobody is asked twice about one lease.
    """
    number, config = state.round.round, state.config
    of_round, asked = Counter[str](), Counter[tuple[str, LeaseId]]()
    for lease_id, record in state.leases.items():
        if record.lease.audits is not None:
            asked[record.lease.worker, record.lease.audits] += 1
        elif record.lease.round == number:
            of_round[record.lease.worker] += 1
        if record.lease.round < number - _kept_rounds(state, record) and record.status not in _OPEN:
            raise InvariantBroken(f"lease {lease_id} of round {record.lease.round} is kept in round {number}")
    if twice := [whose for whose, count in asked.items() if count > 1]:
        raise InvariantBroken(f"worker {twice[0][0][:8]} was asked twice to compute lease {twice[0][1]} again")
    most = config.columns + 2 + (state.now_s - state.round.opened_at_s) / config.min_lease_s
    for worker, count in of_round.items():
        if count > most:
            raise InvariantBroken(f"worker {worker[:8]} has {count} leases of round {number}, at most {most:.0f}")


def _kept_rounds(state: EngineState, record: LeaseRecord) -> int:
    """What is still to be audited, or audits such a lease, is kept until the audit's time is over, and all leases of a
    worker and round for as long as an audit or a rollback may undo what one of them earned.
    """
    audits, config = state.config.audits, state.config
    audited = record.audit_due or record.lease.audits is not None or audits.budget > 0.0
    return config.max_staleness + max(config.rollback_rounds, audits.keep_rounds * audited) + KEPT_ROUNDS
