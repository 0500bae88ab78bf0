"""Keys of operators who order from elsewhere: whose each is, and what it may do.

Decides what a role allows. Holds always: one name a key and one key a name, since the name stands beside what was
ordered; a key that was revoked is gone, and whoever comes with it is a stranger. Touches the table `operators` of the
registry's file.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import ConfigError, MalformedMessage
from protocol.identity import PUBLIC_KEY_BYTES

MOST_KEYS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
"""As accounts are called: it is typed, and stands in tables."""

Transaction = Callable[[], AbstractContextManager[sqlite3.Connection]]


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    """Look at everything that an operator sees, and order nothing."""
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKey:
    """One operator's key."""

    name: str
    public_key: bytes
    role: Role
    added_at_s: float
    """By the calendar."""


class OperatorKeys:
    """Of one registry. Who has a key is known without a look at the file: every stranger's call asks."""

    def __init__(self, connection: sqlite3.Connection, write: Transaction) -> None:
        self._write = write
        rows = connection.execute("SELECT name, public_key, role, added_at_s FROM operators")
        self._keys = {
            row[1]: OperatorKey(name=row[0], public_key=row[1], role=Role(row[2]), added_at_s=row[3]) for row in rows
        }

    def add(self, key: OperatorKey) -> None:
        """Take it in, or give it its new role. ConfigError as in `check`."""
        self.check(key)
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO operators (name, public_key, role, added_at_s) VALUES (?, ?, ?, ?)",
                (key.name, key.public_key, key.role.value, key.added_at_s),
            )
        self._keys = {**self._keys, key.public_key: key}

    def check(self, key: OperatorKey) -> bool:
        """Whether it changes anything. ConfigError where name or key is another's, or there are too many."""
        for one in self._keys.values():
            if one.public_key == key.public_key and one.name != key.name:
                raise ConfigError(f"this key is {one.name}'s already: revoke that first")
            if one.name == key.name and one.public_key != key.public_key:
                raise ConfigError(f"{one.name} has another key: revoke that first, or choose another name")
            if one.name == key.name:
                return one.role is not key.role
        if len(self._keys) >= MOST_KEYS:
            raise ConfigError(f"a run takes {MOST_KEYS} operators' keys: revoke one first")
        return True

    def revoke(self, name: str) -> OperatorKey:
        """Forget the key of this name. ConfigError where there is none."""
        found = next((one for one in self._keys.values() if one.name == name), None)
        if found is None:
            raise ConfigError(f"no operator's key is called {name!r}: `operator-key list` has them all")
        with self._write() as connection:
            connection.execute("DELETE FROM operators WHERE name = ?", (name,))
        self._keys = {public_key: one for public_key, one in self._keys.items() if one is not found}
        return found

    def all(self) -> list[OperatorKey]:
        """By name."""
        return sorted(self._keys.values(), key=lambda one: one.name)

    def find(self, public_key: bytes) -> OperatorKey | None:
        """Whose key this is, if it is an operator's."""
        return self._keys.get(public_key)


def operators_name(text: str) -> str:
    """A name that an operator may have; MalformedMessage otherwise."""
    if not _NAME.fullmatch(text):
        raise MalformedMessage("an operator's name has 1 to 32 letters, digits, dots, - and _, a letter or digit first")
    return text


def key_from(text: str) -> bytes:
    """A public key as `operator-key new` prints it; MalformedMessage otherwise."""
    text = text.strip().lower()
    if len(text) != 2 * PUBLIC_KEY_BYTES or set(text) - set("0123456789abcdef"):
        raise MalformedMessage(
            f"a public key is the {2 * PUBLIC_KEY_BYTES} hexadecimal digits that `barnraise coordinator operator-key "
            "new` prints on the operator's own machine"
        )
    return bytes.fromhex(text)
