"""What a worker's encodings have lost so far, by block: which of it a lease names, and what becomes of it.

A codec with error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847) adds to each encoding what
the ones before it lost. That remainder, the residual, lies with the worker; here are digests alone, of the last that a
commit named for each block. Decides, holding always: a lease names what its worker's newest commit left for a block,
or, where that submission came to nothing, what its worker has then (what it began with, and all that was computed); a
block that the worker's newest lease does not hold has none, so that a worker's row holds one digest a block. Where a
later commit has begun with what a submission left that is refused after that, what was sent with it is lost.
See docs/decisions/0030.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from coordinator.engine.events import SubmissionCommitted
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.turn import Turn
from protocol.ids import BlockId, Digest

NONE = Digest("")


def named(residuals: Mapping[BlockId, Digest], blocks: tuple[BlockId, ...]) -> tuple[Digest, ...]:
    """What a lease of `blocks` says; () where nothing is left of any."""
    found = tuple(residuals.get(block, NONE) for block in blocks)
    return found if any(found) else ()


def on_grant(turn: Turn, lease: GrantedLease) -> None:
    """Columns that a worker holds no more are somebody else's to train: what was left of them goes."""
    held = turn.state.workers[lease.worker].residuals
    if held:
        kept = {block: held[block] for block in lease.blocks if block in held}
        turn.state.update_worker(lease.worker, residuals=kept)


def on_commit(turn: Turn, record: LeaseRecord) -> None:
    """It is taken for granted that the submission counts, until it is known that it does not."""
    if not record.residuals_out or record.lease.audits is not None:
        return
    worker = turn.state.workers[record.lease.worker]
    age = worker.residual_age + 1 if any(record.residuals_in) else 0
    left = dict(zip(record.lease.blocks, record.residuals_out, strict=True))
    turn.state.update_worker(worker.worker, residuals={**worker.residuals, **left}, residual_age=age)
    turn.state.update_lease(record.lease.lease_id, residual_age=age)


def on_refused_commit(turn: Turn, record: LeaseRecord, event: SubmissionCommitted) -> None:
    """None of its bytes will come, and no lease of the worker has begun after this one: it goes on from all of it."""
    state, lease = turn.state, record.lease
    newest = [own.lease.lease_id for own in state.leases_of(lease.worker)][-1] == lease.lease_id
    if event.residuals_back and lease.audits is None and newest:
        back = dict(zip(lease.blocks, event.residuals_back, strict=True))
        state.update_worker(lease.worker, residuals={**state.workers[lease.worker].residuals, **back})


def on_lost(turn: Turn, record: LeaseRecord, only: Collection[BlockId] | None = None) -> None:
    """The submission, or `only` these blocks of it, came to nothing: what was sent is the worker's again.

    Unless a later commit of it went on from there.
    """
    if not record.residuals_out or record.lease.audits is not None:
        return
    worker = turn.state.workers[record.lease.worker]
    three = zip(record.lease.blocks, record.residuals_out, record.residuals_back, strict=True)
    again = {
        block: back
        for block, out, back in three
        if worker.residuals.get(block) == out and (only is None or block in only)
    }
    if again:
        turn.state.update_worker(worker.worker, residuals={**worker.residuals, **again})
