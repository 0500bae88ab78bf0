"""Every judgement of a run, for its operator: what was looked at, how far it was from what, and what followed.

Decides how many lines are kept (the newest `KEPT`), nothing else. Touches one SQLite file. Always: a line with a key
that is here already changes nothing, so that what a journal tells again after a restart is written once. It may lose
its newest lines with the machine; whoever opens it writes those again out of the engine's state.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from coordinator.store.journal_file import telling
from protocol.errors import ConfigError
from protocol.storage import telling_storage_trouble

KEPT = 1_000_000
"""Lines: some 300 MB. A run of a thousand workers writes as many in a thousand rounds."""
_CUT_EVERY = 10_000
"""Lines between two looks at how many there are."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lines (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, at_s REAL NOT NULL, wall_s REAL, round INTEGER NOT NULL,
    worker TEXT NOT NULL, name TEXT NOT NULL, lease TEXT NOT NULL, stage TEXT NOT NULL, verdict TEXT NOT NULL,
    figure REAL, threshold REAL, figures TEXT NOT NULL, judge TEXT NOT NULL, why TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_worker ON lines (worker, number);
CREATE INDEX IF NOT EXISTS by_round ON lines (round, number);
CREATE INDEX IF NOT EXISTS by_lease ON lines (lease, number);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """One judgement."""

    key: str
    """What it is about and how it came out: the same judgement has the same one."""
    at_s: float
    """Run time."""
    wall_s: float | None
    round: int
    worker: str
    """Empty: it is about the whole round."""
    lease: str
    stage: str
    verdict: str
    figure: float | None
    """What was found, and `threshold`, what it was held against; `figures` has all of them."""
    threshold: float | None
    figures: dict[str, float] = field(default_factory=dict)
    judge: str = "engine"
    why: str = ""
    name: str = ""
    """Kept in no file: whoever shows the line gives it, as the worker is called by then."""


_COLUMNS = tuple(one.name for one in fields(AuditLine))


class AuditLog:
    """One run's log of judgements; one writer at a time, any number of readers."""

    def __init__(self, connection: sqlite3.Connection, kept: int) -> None:
        self._connection = connection
        self._kept = kept
        self._since_cut = 0

    @classmethod
    def open(cls, path: Path, *, kept: int = KEPT) -> AuditLog:
        """For writing; made where it is not there."""
        with telling_storage_trouble(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with telling(path, "open"):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            # a verdict never waits for the disk here: what is lost with the machine is written again
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("UPDATE lines SET name = '' WHERE name != ''")  # an older release wrote them down
        return cls(connection, kept)

    @classmethod
    def read_only(cls, path: Path) -> AuditLog:
        """To look at, beside a coordinator that writes, or of a run on a disk that takes no writes."""
        if not path.is_file():
            raise ConfigError(
                f"{path} is not there: nothing was judged yet, or the run was last served by an older one"
            )
        place = path.resolve().as_uri()
        for mode in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{place}?{mode}", uri=True)
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("SELECT 1 FROM lines LIMIT 1")
                return cls(connection, KEPT)
            connection.close()
        raise ConfigError(f"{path} cannot be read as a log of judgements")

    def add(self, lines: Sequence[AuditLine]) -> None:
        """Write `lines`; those whose key is here already are left out. sqlite3.Error where the disk takes none."""
        places = ", ".join("?" * len(_COLUMNS))
        statement = f"INSERT OR IGNORE INTO lines ({', '.join(_COLUMNS)}) VALUES ({places})"  # noqa: S608
        with self._transaction():
            self._connection.executemany(statement, [_row(line) for line in lines])
            self._since_cut += len(lines)
            if self._since_cut >= min(_CUT_EVERY, self._kept):
                self._since_cut = 0
                self._connection.execute(
                    "DELETE FROM lines WHERE number <= (SELECT max(number) FROM lines) - ?", (self._kept,)
                )

    def latest(
        self, *, most: int, worker: str = "", round_: int | None = None, lease: str = "", stage: str = ""
    ) -> list[AuditLine]:
        """The newest `most` lines, in order: of a worker (how its id begins), round, lease, stage."""
        wanted: list[tuple[str, tuple[object, ...]]] = [
            ("(worker >= ? AND worker < ?)", (worker, worker + "\uffff")) if worker else ("", ()),
            ("round = ?", (round_,)) if round_ is not None else ("", ()),
            ("lease = ?", (lease,)) if lease else ("", ()),
            ("stage = ?", (stage,)) if stage else ("", ()),
        ]
        where = " AND ".join(condition for condition, _ in wanted if condition) or "1"
        values = [value for _, given in wanted for value in given]
        query = f"SELECT {', '.join(_COLUMNS)} FROM lines WHERE {where} ORDER BY number DESC LIMIT ?"  # noqa: S608
        found = self._connection.execute(query, (*values, most)).fetchall()
        return [_line(row) for row in reversed(found)]

    def workers(self) -> list[str]:
        """Ids of all workers that a line is about."""
        return [worker for (worker,) in self._connection.execute("SELECT DISTINCT worker FROM lines") if worker]

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _row(line: AuditLine) -> tuple[object, ...]:
    plain = asdict(line) | {"figures": json.dumps(line.figures)}
    return tuple(plain[name] for name in _COLUMNS)


def _line(row: Sequence[object]) -> AuditLine:
    plain = dict(zip(_COLUMNS, row, strict=True))
    return AuditLine(**plain | {"figures": json.loads(str(plain["figures"]))})  # type: ignore[arg-type]  # its own columns
