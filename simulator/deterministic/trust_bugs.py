"""Bugs of audits, bans and rollbacks, planted on purpose: each is a small change to the real code while it lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from coordinator.engine import bans, delegation, leases, measuring, opinions, reputation, rollback, trust
from coordinator.engine.reasons import BANNED
from simulator.deterministic.planting import replaced


def banned_on_one_word() -> AbstractContextManager[None]:
    """The engine bans whomever one auditor contradicts."""
    return replaced(reputation, "INDEPENDENT", 1)


@contextlib.contextmanager
def banned_and_still_counted() -> Iterator[None]:
    """What a worker had sent before its ban is not withdrawn, nor taken out of the round that is aggregated."""
    withdraw = leases.withdraw

    def careless(turn: Any, lease_id: Any, verdict: Any) -> None:
        if verdict.key != BANNED:
            withdraw(turn, lease_id, verdict)

    with replaced(leases, "withdraw", careless), replaced(bans, "_begin_again_without", lambda *_: None):
        yield


def audited_bytes_dropped() -> AbstractContextManager[None]:
    """Bytes are dropped once counted, though an audit of them is due."""
    drop = leases.drop_payload
    return replaced(leases, "drop_payload", lambda turn, record: drop(turn, replace(record, audit_due=False)))


def newcomer_weighs() -> AbstractContextManager[None]:
    """A newcomer to an open run, or whoever is on probation, has weight at once."""
    return replaced(trust, "_weight", lambda _config, _record: 1.0)


def rounding_taken_for_a_lie() -> AbstractContextManager[None]:
    """An auditor that rounds otherwise is believed like any other."""
    return replaced(opinions, "is_decisive", lambda *_: True)


def refused_on_a_workers_word() -> AbstractContextManager[None]:
    """What a trusted worker says that a submission gains is enough to refuse it."""
    return replaced(delegation, "is_to_be_confirmed", lambda *_: False)


def caught_liar_believed() -> AbstractContextManager[None]:
    """A worker that was found to have lied of what it measured keeps its trust, and what it said stands."""
    return replaced(delegation, "caught", lambda *_: None)


def measured_on_known_text() -> AbstractContextManager[None]:
    """Whoever commits after others were given a round's sequences is measured on them, too."""
    rows_for = measuring._rows_for

    def careless(turn: Any, record: Any) -> Any:
        return rows_for(turn, replace(record, committed_at_s=-1.0))

    return replaced(measuring, "_rows_for", careless)


def rollback_keeps_the_liar() -> AbstractContextManager[None]:
    """A rollback takes the liar's step again, too."""
    return replaced(rollback, "without", lambda step, _workers: step)
