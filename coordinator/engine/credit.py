"""Credit: which work stands to whose name, and the ranking of workers, owners and teams by it.

Decides when a lease's work is credited (with its acceptance; a lease computed again as an audit, too) and when that is
taken back: where the acceptance is withdrawn, where two independent auditors contradicted it, however late, and where a
rollback made a version without it. Holds always: a worker's credit is the sum over its leases that stand, each once;
what is taken back was credited before. The state carries the sums, so the journal keeps them; names and teams are given
from outside, since they are nowhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from coordinator.engine.reasons import Reason
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.ids import LeaseId, RoundNumber, WorkerId


def give(turn: Turn, lease_id: LeaseId) -> None:
    """The lease was accepted: its work stands."""
    state = turn.state
    record = state.leases[lease_id]
    earned = state.workers[record.lease.worker].credit
    is_first = not _others_stand(state, record)
    state.update_lease(lease_id, credited=record.lease.sequences)
    state.update_worker(
        record.lease.worker,
        credit=replace(
            earned,
            sequences=earned.sequences + record.lease.sequences,
            leases=earned.leases + 1,
            rounds=earned.rounds + is_first,
        ),
    )


def take_back(turn: Turn, lease_id: LeaseId, why: Reason) -> None:
    """The lease's work does not stand after all; nothing where it did not before, or is forgotten."""
    state = turn.state
    record = state.leases.get(lease_id)
    if record is None or not record.credited:
        return
    earned = state.workers[record.lease.worker].credit
    was_last = not _others_stand(state, record)
    state.update_lease(lease_id, credited=0, uncredited=why)
    state.update_worker(
        record.lease.worker,
        credit=replace(
            earned,
            sequences=earned.sequences - record.credited,
            leases=earned.leases - 1,
            rounds=earned.rounds - was_last,
            lost_sequences=earned.lost_sequences + record.credited,
            lost_leases=earned.lost_leases + 1,
        ),
    )


def may_be_taken_back(state: EngineState) -> set[tuple[WorkerId, RoundNumber]]:
    """Whose leases of which rounds must be remembered: an audit or a rollback may still undo one of them."""
    reachable = [one.lease_id for step in state.past_steps for one in step.attempt.contributions]
    found = (state.leases.get(lease_id) for lease_id in (*state.index.open_audits, *reachable))
    return {(one.lease.worker, one.lease.round) for one in found if one is not None and one.credited}


def _others_stand(state: EngineState, record: LeaseRecord) -> bool:
    """Whether another lease of the same worker and round is credited."""
    lease = record.lease
    return any(
        one.credited > 0 and one.lease.round == lease.round and one.lease.lease_id != lease.lease_id
        for one in state.leases_of(lease.worker)
    )


# ---- looking ------------------------------------------------------------------------------------------------------


class CreditOf(StrEnum):
    """By what credit is added up."""

    WORKER = "worker"
    OWNER = "owner"
    TEAM = "team"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRow:
    """One line of a ranking."""

    rank: int
    """From 1; equal tokens share one."""
    key: str
    """Worker id, owner or team."""
    name: str
    """To be shown."""
    workers: int
    tokens: int
    """Validated: of work that was accepted and stands."""
    leases: int
    rounds: int
    """Of each worker those in which work of it stands, added up."""
    lost_tokens: int
    """Credited once and taken back."""


def ranking(
    workers: Iterable[WorkerRecord],
    *,
    by: CreditOf = CreditOf.WORKER,
    tokens_a_sequence: int,
    name_of: Callable[[WorkerId], str],
    team_of: Callable[[WorkerId], str] = lambda _: "",
) -> tuple[CreditRow, ...]:
    """Everybody who has earned anything, or lost it, the most validated tokens first; a pure function.

    By owner, a machine that is nobody's in particular stands for itself; by team, whoever is in none is left out.
    """
    groups: dict[str, list[WorkerRecord]] = {}
    names: dict[str, str] = {}
    for record in workers:
        if record.credit.leases or record.credit.lost_leases:
            key, name = _group_of(record, by, name_of, team_of)
            if key:
                groups.setdefault(key, []).append(record)
                names[key] = name
    rows = [_row(key, names[key], members, tokens_a_sequence) for key, members in groups.items()]
    rows.sort(key=lambda row: (-row.tokens, row.name, row.key))
    ranked: list[CreditRow] = []
    for place, row in enumerate(rows, start=1):
        tied = bool(ranked) and ranked[-1].tokens == row.tokens
        ranked.append(replace(row, rank=ranked[-1].rank if tied else place))
    return tuple(ranked)


def place_of(state: EngineState, worker: WorkerId) -> tuple[int, int]:
    """The worker's rank, 0 where nothing stands to its name, and among how many workers."""
    standing = [one.credit.sequences for one in state.workers.values() if one.credit.sequences]
    own = state.workers[worker].credit.sequences if worker in state.workers else 0
    return 1 + sum(other > own for other in standing) if own else 0, len(standing)


def _group_of(
    record: WorkerRecord, by: CreditOf, name_of: Callable[[WorkerId], str], team_of: Callable[[WorkerId], str]
) -> tuple[str, str]:
    if by is CreditOf.TEAM:
        team = team_of(record.worker)
        return team, team
    if by is CreditOf.OWNER and record.owner:
        return f"owner {record.owner}", record.owner
    return record.worker, name_of(record.worker)


def _row(key: str, name: str, members: list[WorkerRecord], tokens_a_sequence: int) -> CreditRow:
    earned = [one.credit for one in members]
    return CreditRow(
        rank=0,
        key=key,
        name=name,
        workers=len(members),
        tokens=tokens_a_sequence * sum(one.sequences for one in earned),
        leases=sum(one.leases for one in earned),
        rounds=sum(one.rounds for one in earned),
        lost_tokens=tokens_a_sequence * sum(one.lost_sequences for one in earned),
    )
