"""What an operator should know of audits, in words. Decides nothing."""

from __future__ import annotations

from coordinator.engine import arithmetic
from coordinator.engine.history import Accusation, AuditOutcome
from coordinator.engine.state import EngineState


def audit_notes(state: EngineState) -> tuple[str, ...]:
    """What an operator should know of audits: what they could not pay for, and what is theirs to decide."""
    notes: list[str] = []
    current = state.round
    if current.audits_unpaid:
        kept = 0.0 if state.config.open_run else state.config.audits.unpaid_weight
        notes.append(
            f"{current.audits_unpaid} of {current.audits_drawn} audits drawn could not be paid for this round: what "
            f"they were for counts {'nowhere' if kept == 0 else f'at {kept:g} of its weight'} (audits.budget is "
            f"{state.config.audits.budget:g} leases a round)"
        )
    alike: dict[tuple[object, ...], list[Accusation]] = {}
    for one in state.accusations:
        if one.outcome is AuditOutcome.UNDECIDED and state.workers[one.worker].ban is None:
            alike.setdefault((one.worker, one.accusers, one.vouchers), []).append(one)
    notes += arithmetic.told_undecided_workers(state)
    return (*notes, *(_undecided(state, several[-1], len(several) - 1) for several in alike.values()))


def _undecided(state: EngineState, one: Accusation, before: int) -> str:
    name = state.called(one.worker)
    what = f"{name}'s {one.lease_id}" + (f", and {before} of its leases before that," if before else "")
    found = f"round {one.round}: {what} could not be reproduced by {_people(one.accusers)}"
    if one.vouchers:
        return f"{found}, and was by {_people(one.vouchers)}; there is no third auditor to say who is right"
    return (
        f"{found}, and there is no second auditor: what it sends counts nowhere, and the rest is yours to decide "
        f"(`barnraise coordinator ban {name}`, or invite another owner's machine with --trusted)"
    )


def _people(people: tuple[str, ...]) -> str:
    return " and ".join(person or "the coordinator" for person in people)
