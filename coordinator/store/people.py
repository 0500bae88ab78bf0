"""What people told a run about themselves, and how they leave: names, teams, keys, and where they came from.

Decides what is kept for how long: a name and a team until their worker leaves and asks to be forgotten, a range of
addresses for `ADDRESSES_KEPT_S`, because the journal, which is kept for good, has none of them. Holds always: what is
forgotten is overwritten in the file, not only unlinked (the connection's `secure_delete`); a key that was revoked or
replaced never comes back. Touches the table `members` of the registry's file, and two tables in memory that follow it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from protocol.causes import Cause
from protocol.errors import Refused, Unauthenticated
from protocol.ids import WorkerId, worker_id_of

ADDRESSES_KEPT_S = 14 * 24 * 3600.0

GONE_LEFT, GONE_REVOKED = "left", "revoked"
"""What a row's `gone` says; empty: it takes part."""

Transaction = Callable[[], AbstractContextManager[sqlite3.Connection]]


class People:
    """Of one registry."""

    def __init__(self, connection: sqlite3.Connection, write: Transaction) -> None:
        self._write = write
        self._names: dict[WorkerId, str] = {}
        self._teams: dict[WorkerId, str] = {}
        for worker, name, team in connection.execute("SELECT worker, name, team FROM members"):
            self._remember(WorkerId(worker), name, team)

    @property
    def names(self) -> Mapping[WorkerId, str]:
        """What workers are called who said so. The same object for good: it follows what changes."""
        return self._names

    @property
    def teams(self) -> Mapping[WorkerId, str]:
        """The teams of workers that are in one; likewise."""
        return self._teams

    def enrolled(self, worker: WorkerId, name: str, team: str) -> None:
        """The row of a worker was written."""
        self._remember(worker, name, team)

    def set_team(self, worker: WorkerId, team: str) -> None:
        """The worker is in this team from now on; empty: in none."""
        if self._teams.get(worker, "") == team:
            return
        with self._write() as connection:
            connection.execute("UPDATE members SET team = ? WHERE worker = ?", (team, worker))
        self._remember(worker, self._names.get(worker, ""), team)

    def leave(self, worker: WorkerId, *, forget: bool = False, revoke: bool = False) -> None:
        """The worker's key opens no session any more: until it redeems another invite, or, `revoke`, ever."""
        with self._write() as connection:
            gone = GONE_REVOKED if revoke else GONE_LEFT
            connection.execute(
                "UPDATE members SET gone = ? WHERE worker = ? AND gone != ?", (gone, worker, GONE_REVOKED)
            )
            if forget:
                connection.execute(
                    "UPDATE members SET name = '', team = '', owner = '', came_from = '' WHERE worker = ?", (worker,)
                )
        if forget:
            self._remember(worker, "", "")

    def rotate(self, old_key: bytes, new_key: bytes) -> WorkerId:
        """`new_key` stands for the worker of `old_key` from now on, with all that it has. Again is fine."""
        with self._write() as connection:
            row = _by_key(connection, old_key)
            if row is None:
                row = _by_key(connection, new_key)
                if row is not None and (row[0] == worker_id_of(old_key) or row[1] == old_key.hex()):
                    return WorkerId(row[0])
                raise Unauthenticated("this key is not enrolled, so none can take its place", cause=Cause.NOT_ENROLLED)
            taken = connection.execute(
                "SELECT 1 FROM members WHERE worker = ? OR public_key = ?", (worker_id_of(new_key), new_key)
            ).fetchone()
            if taken is not None:
                raise Refused("the new key is known to this run already: make another")
            connection.execute(
                "UPDATE members SET public_key = ?, replaced = ? WHERE worker = ?", (new_key, old_key.hex(), row[0])
            )
            return WorkerId(row[0])

    def forget_addresses(self, before_s: float) -> int:
        """Of whoever enrolled before then; how many."""
        with self._write() as connection:
            pruned = connection.execute(
                "UPDATE members SET came_from = '' WHERE came_from != '' AND enrolled_at_s < ?", (before_s,)
            )
            return int(pruned.rowcount)

    def _remember(self, worker: WorkerId, name: str, team: str) -> None:
        for table, text in ((self._names, name), (self._teams, team)):
            if text:
                table[worker] = text
            else:
                table.pop(worker, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a registry's people said, as of one moment."""

    names: Mapping[WorkerId, str]
    teams: Mapping[WorkerId, str]


def said_in(path: Path) -> Said:
    """Of a registry's file, beside whoever serves it and on a disk that takes no writes; nothing where it has none."""
    rows: list[tuple[str, str, str]] = []
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(connection):
            has_teams = "team" in {name for _, name, *_ in connection.execute("PRAGMA table_info(members)")}
            team = "team" if has_teams else "''"  # a file of an older release
            rows = connection.execute(f"SELECT worker, name, {team} FROM members").fetchall()  # noqa: S608
    return Said(
        names={WorkerId(worker): name for worker, name, _ in rows if name},
        teams={WorkerId(worker): team for worker, _, team in rows if team},
    )


def _by_key(connection: sqlite3.Connection, public_key: bytes) -> tuple[str, str] | None:
    found: tuple[str, str] | None = connection.execute(
        "SELECT worker, replaced FROM members WHERE public_key = ? AND gone = ''", (public_key,)
    ).fetchone()
    return found
