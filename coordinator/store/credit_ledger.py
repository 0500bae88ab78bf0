"""Every lease that was credited, and every one whose credit was taken back: what receipts are written from.

Decides nothing. The sums are the engine's (coordinator/engine/credit.py); this has the single entries, which the engine
forgets. Touches one SQLite file. Always: an entry that is here already changes nothing; entries are numbered in the
order in which they came, and never change; no name is in it. It may lose its newest entries with the machine; whoever
opens it writes those again out of the engine's state.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coordinator.store.journal_file import telling
from protocol.ids import LeaseId, RoundNumber, WorkerId
from protocol.storage import telling_storage_trouble

_SCHEMA = """
CREATE TABLE IF NOT EXISTS credits (
    number INTEGER PRIMARY KEY AUTOINCREMENT, lease TEXT NOT NULL UNIQUE, worker TEXT NOT NULL, round INTEGER NOT NULL,
    sequences INTEGER NOT NULL, wall_s REAL
);
CREATE INDEX IF NOT EXISTS by_worker ON credits (worker, number);
CREATE TABLE IF NOT EXISTS revocations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, lease TEXT NOT NULL UNIQUE, worker TEXT NOT NULL, why TEXT NOT NULL,
    wall_s REAL
);
CREATE INDEX IF NOT EXISTS revoked_by_worker ON revocations (worker, number);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditEntry:
    """One lease that was credited."""

    lease_id: LeaseId
    worker: WorkerId
    round: RoundNumber
    sequences: int
    wall_s: float | None = None
    number: int = 0
    """Given when it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationEntry:
    """Its credit was taken back."""

    lease_id: LeaseId
    worker: WorkerId
    why: str
    wall_s: float | None = None


class CreditLedger:
    """One run's; one writer at a time, any number of readers."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> CreditLedger:
        """For writing; made where it is not there."""
        with telling_storage_trouble(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with telling(path, "open"):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            # a verdict never waits for the disk here: what is lost with the machine is written again
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
        return cls(connection)

    def write(self, credited: Iterable[CreditEntry], revoked: Iterable[RevocationEntry]) -> None:
        """Add what is not here yet; what was never credited is not revoked. sqlite3.Error where the disk takes none."""
        added = [(one.lease_id, one.worker, one.round, one.sequences, one.wall_s) for one in credited]
        undone = [(one.lease_id, one.worker, one.why, one.wall_s, one.lease_id) for one in revoked]
        if not added and not undone:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(
                "INSERT OR IGNORE INTO credits (lease, worker, round, sequences, wall_s) VALUES (?, ?, ?, ?, ?)", added
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO revocations (lease, worker, why, wall_s) SELECT ?, ?, ?, ?"
                " WHERE EXISTS (SELECT 1 FROM credits WHERE lease = ?)",
                undone,
            )
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def credits_of(self, worker: WorkerId, *, after: int, most: int) -> list[CreditEntry]:
        """At most `most` of the worker's with a number above `after`, in order, those that were revoked included."""
        rows = self._connection.execute(
            "SELECT number, lease, round, sequences, wall_s FROM credits WHERE worker = ? AND number > ?"
            " ORDER BY number LIMIT ?",
            (worker, after, most),
        ).fetchall()
        return [
            CreditEntry(
                number=number,
                lease_id=LeaseId(lease),
                worker=worker,
                round=RoundNumber(round_),
                sequences=sequences,
                wall_s=wall_s,
            )
            for number, lease, round_, sequences, wall_s in rows
        ]

    def revocations(self, worker: WorkerId | None = None) -> list[RevocationEntry]:
        """The worker's, or everybody's, in the order of their leases' names."""
        rows = self._connection.execute(
            "SELECT lease, worker, why, wall_s FROM revocations WHERE ?1 IS NULL OR worker = ?1 ORDER BY lease",
            (worker,),
        ).fetchall()
        return [
            RevocationEntry(lease_id=LeaseId(lease), worker=WorkerId(whose), why=why, wall_s=wall_s)
            for lease, whose, why, wall_s in rows
        ]

    def close(self) -> None:
        """Release the file."""
        self._connection.close()
