"""Blocks that too few independent people returned: whose word counts there.

Decides that on a block which fewer than `INDEPENDENT` people (`WorkerRecord.person`) returned only those have a say
whom the run trusts, or whose submission was audited and found true: no rule can tell two liars from one honest person.
Holds always: a closed run in which nobody is trusted and nothing is audited counts whoever comes, since it has nobody
to ask; it says so (`RoundRecord.thin`, and a status).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.engine.commands import Contribution
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from protocol.ids import TRUNK, BlockId, column_block

INDEPENDENT = 3
"""People on a block among whom one liar is outvoted."""


def is_vouched(state: EngineState, record: LeaseRecord) -> bool:
    """Whether the submission's worker is trusted, or an audit found that it was computed as leased."""
    audited = bool(record.vouchers) and not record.accusers
    return audited or state.workers[record.lease.worker].trusted


def anyone_vouches(state: EngineState) -> bool:
    """Whether this run has somebody, or audits, to vouch for anything; an open run must."""
    config = state.config
    return config.open_run or config.audits.budget > 0.0 or bool(state.index.trusted)


def blocks_of(one: Contribution) -> list[BlockId]:
    """On which it has a say."""
    held = [TRUNK] if one.include_trunk else []
    return [block for block in (*held, *map(column_block, one.columns)) if block not in one.unheard]


def thin_blocks(
    state: EngineState, records: Sequence[LeaseRecord], contributions: Sequence[Contribution]
) -> set[BlockId]:
    """Blocks that somebody returned, and fewer than `INDEPENDENT` people whose word has weight."""
    people: dict[BlockId, set[str]] = {}
    for record, one in zip(records, contributions, strict=True):
        for block in blocks_of(one):
            voices = people.setdefault(block, set())
            if one.weight > 0.0:
                voices.add(state.person_of(record.lease))
    return {block for block, voices in people.items() if len(voices) < INDEPENDENT}


def heard(
    state: EngineState, records: Sequence[LeaseRecord], contributions: Sequence[Contribution], thin: set[BlockId]
) -> tuple[Contribution, ...]:
    """The same contributions, the unvouched of them without a say on thin blocks where this run can vouch at all."""
    if not thin or not anyone_vouches(state):
        return tuple(contributions)
    return tuple(
        one if is_vouched(state, record) else replace(one, unheard=tuple(b for b in blocks_of(one) if b in thin))
        for record, one in zip(records, contributions, strict=True)
    )
