"""A leader's side of a standby, at work, over a real journal and store: what a refusing disk stops, and what not."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.folder import RunFolder
from tests.coordinator.standby.leader import Leader, pins_in


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
