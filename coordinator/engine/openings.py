"""Residuals that an audit needs: which of them a worker is asked for, and which are here.

What was sent in a codec that feeds back its errors says nothing by itself about whether the lease was computed: any lie
can be called an old residual. With the bytes of what went in and of what came out it is told to the rounding of fp32.
Decides, holding always: a worker is asked for what its own commit named, and for nothing else; nobody computes such a
lease again before all of it is here; what never comes is no answer, and weighs what an audit weighs that was called for
and has not come (audits.py). See docs/decisions/0030.
"""

from __future__ import annotations

from coordinator.engine.audits import open_audits
from coordinator.engine.commands import DropPayload
from coordinator.engine.events import ResidualOpened
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import Digest, WorkerId


def asked_of(state: EngineState, worker: WorkerId) -> list[tuple[LeaseRecord, Digest]]:
    """What a worker is to open now. What nobody will compute again without being paid is left with it."""
    # Among open audits, which are few, and not among all that the worker ever had: it is looked for at every call.
    audited = (state.leases[lease_id] for lease_id in state.index.open_audits)
    own = sorted((one for one in audited if one.lease.worker == worker), key=lambda one: one.lease.order)
    return [(record, digest) for record in own if not record.audit_unpaid for digest in record.residuals_missing]


def on_residual_opened(turn: Turn, event: ResidualOpened) -> None:
    """One more is here; twice changes nothing, and what no audit waits for is dropped."""
    state = turn.state
    record = state.leases.get(event.lease_id)
    if record is None or record.lease.worker != event.worker:
        raise IllegalEvent(f"lease {event.lease_id} is not known as {event.worker}'s: it opens nothing")
    if event.digest not in {*record.residuals_in, *record.residuals_out}:
        raise IllegalEvent(f"{event.worker} opens {event.digest}, which its commit for {event.lease_id} did not name")
    turn.hear(event.worker)
    if record.audit_due:
        opened = tuple(dict.fromkeys((*record.residuals_open, event.digest)))
        state.update_lease(event.lease_id, residuals_open=opened)
    else:
        _drop(turn, (event.digest,))


def on_audit_ended(turn: Turn, record: LeaseRecord) -> None:
    """Nobody reads them any more."""
    if record.residuals_open:
        turn.state.update_lease(record.lease.lease_id, residuals_open=())
        _drop(turn, record.residuals_open)


def _drop(turn: Turn, digests: tuple[Digest, ...]) -> None:
    """But for those that another audit needs: what came out of one lease went into the next."""
    needed = {digest for record in open_audits(turn.state) for digest in record.residuals_open}
    for digest in digests:
        if digest not in needed:
            turn.emit(DropPayload(digest=digest))
