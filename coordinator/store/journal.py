"""The journal: what happened to a run, durable before anybody is told of it.

Decides when events and snapshots are written and whether what is read back is what was written; knows nothing of what
they mean (a record is a line of text). Always: one writer; one commit for everything queued; a commit is on disk before
`append` returns (SQLite in WAL mode with synchronous=FULL); positions rise by one and never come back, not even after a
cut; a commit that failed changed nothing, and a handle that was fenced out makes none. The format lies in
`coordinator/store/journal_file.py`.

Sources: SQLite's own description of WAL durability (https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from coordinator.store.journal_file import (
    CHAIN_BYTES,
    GENESIS,
    SCHEMA,
    SCHEMA_VERSION,
    Mark,
    chained,
    connect,
    migrate,
    state_digest,
    telling,
    transaction,
)
from coordinator.store.ports import EventStore, Snapshot
from protocol.errors import ConfigError, LocalError
from protocol.storage import telling_storage_trouble


class Moment(StrEnum):
    """Where a process can be when it dies, as an observer is told: every position at which a test kills one."""

    INSERTED = "inserted"
    """Records are in the open transaction; nothing is durable."""
    COMMITTED = "committed"
    """They are durable; nothing has been applied."""
    APPLYING = "applying"
    """This one event is about to be applied."""
    APPLIED = "applied"
    """It is applied, its commands are carried out or queued; its submitter has not been answered."""
    CUTTING = "cutting"
    """A snapshot is in the open transaction that also cuts the journal."""
    CUT = "cut"
    """The cut is durable."""


_TAILS = (
    "SELECT position, chain FROM events ORDER BY position DESC LIMIT 1",
    "SELECT position, chain FROM snapshots ORDER BY position DESC LIMIT 1",
)
_SET_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
_EPOCH = "epoch"
"""In `meta`: rises by one whenever a coordinator takes the journal over."""
_CHAINS = ("SELECT chain FROM snapshots WHERE position = ?", "SELECT chain FROM events WHERE position = ?")

JournalObserver = Callable[[Moment, Sequence[str]], None]


def unobserved(_moment: Moment, _records: Sequence[str]) -> None:
    """The observer of a journal that nobody watches."""


class Journal(EventStore):
    """One run's journal file, an `EventStore`. Owned by one process; used by one thread at a time."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        observer: JournalObserver = unobserved,
        *,
        writable: bool = True,
    ) -> None:
        self._connection = connection
        self._path = path
        self._observer = observer
        self._mark = Mark(path)
        self._writable = writable
        self._last_position, self._chain = self._tail()
        self._epoch = self._epoch_written()

    @classmethod
    def create(cls, path: Path, *, engine_version: int) -> Journal:
        """A new, empty journal. Refuses to touch an existing file."""
        if path.exists():
            raise ConfigError(f"{path} exists already; a run's journal is never overwritten")
        with telling_storage_trouble(path):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with telling(path):
            connection = connect(path)
            with transaction(connection):
                for statement in SCHEMA.strip().split(";"):
                    connection.execute(statement)
                meta = [("schema_version", str(SCHEMA_VERSION)), ("engine_version", str(engine_version))]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
            return cls(connection, path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True, observer: JournalObserver = unobserved) -> Journal:
        """The journal at `path`, as the last commit left it; ConfigError when it is not what was written.

        Not `writable`, it may be open elsewhere at the same time, and nothing is changed.
        """
        if not path.is_file():
            raise ConfigError(f"{path} is not there; has the run been made with `barnraise coordinator init`?")
        with telling(path, "open"):
            connection = connect(path, writable=writable)
        try:
            with telling(path, "open"):
                _check_schema(connection, path, writable=writable)
                journal = cls(connection, path, observer, writable=writable)
                if writable:
                    journal.check_mark()
        except BaseException:
            connection.close()
            raise
        return journal

    @property
    def engine_version(self) -> int:
        """See `EventStore`."""
        return int(self.meta("engine_version") or 0)

    @property
    def last_position(self) -> int:
        """See `EventStore`."""
        return self._last_position

    @property
    def chain(self) -> bytes:
        """What tells everything up to the last event from anything else."""
        return self._chain

    def chain_at(self, position: int) -> bytes | None:
        """The same up to `position`; None where that was cut away."""
        return self._chain if position == self._last_position else self._chain_at(position)

    def append(self, records: Sequence[str]) -> int:
        """Write all `records` in one commit and return the last position. They are durable when this returns.

        StorageTrouble when the disk takes no writes: then none of them is in the journal, and it may be tried again.
        """
        if not records:
            return self._last_position
        rows, chain = [], self._chain
        for position, record in enumerate(records, start=self._last_position + 1):
            chain = chained(chain, record)
            rows.append((position, record, chain))
        with self._writing():
            self._connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
            self._observer(Moment.INSERTED, records)
        self._last_position, self._chain = rows[-1][0], chain
        self._mark.write(self._last_position, chain)
        self._observer(Moment.COMMITTED, records)
        return self._last_position

    def read(self, after: int = 0) -> Iterator[tuple[int, str]]:
        """Events with a position above `after`, in order, each checked against the chain."""
        chain = self._chain_at(after)
        expected: int | None = None
        query = "SELECT position, record, chain FROM events WHERE position > ? ORDER BY position"
        with telling(self._path, "read"):
            for position, record, written in self._connection.execute(query, (after,)):
                if expected is not None and position != expected:
                    self._damaged(f"expected event {expected}, got {position}")
                expected = position + 1
                chain = written if chain is None else chained(chain, record)
                if chain != written:
                    self._damaged(f"event {position} is not what was written")
                yield position, record

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep `snapshot` and cut everything that it makes superfluous, in one commit."""
        if snapshot.position > self._last_position:
            raise LocalError(f"snapshot at {snapshot.position} is ahead of the journal's {self._last_position}")
        chain = self._chain if snapshot.position == self._last_position else self._chain_at(snapshot.position)
        with self._writing():
            row = (snapshot.position, snapshot.engine_version, snapshot.state, chain, state_digest(snapshot.state))
            self._connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)", row)
            self._connection.execute("DELETE FROM snapshots WHERE position < ?", (snapshot.position,))
            self._connection.execute("DELETE FROM events WHERE position <= ?", (snapshot.position,))
            self._connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'engine_version'", (str(snapshot.engine_version),)
            )
            self._observer(Moment.CUTTING, ())
        self._observer(Moment.CUT, ())

    def latest_snapshot(self) -> Snapshot | None:
        """See `EventStore`."""
        query = "SELECT position, engine_version, state, digest FROM snapshots ORDER BY position DESC LIMIT 1"
        with telling(self._path, "read"):
            row = self._connection.execute(query).fetchone()
        if row is None:
            return None
        if state_digest(row[2]) != row[3]:
            self._damaged(f"the snapshot at event {row[0]} is not what was written")
        return Snapshot(position=row[0], engine_version=row[1], state=row[2])

    def meta(self, key: str) -> str | None:
        """A small value kept beside the events."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small value beside the events, durably."""
        with self._writing():
            self._connection.execute(_SET_META, (key, value))

    def fence(self) -> None:
        """Keep everybody out who opened this journal before, whatever became of the lock on its folder."""
        with telling(self._path), transaction(self._connection):
            epoch = self._epoch_written() + 1
            self._connection.execute(_SET_META, (_EPOCH, str(epoch)))
        self._epoch = epoch
        self._last_position, self._chain = self._tail()

    def copy_to(self, target: Path) -> None:
        """A copy of the journal at one moment between two commits, while it may be written to."""
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with telling(target):
            copy = sqlite3.connect(target)
            try:
                self._connection.backup(copy)
            finally:
                copy.close()

    def integrity(self) -> str:
        """What SQLite's own check of the whole file says: `ok`, or what is wrong."""
        try:
            return str(self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
        except sqlite3.DatabaseError as error:
            return str(error)

    def close(self) -> None:
        """Release the file. What was appended stays."""
        self._mark.close()
        self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of what is inside, durably, or nothing; LocalError where somebody has fenced this handle out."""
        with telling(self._path), transaction(self._connection):
            if self._epoch_written() != self._epoch:
                raise LocalError(
                    f"{self._path} was taken over by another process: this one may not write to it any more"
                )
            yield

    def _epoch_written(self) -> int:
        return int(self.meta(_EPOCH) or 0)

    def _tail(self) -> tuple[int, bytes]:
        """Position and chain of the newest event, or of the snapshot that covers it."""
        tails = [(0, GENESIS)]
        for query in _TAILS:
            tails += self._connection.execute(query).fetchall()
        return max(tails)

    def _chain_at(self, position: int) -> bytes | None:
        """The chain's value after the event at `position`; None where that was cut away and no snapshot tells it."""
        for query in _CHAINS:
            row = self._connection.execute(query, (position,)).fetchone()
            if row is not None and len(row[0]) == CHAIN_BYTES:
                return bytes(row[0])
        return GENESIS if position == 0 and not self._has_snapshot() else None

    def _has_snapshot(self) -> bool:
        return self._connection.execute("SELECT 1 FROM snapshots LIMIT 1").fetchone() is not None

    def check_mark(self) -> None:
        """Find a tail that is gone: the mark knows of commits that the file does not hold. Only while nobody writes."""
        marked = self._mark.read()
        if marked is not None and marked.position > self._last_position:
            raise ConfigError(
                f"{self._path} ends at event {self._last_position}, but event {marked.position} was written: its tail "
                "was cut off or damaged; put back a backup with `barnraise coordinator restore`, or delete "
                f"{self._mark.path.name} to go on without what came after"
            )
        if marked is not None and marked.position == self._last_position and marked.chain != self._chain:
            self._damaged(f"event {marked.position} is not the one that was written")
        if self._writable:
            self._mark.write(self._last_position, self._chain)

    def _damaged(self, what: str) -> NoReturn:
        raise ConfigError(f"{self._path} is damaged: {what}; put back a backup with `barnraise coordinator restore`")


def _check_schema(connection: sqlite3.Connection, path: Path, *, writable: bool) -> None:
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        raise ConfigError(f"{path} is not a journal that this program can read: {error}") from error
    if row is not None and row[0] == "1" and writable:
        migrate(connection)
    elif row is None or row[0] != str(SCHEMA_VERSION):
        raise ConfigError(f"{path} has journal schema {row and row[0]}; this program reads {SCHEMA_VERSION}")
