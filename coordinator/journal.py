"""The journal: what happened to a run, durable before anybody is told of it.

Decides how events and snapshots lie on disk; knows nothing of what they mean (a record is a line of text).
Always: one writer; one commit for everything queued; a commit is on disk before `append` returns
(SQLite in WAL mode with synchronous=FULL); positions rise by one and never come back, not even after a cut.

Sources: SQLite's own description of WAL durability (https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError, LocalError

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (position INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE snapshots (position INTEGER PRIMARY KEY, engine_version INTEGER NOT NULL, state TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine's state after the event at `position`."""

    position: int
    engine_version: int
    state: str


class Journal:
    """One run's journal file. Owned by one process; used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path, last_position: int) -> None:
        self._connection = connection
        self._path = path
        self._last_position = last_position

    @classmethod
    def create(cls, path: Path, *, engine_version: int) -> Journal:
        """A new, empty journal. Refuses to touch an existing file."""
        if path.exists():
            raise ConfigError(f"{path} exists already; a run's journal is never overwritten")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = _connect(path)
        with _transaction(connection):
            for statement in _SCHEMA.strip().split(";"):
                connection.execute(statement)
            meta = [("schema_version", str(SCHEMA_VERSION)), ("engine_version", str(engine_version))]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        return cls(connection, path, 0)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """The journal at `path`, as the last commit left it."""
        if not path.is_file():
            raise ConfigError(f"{path} is not there; has the run been made with `barnraise coordinator init`?")
        connection = _connect(path)
        try:
            row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
            found = connection.execute(
                "SELECT ifnull(max(position), 0)"
                " FROM (SELECT position FROM events UNION ALL SELECT position FROM snapshots)"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ConfigError(f"{path} is not a journal that this program can read: {error}") from error
        if row is None or row[0] != str(SCHEMA_VERSION):
            connection.close()
            raise ConfigError(f"{path} has journal schema {row and row[0]}; this program reads {SCHEMA_VERSION}")
        return cls(connection, path, int(found[0]))

    @property
    def engine_version(self) -> int:
        """Version of the engine that wrote this journal: another one may decide differently on replay."""
        return int(self.meta("engine_version") or 0)

    @property
    def last_position(self) -> int:
        """Position of the newest event; 0 where there is none."""
        return self._last_position

    def append(self, records: Sequence[str]) -> int:
        """Write all `records` in one commit and return the last position. They are durable when this returns."""
        if not records:
            return self._last_position
        first = self._last_position + 1
        with _transaction(self._connection):
            self._connection.executemany("INSERT INTO events VALUES (?, ?)", enumerate(records, start=first))
        self._last_position = first + len(records) - 1
        return self._last_position

    def read(self, after: int = 0) -> Iterator[tuple[int, str]]:
        """Events with a position above `after`, in order; a gap means that the file was tampered with."""
        expected: int | None = None
        query = "SELECT position, record FROM events WHERE position > ? ORDER BY position"
        for position, record in self._connection.execute(query, (after,)):
            if expected is not None and position != expected:
                raise LocalError(f"{self._path}: expected event {expected}, got {position}")
            expected = position + 1
            yield position, record

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep `snapshot` and cut everything that it makes superfluous, in one commit."""
        if snapshot.position > self._last_position:
            raise LocalError(f"snapshot at {snapshot.position} is ahead of the journal's {self._last_position}")
        with _transaction(self._connection):
            row = (snapshot.position, snapshot.engine_version, snapshot.state)
            self._connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)", row)
            self._connection.execute("DELETE FROM snapshots WHERE position < ?", (snapshot.position,))
            self._connection.execute("DELETE FROM events WHERE position <= ?", (snapshot.position,))

    def latest_snapshot(self) -> Snapshot | None:
        """The newest snapshot, if there is one."""
        query = "SELECT position, engine_version, state FROM snapshots ORDER BY position DESC LIMIT 1"
        row = self._connection.execute(query).fetchone()
        return None if row is None else Snapshot(position=row[0], engine_version=row[1], state=row[2])

    def meta(self, key: str) -> str | None:
        """A small value kept beside the events."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small value beside the events, durably."""
        with _transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Release the file. What was appended stays."""
        self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    # The pump appends from a thread of its own, one call at a time; hence no thread check here.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
