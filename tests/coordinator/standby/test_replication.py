"""A leader's side of a standby, at work, over a real journal and store: what a refusing disk stops, and what not."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.folder import RunFolder
from coordinator.run.replication import Replication
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions


class Leader:
    """A replication, with what lies beneath it."""

    def __init__(self, run: RunFolder) -> None:
        self.journal = Journal.open(run.journal_path)
        self.store: ArtifactStore = run.artifacts()
        self.versions = Versions(run.root / "versions", self.store.blocks, run.layout())
        self.replication = Replication(run, self.journal, self.store, self.versions)

    async def commit(self, **record: Any) -> int:
        """One record, as the pump would; its position."""
        records = [json.dumps(record)]
        self.journal.append(records)
        await self.replication.settled(records, self.journal.last_position)
        return self.journal.last_position


@pytest.fixture
def leader(run: RunFolder) -> Iterator[Leader]:
    opened = Leader(run)
    yield opened
    opened.replication.close()
    opened.journal.close()


def pins_in(root: Path) -> list[Path]:
    return list(root.rglob(".pins-*"))


async def test_what_cannot_be_held_for_the_follower_stops_no_commit(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipment, payloads = leader.replication.shipment, leader.store.payloads
    shipment.begin(leader.journal.last_position)
    before = await leader.commit(digest=payloads.put(b"first"))
    assert pins_in(run.root)
    one, other = payloads.put(b"one"), payloads.put(b"other")
    link = payloads._link

    def refused(digest: Any, pin: Path) -> None:
        if digest == other:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(digest, pin)

    with monkeypatch.context() as patched:
        patched.setattr(payloads, "_link", refused)
        assert await leader.commit(one=one, other=other) == before + 1
    assert shipment.after(before) is None, "the follower would go on without it"
    assert not pins_in(run.root)
    shipment.begin(leader.journal.last_position)
    await leader.commit(one=one, other=other)
    (held,) = shipment.after(before + 1) or ()
    assert [file.digest for file in held.files] == [one, other]
    await asyncio.to_thread(shipment.end)
