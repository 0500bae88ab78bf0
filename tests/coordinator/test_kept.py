"""What would be left of a run without its machine: blocks that somebody else has, and those that nobody has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.edge.kept import kept_elsewhere
from coordinator.edge.status import KeptStatus
from coordinator.run.replication import StandbyState
from coordinator.standby.seat import Mode
from peering.tracker import Shared, Tracker
from protocol.ids import TRUNK, Digest, Version, WorkerId, column_block, digest_of
from protocol.manifest import BlockRef

NAMES = (TRUNK, *(column_block(number) for number in range(10)))
REFS = {name: BlockRef(digest=digest_of(name.encode()), payload_bytes=1) for name in NAMES}
SHARED = Shared(host="192.0.2.1", port=1, certificate=b"", name=Digest("0" * 64))
WORKER = WorkerId("a" * 32)
NOBODY: Any = SimpleNamespace(holders=lambda _version, _manifest: 0, newest_held=None)


def found(held: set[Digest], *, momenta: bool = True, standby: StandbyState | None = None) -> KeptStatus:
    manifest = SimpleNamespace(blocks=REFS, momenta=REFS if momenta else {}, masters={})
    versions: Any = SimpleNamespace(manifest_digest=lambda _: Digest("1"), manifest=lambda _: manifest)
    status = kept_elsewhere(versions, Version(3), held.__contains__, standby, NOBODY)
    assert status is not None
    return status


def test_what_nobody_else_has_is_named_up_to_a_few() -> None:
    digests = {ref.digest for ref in REFS.values()}
    assert "nothing of it" in found(set()).told
    one_missing = found(digests - {REFS[TRUNK].digest})
    assert (one_missing.nowhere_else, one_missing.named) == (1, ("trunk",))
    assert one_missing.told.startswith("version 3: 10 of 11 blocks; no other machine has trunk; momentum by nobody")
    few = found({REFS[TRUNK].digest})
    assert len(few.named) == 8
    assert few.told.count(",") == 7
    assert "and 2 more" in few.told
    assert found(digests, momenta=False).told == "version 3: all 11 blocks, by workers that share"


@pytest.mark.parametrize(("attached", "behind", "nowhere"), [(True, 0, 0), (True, 3, 11), (False, 0, 11)])
def test_a_follower_has_everything_while_it_is_there_and_has_come_up(attached: bool, behind: int, nowhere: int) -> None:
    state = StandbyState(
        mode=Mode.ASYNC, epoch=1, follower="b", attached=attached, behind=behind, trouble=""
    )  # fmt: skip
    assert found(set(), standby=state).nowhere_else == nowhere


def test_a_version_that_cannot_be_read_says_nothing() -> None:
    versions: Any = SimpleNamespace(manifest_digest=lambda _: None)
    assert kept_elsewhere(versions, Version(3), lambda _: True, None, NOBODY) is None


def test_a_block_is_held_while_whoever_told_of_it_shares_and_is_here() -> None:
    here = {WORKER}
    tracker = Tracker(copies=2, fallback_s=30.0, is_here=here.__contains__)
    block = REFS[TRUNK].digest
    tracker.got(WORKER, [block])
    assert not tracker.is_held(block)  # it shares nothing
    tracker.share(WORKER, SHARED)
    tracker.got(WORKER, [block])
    assert tracker.is_held(block)
    here.clear()
    assert not tracker.is_held(block)
