"""How a journal lies on disk: its tables, the chain over its records, the mark beside it, what SQLite's errors mean.

Decides the format and its migrations; `journal.py` decides when something is written. Always: each record
carries a digest over itself and everything before it, so a changed, lost or swapped record is found when it is read.
The mark names the newest commit in a file of its own: SQLite takes a write-ahead log that was cut or damaged for one
that ends there, and would say nothing.

Sources: https://sqlite.org/wal.html (recovery), https://sqlite.org/rescode.html (error codes).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError
from protocol.storage import disk_error_number, storage_trouble

SCHEMA_VERSION = 2
CHAIN_BYTES = 16
"""Against accidents, not forgers: whoever can write the file can also compute the chain anew."""
GENESIS = bytes(CHAIN_BYTES)

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (position INTEGER PRIMARY KEY, record TEXT NOT NULL, chain BLOB NOT NULL DEFAULT x'');
CREATE TABLE snapshots (
    position INTEGER PRIMARY KEY, engine_version INTEGER NOT NULL, state TEXT NOT NULL,
    chain BLOB NOT NULL DEFAULT x'', digest BLOB NOT NULL DEFAULT x''
);
"""


def chained(previous: bytes, record: str) -> bytes:
    """The chain's value after `record`."""
    return hashlib.sha256(previous + record.encode()).digest()[:CHAIN_BYTES]


def state_digest(state: str) -> bytes:
    """What a snapshot is checked against."""
    return hashlib.sha256(state.encode()).digest()[:CHAIN_BYTES]


def connect(path: Path, *, writable: bool = True) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return."""
    # The pump appends from a thread of its own, one call at a time; hence no thread check here.
    if not writable:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is inside, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A COMMIT that failed leaves the transaction open; some errors have ended it already.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def telling(path: Path, doing: str = "write") -> Iterator[None]:
    """Inside, what SQLite says of the disk becomes a StorageTrouble, and what it says of the file a ConfigError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if (number := disk_error_number(error)) is not None:
            raise storage_trouble(number, path, doing) from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise ConfigError(
                f"{path} is damaged, or not a file of this program ({error}): "
                "put back a backup with `barnraise coordinator restore`"
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise ConfigError(f"{path} is in use by another program ({error}): close that one first") from error
        raise


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a journal of schema 1, which had no chain, to the present one; in one commit, from its own content."""
    with transaction(connection):
        for table, columns in (("events", ("chain",)), ("snapshots", ("chain", "digest"))):
            for column in columns:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} BLOB NOT NULL DEFAULT x''")
        for position, state in connection.execute("SELECT position, state FROM snapshots").fetchall():
            values = (GENESIS, state_digest(state), position)
            connection.execute("UPDATE snapshots SET chain = ?, digest = ? WHERE position = ?", values)
        chain = GENESIS
        for position, record in connection.execute("SELECT position, record FROM events ORDER BY position").fetchall():
            chain = chained(chain, record)
            connection.execute("UPDATE events SET chain = ? WHERE position = ?", (chain, position))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """What the mark says."""

    position: int
    chain: bytes


class Mark:
    """Names the newest commit, in a file beside the journal. Written after each commit and before anybody is answered.

    Not synced: a process that is killed leaves it as it was written; a machine that loses power may leave it behind the
    journal, which is no evidence of anything. Only a mark *ahead* of the journal is: of a commit that is gone.
    """

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_name(f"{journal.name}.mark")
        self._descriptor = -1

    def read(self) -> Marked | None:
        """The mark, if there is one that can be read."""
        try:
            position, chain = self.path.read_text("ascii").split()
            return Marked(position=int(position), chain=bytes.fromhex(chain))
        except (OSError, ValueError):
            return None

    def write(self, position: int, chain: bytes) -> None:
        """Replace it, in place: always of the same length, so a full disk has room for it."""
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._descriptor, f"{position:020d} {chain.hex()}\n".encode("ascii"), 0)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
