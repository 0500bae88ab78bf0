"""The invites that a run has given out: what there is of each, and how one is taken back.

Decides who is meant by a short digest. Holds always: an invite itself is nowhere, only its SHA-256; whoever came in by
an invite stays when it is taken back. Touches the table `invites` of the registry's file, and reads `members`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import ConfigError

SHORT_DIGITS = 16
"""Hexadecimal digits of an invite's digest by which it is called."""

Transaction = Callable[[], AbstractContextManager[sqlite3.Connection]]


class InviteState(StrEnum):
    """What an invite is good for."""

    OPEN = "open"
    USED = "used"
    """By as many machines as it is for."""
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRow:
    """One invite, for the operator."""

    invite: str
    """Its short digest."""
    state: InviteState
    trusted: bool
    owner: str
    """Whose machines it is for; empty: nobody's in particular."""
    uses: int
    """Machines that it is for."""
    used: int
    """Machines that came in by it."""
    expires_at_s: float
    """By the calendar."""


class Invites:
    """Of one registry."""

    def __init__(self, write: Transaction) -> None:
        self._write = write

    def rows(self, now_s: float) -> list[InviteRow]:
        """All of them: those that still let somebody in first, and of these the one first that ends first."""
        with self._write() as connection:
            came: dict[str, int] = dict(connection.execute("SELECT invite, count(*) FROM members GROUP BY invite"))
            found = connection.execute(
                "SELECT digest, trusted, expires_at_s, redeemed_by IS NOT NULL, owner, uses, revoked FROM invites"
            ).fetchall()
        rows = [_row(one, came, now_s) for one in found]
        return sorted(rows, key=lambda one: (one.state is not InviteState.OPEN, one.expires_at_s, one.invite))

    def revoke(self, invite: str) -> bool:
        """Take back the invite of this short digest; False: it was so already. ConfigError where there is none."""
        with self._write() as connection:
            where = f"lower(substr(hex(digest), 1, {SHORT_DIGITS})) = ?"
            row = connection.execute(f"SELECT max(revoked) FROM invites WHERE {where}", (invite,)).fetchone()  # noqa: S608
            if row is None or row[0] is None:
                raise ConfigError(
                    f"no invite of this run has the digest {invite}: `barnraise coordinator invites list` has them all"
                )
            connection.execute(f"UPDATE invites SET revoked = 1 WHERE {where}", (invite,))  # noqa: S608
            return not row[0]


def _row(found: tuple[bytes, int, float, int, str, int, int], came: Mapping[str, int], now_s: float) -> InviteRow:
    digest, trusted, expires_at_s, redeemed, owner, uses, revoked = found
    invite = digest.hex()[:SHORT_DIGITS]
    used = max(came.get(invite, 0), redeemed)
    state = InviteState.OPEN
    if revoked:
        state = InviteState.REVOKED
    elif used >= uses:
        state = InviteState.USED
    elif now_s > expires_at_s:
        state = InviteState.EXPIRED
    return InviteRow(
        invite=invite,
        state=state,
        trusted=bool(trusted),
        owner=owner,
        uses=uses,
        used=used,
        expires_at_s=expires_at_s,
    )
