"""Invites: bound to the first key, or to as many as they are for, and only their hash on disk."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.inviting import InviteTerms
from coordinator.store.registry import Registry
from protocol.errors import MalformedMessage, Refused, StorageTrouble, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import worker_id_of

ANNA, BEN, CARO = (PrivateIdentity.generate().public_key for _ in range(3))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry.sqlite")


def test_the_same_key_gets_the_same_answer_and_another_none(registry: Registry) -> None:
    invite = registry.create_invite(trusted=True, expires_at_s=100.0)
    member = registry.redeem(invite, ANNA, "anna", now_s=1.0)
    assert member.trusted
    assert registry.redeem(invite, ANNA, "other name", now_s=1e9) == member
    with pytest.raises(Refused, match="another key"):
        registry.redeem(invite, BEN, "ben", now_s=2.0)
    assert registry.find(BEN) is None
    assert registry.find(ANNA) == member


def test_a_link_for_two_machines_lets_in_two_keys(registry: Registry) -> None:
    invite = registry.create_invite(trusted=False, expires_at_s=100.0, uses=2)
    members = [registry.redeem(invite, key, "one", now_s=1.0) for key in (ANNA, BEN)]
    assert len({member.worker for member in members}) == 2
    assert len({member.invite for member in members}) == 1
    assert registry.redeem(invite, ANNA, "again", now_s=1e9) == members[0]
    with pytest.raises(Refused, match="for 2 machines"):
        registry.redeem(invite, CARO, "caro", now_s=2.0)
    assert registry.find(CARO) is None


def test_a_link_for_many_expires_as_others_do(registry: Registry) -> None:
    invite = registry.create_invite(trusted=False, expires_at_s=100.0, uses=9)
    with pytest.raises(Refused, match="expired"):
        registry.redeem(invite, ANNA, "anna", now_s=101.0)


def test_founders_have_a_link_each() -> None:
    terms: dict[str, Any] = {"count": 1, "life_s": 0.0, "owner": ""}
    assert InviteTerms.checked(**terms, trusted=False, uses=50).uses == 50
    assert InviteTerms.checked(**terms, trusted=True, uses=0).uses == 1
    with pytest.raises(MalformedMessage, match="one machine"):
        InviteTerms.checked(**terms, trusted=True, uses=2)
    with pytest.raises(MalformedMessage, match="at most"):
        InviteTerms.checked(**terms, trusted=False, uses=10_001)


def test_expired_and_unknown_invites(registry: Registry) -> None:
    invite = registry.create_invite(trusted=False, expires_at_s=100.0)
    with pytest.raises(Refused, match="expired"):
        registry.redeem(invite, ANNA, "anna", now_s=101.0)
    with pytest.raises(Unauthenticated, match="not one of this run's"):
        registry.redeem("nothing", ANNA, "anna", now_s=1.0)
    assert registry.redeem(invite, ANNA, "anna", now_s=99.0).name == "anna"


def test_a_second_invite_can_add_trust_and_never_take_it(registry: Registry) -> None:
    for trusted, expected in ((False, False), (True, True), (False, True)):
        invite = registry.create_invite(trusted=trusted, expires_at_s=100.0)
        assert registry.redeem(invite, ANNA, "anna", now_s=1.0).trusted is expected
    assert len(registry.members()) == 1


def test_the_owner_is_the_first_invite_s(registry: Registry) -> None:
    for owner in ("maria", "", "eve"):
        invite = registry.create_invite(trusted=False, expires_at_s=100.0, owner=owner)
        assert registry.redeem(invite, ANNA, "anna", now_s=1.0).owner == "maria"
    assert registry.find(ANNA) == registry.members()[0]
    invite = registry.create_invite(trusted=False, expires_at_s=100.0)
    assert registry.redeem(invite, BEN, "ben", now_s=1.0).owner == ""


def test_a_file_from_before_there_were_owners_is_read(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE invites (digest BLOB PRIMARY KEY, trusted INTEGER NOT NULL, expires_at_s REAL NOT NULL,"
        " redeemed_by TEXT) WITHOUT ROWID;"
        "CREATE TABLE members (worker TEXT PRIMARY KEY, public_key BLOB NOT NULL, name TEXT NOT NULL,"
        " trusted INTEGER NOT NULL, enrolled_at_s REAL NOT NULL) WITHOUT ROWID;"
    )
    old.execute("INSERT INTO members VALUES (?, ?, 'anna', 1, 5.0)", (worker_id_of(ANNA), ANNA))
    old.commit()
    old.close()
    for _ in range(2):
        registry = Registry.open(path)
        member = registry.find(ANNA)
        assert member is not None
        assert (member.name, member.trusted, member.owner) == ("anna", True, "")
        invite = registry.create_invite(trusted=False, expires_at_s=100.0, owner="maria")
        assert registry.redeem(invite, ANNA, "anna", now_s=1.0).owner == ""
        registry.close()


def test_the_file_is_private_and_holds_no_invite(registry: Registry, tmp_path: Path) -> None:
    invite = registry.create_invite(trusted=False, expires_at_s=100.0)
    path = tmp_path / "registry.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    registry.close()
    assert invite.encode() not in path.read_bytes()
    other = Registry.open(path)  # another process sees it
    assert other.redeem(invite, BEN, "ben", now_s=1.0).name == "ben"
    other.close()


def test_a_disk_that_takes_no_writes_is_told_and_the_invite_is_not_spent(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry.sqlite")
    invite = registry.create_invite(trusted=False, expires_at_s=1e12)
    registry._connection.execute("PRAGMA query_only=ON")
    with pytest.raises(StorageTrouble, match="mount it for writing"):
        registry.redeem(invite, b"k" * 32, "anna", 1.0)
    registry._connection.execute("PRAGMA query_only=OFF")
    assert registry.redeem(invite, b"k" * 32, "anna", 1.0).name == "anna"
    registry.close()
