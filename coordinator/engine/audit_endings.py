"""How an audit ends: settled by opinions, given up where nobody is left to ask, or over with its round or the run.

Decides what is kept of it: the operator sees every lease that somebody could not reproduce, under its latest standing.
Holds always: each lease is settled once; whoever is still computing it again has done its part; bytes that nothing else
needs are dropped. Says nothing about anybody's record: that is `reputation.py`'s, whom opinions (opinions.py) reach.
"""

from __future__ import annotations

from coordinator.engine import audits, leases, openings, shadows
from coordinator.engine.commands import CompareSubmissions
from coordinator.engine.history import Accusation, AuditOutcome, remembered
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.turn import Turn


def end_old(turn: Turn) -> None:
    """A round opens: what was to be audited long ago is kept no longer."""
    state = turn.state
    for record in audits.open_audits(state):
        if record.lease.round + state.config.audits.keep_rounds < state.round.round:
            give_up(turn, record)


def end_all(turn: Turn) -> None:
    """The run takes no more steps: nothing that an audit could find would change it."""
    for record in audits.open_audits(turn.state):
        give_up(turn, record)


def give_up(turn: Turn, record: LeaseRecord) -> None:
    """Nobody is left to ask: a lone accusation stands, without being final, until the operator has decided."""
    end(turn, record, AuditOutcome.UNDECIDED)


def end(turn: Turn, record: LeaseRecord, outcome: AuditOutcome) -> None:
    """The audit is over: nobody computes it any more, and what was called for and did not come is unpaid."""
    state, lease_id = turn.state, record.lease.lease_id
    unpaid = record.audit_unpaid or record.is_undecided or (record.audit_certain and not record.audits)
    turn.settle(audits.replay_id(lease_id))
    for command in list(state.pending.values()):
        if isinstance(command, CompareSubmissions) and command.lease.lease_id == lease_id:
            turn.settle(command.command_id)
            shadows.take(turn, command.again.lease_id)
    openings.on_audit_ended(turn, record)
    record = state.update_lease(lease_id, audit_due=False, audit_unpaid=unpaid and not record.vouchers)
    note(turn, record, outcome)
    if record.is_undecided and not record.vouchers and not record.accusers:
        _note_undecided(turn, record)
    if record.status is not LeaseStatus.ACCEPTED or record.counted_in is not None:
        leases.drop_payload(turn, record)


def _note_undecided(turn: Turn, record: LeaseRecord) -> None:
    """Nobody could say anything: its worker is a stranger again where it computes so, and nothing else follows."""
    worker = turn.state.workers[record.lease.worker]
    turn.state.update_worker(
        worker.worker,
        undecided_in_row=worker.undecided_in_row + 1,
        vouched_in=tuple(how for how in worker.vouched_in if how != record.computed_as),
    )


def note(turn: Turn, record: LeaseRecord, outcome: AuditOutcome) -> None:
    """For the operator: every lease that somebody could not reproduce, under its latest standing."""
    if not record.accusers:
        return
    state, lease = turn.state, record.lease
    row = Accusation(
        lease_id=lease.lease_id,
        worker=lease.worker,
        round=lease.round,
        at_s=state.now_s,
        accusers=record.accusers,
        vouchers=record.vouchers,
        outcome=outcome,
    )
    known = [one.lease_id for one in state.accusations]
    if lease.lease_id in known:
        place = known.index(lease.lease_id)
        state.accusations = (*state.accusations[:place], row, *state.accusations[place + 1 :])
    else:
        state.accusations = remembered(state.accusations, row)
