"""Bugs of audits, bans and rollbacks, planted on purpose: each is a small change to the real code while it lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from coordinator.engine import bans, leases, opinions, reputation, rollback, trust
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


def rollback_keeps_the_liar() -> AbstractContextManager[None]:
    """A rollback takes the liar's step again, too."""
    return replaced(rollback, "without", lambda step, _workers: step)
