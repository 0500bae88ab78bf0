"""The ledger of credit: each entry once, what is missing at the next chance, and only what was credited is revoked."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.engine.commands import AnnounceVerdict
from coordinator.engine.events import LeaseReplayed, VersionRebuilt
from coordinator.engine.reasons import Case, accepted, reason
from coordinator.run.credit_trail import CreditTrail
from coordinator.run.receipts import MOST_REVOKED, revocations_of
from coordinator.store.credit_ledger import CreditLedger, RevocationEntry
from protocol.ids import LeaseId, RunId, Version, WorkerId, digest_of

A = WorkerId("a")


def lease(lease_id: str, *, credited: int = 0, uncredited: Any = None) -> Any:
    inner = SimpleNamespace(lease_id=LeaseId(lease_id), worker=A, round=3)
    return SimpleNamespace(lease=inner, credited=credited, uncredited=uncredited)


class World:
    def __init__(self, path: Path) -> None:
        self.ledger = CreditLedger.open(path)
        self.state: Any = SimpleNamespace(leases={}, now_s=1.0)
        self.trail = CreditTrail(self.ledger, lambda: self.state, lambda at_s: 1000.0 + at_s)

    def put(self, lease_id: str, **how: Any) -> None:
        self.state.leases[lease_id] = lease(lease_id, **how)

    def verdict(self, lease_id: str) -> None:
        said = AnnounceVerdict(worker=A, lease_id=LeaseId(lease_id), verdict=accepted(Case.UNSCREENED))
        self.trail.command(said, 1.0)

    @property
    def entries(self) -> tuple[list[str], list[str]]:
        credited = self.ledger.credits_of(A, after=0, most=99)
        return [one.lease_id for one in credited], [one.lease_id for one in self.ledger.revocations(A)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "credit.sqlite")


UNDONE = reason(Case.AUDITS_FAILED, "x", auditors=2)
REBUILT = VersionRebuilt(
    at_s=1.0,
    command_id="rebuild:r1:0",
    version=Version(1),
    parent_version=Version(0),
    manifest=digest_of(b"v"),
    change_l2=1.0,
)


def test_a_verdict_an_audit_and_a_rollback_are_written_once_each(world: World, tmp_path: Path) -> None:
    world.put("r3.1", credited=8)
    world.put("r3.2", credited=8)
    world.put("r3.3")
    for _ in range(2):
        for lease_id in ("r3.1", "r3.2", "r3.3", "gone"):
            world.verdict(lease_id)
    assert world.entries == (["r3.1", "r3.2"], [])
    world.put("r3.1", uncredited=UNDONE)
    world.trail.event(
        LeaseReplayed(at_s=2.0, command_id="c", lease_id=LeaseId("r3.1"), auditor=None, trunk=1.0, columns=0.0)
    )
    assert world.entries == (["r3.1", "r3.2"], ["r3.1"])
    assert "2 independent auditors" in world.ledger.revocations(A)[0].why
    world.put("r3.2", uncredited=UNDONE)
    world.put("r3.3", uncredited=UNDONE)
    world.trail.event(REBUILT)
    assert world.entries == (["r3.1", "r3.2"], ["r3.1", "r3.2"]), "r3.3 was never credited here"
    assert stat.S_IMODE((tmp_path / "credit.sqlite").stat().st_mode) == 0o600


def test_a_disk_that_took_nothing_is_made_up_for_by_the_next_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = world.ledger.write

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(world.ledger, "write", full)
    world.put("r3.1", credited=8)
    world.verdict("r3.1")
    world.put("r3.2", credited=8)
    world.verdict("r3.2")
    monkeypatch.setattr(world.ledger, "write", write)
    world.trail.event(REBUILT)
    assert world.entries == (["r3.1", "r3.2"], [])


def test_a_list_names_the_latest_and_says_of_when_it_is() -> None:
    entries = [
        RevocationEntry(lease_id=LeaseId(f"r{n}.1"), worker=A, why="", wall_s=float(n)) for n in range(MOST_REVOKED + 5)
    ]
    found = revocations_of(RunId("run"), entries)
    assert len(found.lease_ids) == MOST_REVOKED
    assert found.issued_at_s == MOST_REVOKED + 4
    assert "r4.1" not in found.lease_ids
    assert list(found.lease_ids) == sorted(found.lease_ids)
    assert len(found.to_json()) < 1 << 20, "it must fit into a control message"
