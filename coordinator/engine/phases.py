"""The phases of a round and the fates of a lease: two enums, and for each one table of legal moves.

Holds always: a state changes its phase, or a lease its status, through `move_phase` or `move_lease` and no other way,
so a move that is not in the tables cannot happen. `docs/engine.md` shows the diagrams that `mermaid` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from protocol.errors import LocalError


class Phase(StrEnum):
    """Where the run stands."""

    GATHERING = "gathering"
    """The round is open and nobody holds a lease yet."""
    TRAINING = "training"
    """Leases are out and some column still lacks its quorum."""
    GRACE = "grace"
    """Every column has what it can get; stragglers have a little time left."""
    AGGREGATING = "aggregating"
    """The round is closed; its contributions are on their way to a new version."""
    FINISHING = "finishing"
    """No more rounds: the last validation and checkpoint are being made."""
    OVER = "over"


PHASE_MOVES: Mapping[tuple[Phase, Phase], str] = {
    (Phase.GATHERING, Phase.TRAINING): "first lease granted, or a lost one comes back",
    (Phase.GATHERING, Phase.FINISHING): "operator stops the run",
    (Phase.TRAINING, Phase.GRACE): "every column has its quorum, or nobody left who could bring it",
    (Phase.TRAINING, Phase.GATHERING): "every lease was lost, or the round closes with nothing acceptable",
    (Phase.TRAINING, Phase.AGGREGATING): "round closes",
    (Phase.TRAINING, Phase.FINISHING): "operator stops the run, or the last round closes with nothing acceptable",
    (Phase.GRACE, Phase.TRAINING): "a spare takes a column that is short of its quorum",
    (Phase.GRACE, Phase.GATHERING): "round closes with nothing acceptable",
    (Phase.GRACE, Phase.AGGREGATING): "round closes",
    (Phase.GRACE, Phase.FINISHING): "operator stops the run, or the last round closes with nothing acceptable",
    (Phase.AGGREGATING, Phase.GATHERING): "new version published, or none could be made, next round opens",
    (Phase.AGGREGATING, Phase.FINISHING): "last version published, or none could be made",
    (Phase.FINISHING, Phase.OVER): "nothing is pending any more",
}
"""Legal moves and, in words, what makes them."""

OPEN_PHASES = frozenset({Phase.GATHERING, Phase.TRAINING, Phase.GRACE})
"""Phases in which a round takes submissions of its own."""


class LeaseStatus(StrEnum):
    """What became of a lease so far."""

    GRANTED = "granted"
    COMMITTED = "committed"
    """The worker named its digest in time; bytes are still to come."""
    UPLOADED = "uploaded"
    """Bytes are durable; being measured."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    RETURNED = "returned"
    EXPIRED = "expired"


LEASE_MOVES: Mapping[tuple[LeaseStatus, LeaseStatus], str] = {
    (LeaseStatus.GRANTED, LeaseStatus.COMMITTED): "digest named in time",
    (LeaseStatus.GRANTED, LeaseStatus.RETURNED): "handed back",
    (LeaseStatus.GRANTED, LeaseStatus.EXPIRED): "silence, deadline, its round is too long ago, or its worker is banned",
    (LeaseStatus.GRANTED, LeaseStatus.REJECTED): "commits to fewer steps than leased, or to somebody else's bytes",
    (LeaseStatus.EXPIRED, LeaseStatus.COMMITTED): "silent, but back before its deadline with a digest",
    (LeaseStatus.EXPIRED, LeaseStatus.REJECTED): "committed too late, or to what may not count",
    (LeaseStatus.COMMITTED, LeaseStatus.UPLOADED): "all bytes arrived",
    (LeaseStatus.COMMITTED, LeaseStatus.RETURNED): "handed back",
    (LeaseStatus.COMMITTED, LeaseStatus.REJECTED): "bytes arrived too many rounds late",
    (
        LeaseStatus.COMMITTED,
        LeaseStatus.EXPIRED,
    ): "bytes did not arrive within the staleness limit, or its worker is banned",
    (LeaseStatus.UPLOADED, LeaseStatus.ACCEPTED): "passed screening",
    (LeaseStatus.UPLOADED, LeaseStatus.REJECTED): "refused by screening, or its worker is banned",
    (
        LeaseStatus.ACCEPTED,
        LeaseStatus.REJECTED,
    ): "fell short once the whole round was known, cannot be aggregated, failed its audit, or its worker is banned",
}

LIVE_STATUSES = frozenset({LeaseStatus.GRANTED, LeaseStatus.COMMITTED, LeaseStatus.UPLOADED, LeaseStatus.ACCEPTED})
"""A lease that may still, or does, contribute."""
LOST_STATUSES = frozenset({LeaseStatus.RETURNED, LeaseStatus.EXPIRED})
"""A lease that no submission came of: its worker may be leased the same columns again."""


def move_phase(old: Phase, new: Phase) -> Phase:
    """`new`, if the table allows it."""
    if (old, new) not in PHASE_MOVES:
        raise LocalError(f"phase {old} may not be followed by {new}")
    return new


def move_lease(lease_id: str, old: LeaseStatus, new: LeaseStatus) -> LeaseStatus:
    """`new`, if the table allows it."""
    if (old, new) not in LEASE_MOVES:
        raise LocalError(f"lease {lease_id} is {old} and may not become {new}")
    return new


def mermaid(moves: Mapping[tuple[Phase, Phase], str] | Mapping[tuple[LeaseStatus, LeaseStatus], str]) -> str:
    """A table of moves as a Mermaid state diagram."""
    first, _ = next(iter(moves))
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {old} --> {new}: {words}" for (old, new), words in moves.items()]
    starts = {old for old, _ in moves}
    lines += [f"    {new} --> [*]" for new in dict.fromkeys(new for _, new in moves) if new not in starts]
    return "\n".join(lines)
