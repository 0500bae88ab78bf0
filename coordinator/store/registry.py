"""Who may take part: invites, and the keys that redeemed them; and, in the same file, operators' keys.

Decides whether an invite is good for a key. Touches one small SQLite file, safe for several processes at once (the
command line makes invites beside a running coordinator). Always: an invite binds to the first key that redeems it, or
to as many as it was made for, the same key asking again gets the same answer, and only the SHA-256 of an invite is
stored. Whose machine a key is, the operator says with its first invite; the key never does, and a later invite does not
change it. A sibling (another GPU of a member's machine) comes without an invite, and has what that member has.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coordinator.store.invites import SHORT_DIGITS, Invites
from coordinator.store.journal_file import connect, telling, transaction
from coordinator.store.operators import OperatorKeys
from coordinator.store.people import GONE_REVOKED, People
from protocol.causes import Cause
from protocol.errors import ConfigError, MalformedMessage, Refused, Unauthenticated
from protocol.ids import WorkerId, worker_id_of
from protocol.limits import MAX_NAME_CHARACTERS
from protocol.storage import telling_storage_trouble

INVITE_BYTES = 16
"""128 random bits: nobody guesses one, and a join link still fits on a line."""

MOST_SIBLINGS = 15
"""Beside the first: no machine has more than sixteen GPUs, and one signature is not to fill a run."""
INVITE_ID_CHARACTERS = SHORT_DIGITS
DEFAULT_INVITE_LIFE_S = 7 * 24 * 3600.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    digest BLOB PRIMARY KEY, trusted INTEGER NOT NULL, expires_at_s REAL NOT NULL, redeemed_by TEXT,
    owner TEXT NOT NULL DEFAULT '', uses INTEGER NOT NULL DEFAULT 1, revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operators (
    name TEXT PRIMARY KEY, public_key BLOB NOT NULL UNIQUE, role TEXT NOT NULL, added_at_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    worker TEXT PRIMARY KEY, public_key BLOB NOT NULL, name TEXT NOT NULL, trusted INTEGER NOT NULL,
    enrolled_at_s REAL NOT NULL, owner TEXT NOT NULL DEFAULT '', invite TEXT NOT NULL DEFAULT '',
    came_from TEXT NOT NULL DEFAULT '', team TEXT NOT NULL DEFAULT '', gone TEXT NOT NULL DEFAULT '',
    replaced TEXT NOT NULL DEFAULT '', sibling_of TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
"""
_TEXT, _ONCE = "TEXT NOT NULL DEFAULT ''", "INTEGER NOT NULL DEFAULT 1"
_ADDED = (
    ("invites", "owner", _TEXT),
    ("invites", "uses", _ONCE),
    ("invites", "revoked", "INTEGER NOT NULL DEFAULT 0"),
    ("members", "owner", _TEXT),
    ("members", "invite", _TEXT),
    ("members", "came_from", _TEXT),
    ("members", "team", _TEXT),
    ("members", "gone", _TEXT),
    ("members", "replaced", _TEXT),
    ("members", "sibling_of", _TEXT),
)
"""Columns that files of older releases lack: of what is in those nobody has one, and each invite is for one key."""
_BY_KEY = "CREATE INDEX IF NOT EXISTS by_key ON members (public_key)"
_SELECT = "SELECT worker, public_key, name, trusted, enrolled_at_s, owner, invite, sibling_of FROM members "
"""In the order of `_member_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An enrolled worker."""

    worker: WorkerId
    public_key: bytes
    name: str
    trusted: bool
    enrolled_at_s: float
    owner: str
    """Whose machine it is; empty: nobody's but its own."""
    invite: str
    """Short digest of the invite that it came with (`invite_id`); empty in files of older releases, and of siblings."""
    sibling_of: WorkerId | None = None  # the first worker of the same machine


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuota:
    """Where a key comes from, and how many may come from there; 0: any number."""

    range: str = ""
    most: int = 0


ANYWHERE = RangeQuota()


