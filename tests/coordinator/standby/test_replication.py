"""A leader's side of a standby, at work, over a real journal and store: what a refusing disk stops, and what not."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from coordinator.run import replication
from coordinator.run.folder import RunFolder
from coordinator.run.seats import keep_seat, read_seat
from coordinator.standby.seat import Mode, Seat
from protocol.errors import StorageTrouble
from tests.coordinator.standby.leader import Leader, pins_in
from tests.coordinator.standby.test_following import until


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
    (held,) = shipment.after(before + 1) or []
    assert [file.digest for file in held.files] == [one, other]
    await asyncio.to_thread(shipment.end)


async def test_a_seat_that_the_disk_refuses_is_kept_at_a_later_tick(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading, disk_is_full = leader.replication, True

    def keep(root: Path, seat: Seat) -> None:
        if disk_is_full:
            raise StorageTrouble("the disk is full: make room")
        keep_seat(root, seat)

    monkeypatch.setattr(replication, "TICK_S", 0.002)
    keep_seat(run.root, leading._leading.seat)
    leading._is_kept = True
    leading._leading.on_attached("anna", leading.committed)
    monkeypatch.setattr(replication, "keep_seat", keep)
    leading.start()
    with pytest.raises(StorageTrouble, match="full"):
        leading.order("sync", confirmed=False)
    before = leading.committed
    waiting = asyncio.create_task(leader.commit(record="one"))
    await until(lambda: leading.committed > before)
    leading.acknowledged("anna", leading.committed)
    for _ in range(5):
        leading.news.clear()
        await leading.news.wait()
    assert not waiting.done(), "answered before the seat was on disk"
    disk_is_full = False
    await asyncio.wait_for(waiting, 20)
    seat = read_seat(run.root)
    assert seat is not None
    assert seat.mode is Mode.SYNC