class Registry:
    """Invites and members of one run."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        draw: Callable[[], str] = lambda: secrets.token_urlsafe(INVITE_BYTES),
    ) -> None:
        self._draw = draw
        self._connection = connection
        self._path = path
        self._lock = threading.Lock()
        self.people = People(connection, self._write)
        self.invites = Invites(self._write)
        self.operators = OperatorKeys(connection, self._write)

    @classmethod
    def open(cls, path: Path) -> Registry:
        """The registry at `path`; made when it is not there."""
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is not a run folder")
        with telling_storage_trouble(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with telling(path, "open"):
            connection = connect(path)
            connection.executescript(_SCHEMA)
            for table, column, declared in _ADDED:
                _add_column(connection, table, column, declared)
            connection.execute(_BY_KEY)
            connection.execute("PRAGMA secure_delete = ON")
        return cls(connection, path)

    @classmethod
    def in_memory(cls) -> Registry:
        """One that is gone with this object, and counts its invites instead of drawing them: for simulations, which
        repeat exactly though an invite's digest stands in the journal."""
        numbers = itertools.count()
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.executescript(_SCHEMA)
        connection.execute(_BY_KEY)
        return cls(connection, Path(":memory:"), lambda: f"simulated-invite-{next(numbers):06d}")

    def create_invite(self, *, trusted: bool, expires_at_s: float, owner: str = "", uses: int = 1) -> str:
        """A new invite, for `uses` machines of `owner`."""
        invite = self._draw()
        with self._write() as connection:
            row = (_digest(invite), int(trusted), expires_at_s, owner, uses)
            connection.execute(
                "INSERT INTO invites (digest, trusted, expires_at_s, owner, uses) VALUES (?, ?, ?, ?, ?)", row
            )
        return invite

    def redeem(self, invite: str, public_key: bytes, name: str, now_s: float, quota: RangeQuota = ANYWHERE) -> Member:
        """Enrol `public_key`, or answer as before when it redeemed this invite already."""
        with self._write() as connection:
            worker = _worker_of(connection, public_key)
            row = connection.execute(
                "SELECT trusted, expires_at_s, redeemed_by, owner, uses, revoked FROM invites WHERE digest = ?",
                (_digest(invite),),
            ).fetchone()
            if row is None:
                raise Unauthenticated(
                    "this invite is not one of this run's; ask the operator for a new join link",
                    cause=Cause.INVITE_UNKNOWN,
                )
            trusted, expires_at_s, redeemed_by, owner, uses, revoked = row
            _check_key(connection, worker, public_key)
            if redeemed_by == worker or (uses > 1 and _is_member(connection, worker)):
                return self._back(connection, worker, name)
            if revoked:
                raise Refused(
                    "this invite was taken back by the operator; ask for a new join link", cause=Cause.INVITE_REVOKED
                )
            if redeemed_by is not None:
                raise Refused(
                    "this invite was used by another key; each join link is for one machine, ask for another",
                    cause=Cause.INVITE_USED,
                )
            if uses > 1 and _redeemed(connection, invite) >= uses:
                raise Refused(
                    f"this invite was for {uses} machines, and so many came with it; ask the operator for another",
                    cause=Cause.INVITE_USED,
                )
            if now_s > expires_at_s:
                raise Refused(
                    "this invite has expired; ask the operator for a new join link", cause=Cause.INVITE_EXPIRED
                )
            _check_quota(connection, worker, quota)
            if uses == 1:
                connection.execute("UPDATE invites SET redeemed_by = ? WHERE digest = ?", (worker, _digest(invite)))
            member = (
                worker,
                public_key,
                name,
                trusted,
                now_s,
                owner,
                invite_id(invite),
                quota.range if quota.most else "",
            )
            # A key that is in already and redeems a second invite keeps what it has; trust can only be added.
            connection.execute(
                "INSERT INTO members (worker, public_key, name, trusted, enrolled_at_s, owner, invite, came_from)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (worker) DO UPDATE SET trusted = max(trusted, excluded.trusted)",
                member,
            )
            return self._back(connection, worker, name)

    def seat_sibling(self, first_key: bytes, public_key: bytes, name: str, now_s: float) -> Member:
        """Enrol `public_key` beside the worker of `first_key`, whose machine and owner it shares; again is fine."""
        with self._write() as connection:
            found = connection.execute(_SELECT + "WHERE public_key = ? AND gone = ''", (first_key,)).fetchone()
            if found is None:
                raise Unauthenticated(
                    "the key that signs for this one is not enrolled itself: join with an invite first",
                    cause=Cause.NOT_ENROLLED,
                )
            first, worker = _member_of(found), _worker_of(connection, public_key)
            head = first.sibling_of or first.worker
            _check_key(connection, worker, public_key)
            if not _is_member(connection, worker):
                beside = connection.execute("SELECT count(*) FROM members WHERE sibling_of = ?", (head,)).fetchone()
                if beside[0] >= MOST_SIBLINGS:
                    raise Refused(
                        f"one machine has {MOST_SIBLINGS + 1} workers at the most, and so many are enrolled",
                        cause=Cause.TOO_MANY,
                    )
                row = (worker, public_key, name, first.trusted, now_s, first.owner, head)
                connection.execute(
                    "INSERT INTO members (worker, public_key, name, trusted, enrolled_at_s, owner, sibling_of)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            return self._back(connection, worker, name)

    def worker_of(self, public_key: bytes) -> WorkerId:
        """Whose key this is, enrolled or not: of its own digest, unless it took another key's place."""
        with self._lock:
            return _worker_of(self._connection, public_key)

    def owner_of_invite(self, invite: str) -> str:
        """Whose machines the invite is for; empty: nobody's in particular, or there is no such invite."""
        with self._lock:
            row = self._connection.execute("SELECT owner FROM invites WHERE digest = ?", (_digest(invite),)).fetchone()
        return "" if row is None else str(row[0])

    def find(self, public_key: bytes) -> Member | None:
        """The member with this key, if it is enrolled."""
        with self._lock:
            row = self._connection.execute(
                _SELECT + "WHERE public_key = ? AND gone = ''",
                (public_key,),
            ).fetchone()
        return None if row is None else _member_of(row)

    def members(self) -> list[Member]:
        """All members, in the order of their enrolment."""
        with self._lock:
            rows = self._connection.execute(_SELECT + "ORDER BY enrolled_at_s, worker").fetchall()
        return [_member_of(row) for row in rows]

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def _back(self, connection: sqlite3.Connection, worker: WorkerId, name: str) -> Member:
        """The member, who takes part again where it had left."""
        statement = "UPDATE members SET gone = '', name = ? WHERE worker = ? AND gone != ''"
        connection.execute(statement, (name, worker))
        found = _member_of(connection.execute(_SELECT + "WHERE worker = ?", (worker,)).fetchone())
        self.people.enrolled(worker, found.name, self.people.teams.get(worker, ""))
        return found

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock, telling(self._path), transaction(self._connection):
            yield self._connection


def clean_name(name: str) -> str:
    """A name for people: printable and short, or refused."""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise MalformedMessage(f"a worker's name has at most {MAX_NAME_CHARACTERS} printable characters")
    return name.strip() or "unnamed"


def _check_quota(connection: sqlite3.Connection, worker: WorkerId, quota: RangeQuota) -> None:
    if not quota.most:
        return
    (count,) = connection.execute(
        "SELECT count(*) FROM members WHERE came_from = ? AND worker != ?", (quota.range, worker)
    ).fetchone()
    if count >= quota.most and not _is_member(connection, worker):
        raise Refused(
            f"this run takes {quota.most} machines from one range of addresses, and so many came from yours "
            f"({quota.range}); ask the operator to raise `most_per_range`",
            cause=Cause.TOO_MANY,
        )


def _worker_of(connection: sqlite3.Connection, public_key: bytes) -> WorkerId:
    row = connection.execute("SELECT worker FROM members WHERE public_key = ?", (public_key,)).fetchone()
    return worker_id_of(public_key) if row is None else WorkerId(row[0])


def _check_key(connection: sqlite3.Connection, worker: WorkerId, public_key: bytes) -> None:
    """A key that was replaced or revoked does not enrol again, whoever has it now."""
    row = connection.execute("SELECT public_key, gone FROM members WHERE worker = ?", (worker,)).fetchone()
    if row is not None and (row[0] != public_key or row[1] == GONE_REVOKED):
        raise Refused("this key was revoked, or another took its place: remove its folder, and join with a new key")


def _is_member(connection: sqlite3.Connection, worker: WorkerId) -> bool:
    return connection.execute("SELECT 1 FROM members WHERE worker = ?", (worker,)).fetchone() is not None


def _redeemed(connection: sqlite3.Connection, invite: str) -> int:
    (count,) = connection.execute("SELECT count(*) FROM members WHERE invite = ?", (invite_id(invite),)).fetchone()
    return int(count)


def invite_id(invite: str) -> str:
    """What an invite is called where it must not be given away: the start of its SHA-256."""
    return _digest(invite).hex()[:INVITE_ID_CHARACTERS]


def _digest(invite: str) -> bytes:
    return hashlib.sha256(invite.encode()).digest()


def _add_column(connection: sqlite3.Connection, table: str, column: str, declared: str) -> None:
    """To a file from before there was such a thing."""
    if column not in {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declared}")


def _member_of(row: tuple[str, bytes, str, int, float, str, str, str]) -> Member:
    return Member(
        worker=WorkerId(row[0]),
        public_key=row[1],
        name=row[2],
        trusted=bool(row[3]),
        enrolled_at_s=row[4],
        owner=row[5],
        invite=row[6],
        sibling_of=WorkerId(row[7]) if row[7] else None,
    )
