"""What a leader tells its follower, over a call that a test holds in its hands: while a base is made, and after."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from coordinator.edge import standby_service
from coordinator.edge.standby_service import StandbyService
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run import replication, seats
from coordinator.run.base import OfferedFile, RunBase, take_base
from coordinator.run.folder import RunFolder
from coordinator.run.found_again import PEERS_FILE, RECORD_FILE, SHARERS_FILE
from coordinator.run.seats import WITNESS_FILE, admit, new_standby_invite
from protocol.errors import Unauthenticated, Unavailable
from protocol.framing import FrameReader
from protocol.ids import digest_of
from protocol.limits import FRAME_BYTES, PROTOCOL_VERSION
from protocol.v1 import barnraise_pb2 as pb
from tests.coordinator.standby.leader import Leader, pins_in
from tests.coordinator.standby.test_following import until


class HeldCall:
    """A call, as far as the service sees it."""

    def __init__(self) -> None:
        self.parts: list[pb.FollowPart] = []
        self.batches: list[pb.FollowBatch] = []
        self.from_follower: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.raw: list[bytes] = []
        self._content = b""

    @property
    async def messages(self) -> AsyncIterator[bytes]:
        while (message := await self.from_follower.get()) is not None:
            yield message

    def patience(self, _: str) -> None:
        return None

    async def write(self, message: bytes, _: None) -> None:
        part = pb.FollowPart.FromString(message)
        self.parts.append(part)
        self._content += part.part
        if not part.more:
            self.batches.append(pb.FollowBatch.FromString(self._content))
            self._content = b""

    def acknowledge(self, position: int) -> None:
        self.from_follower.put_nowait(pb.FollowAck(position=position).SerializeToString())


class Nonces:
    """An authenticator whose every nonce is a new one."""

    def spend_nonce(self, *_: bytes) -> None:
        return None


def service_of(run: RunFolder, leader: Leader) -> StandbyService:
    return StandbyService(run, leader.replication, cast(Any, Nonces()))


def asked(run: RunFolder, **more: Any) -> pb.FollowRequest:
    """To follow from the beginning."""
    if "invite" not in more:
        more["invite"] = new_standby_invite(run.root, 2e9)
    fields = {"public_key": b"a" * 32, "follower": "anna", "epoch": 1, **more}
    return pb.FollowRequest(protocol_version=PROTOCOL_VERSION, engine_version=ENGINE_VERSION, **fields)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_service, "TICK_S", 0.002)


async def test_a_follower_hears_that_its_leader_lives_while_a_base_is_made(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(folder: RunFolder) -> RunBase:
        assert go_on.wait(20)
        return take_base(folder)

    monkeypatch.setattr(replication, "take_base", slow)
    call = HeldCall()
    task = asyncio.create_task(service_of(run, leader).follow(asked(run), cast(Any, call)))
    await until(lambda: len(call.parts) > 2 or task.done())
    assert all(part.more and not part.part for part in call.parts)
    go_on.set()
    await until(lambda: bool(call.batches))
    assert call.batches[0].is_base
    call.from_follower.put_nowait(None)
    await task
    assert not pins_in(run.root)
    assert not list(run.root.glob(".base-*"))
    assert not leader.replication.state.attached


async def test_a_call_that_ends_while_its_base_is_made_leaves_no_pins(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, taken = threading.Event(), threading.Event()

    def slow(folder: RunFolder) -> RunBase:
        base = take_base(folder)
        taken.set()
        assert go_on.wait(20)
        return base

    monkeypatch.setattr(replication, "take_base", slow)
    task = asyncio.create_task(service_of(run, leader).follow(asked(run), cast(Any, HeldCall())))
    await until(taken.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not leader.replication.state.attached
    go_on.set()
    await until(lambda: not pins_in(run.root) and not list(run.root.glob(".base-*")))


async def test_nothing_piles_up_for_a_follower_that_fetches_files(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, gate = 0, leader.replication.gate

    def counted() -> None:
        nonlocal looks
        looks += 1
        gate()

    monkeypatch.setattr(leader.replication, "gate", counted)
    call = HeldCall()
    task = asyncio.create_task(service_of(run, leader).follow(asked(run), cast(Any, call)))
    await until(lambda: bool(call.batches))
    base = call.batches[0]
    for records in ("first", "second"):
        await leader.commit(record=records)
    looks = 0
    await until(lambda: looks > 5)
    assert call.batches == [base]
    call.acknowledge(base.after)
    await until(lambda: any(batch.records for batch in call.batches))
    told = next(batch for batch in call.batches if batch.records)
    assert len(told.records) == 2
    last = await leader.commit(record="third")
    before, looks = len(call.batches), 0
    await until(lambda: looks > 5)
    assert len(call.batches) == before
    call.acknowledge(last - 1)
    await until(lambda: len(call.batches) > before)
    assert call.batches[before].committed == last
    call.from_follower.put_nowait(None)
    await task


async def test_a_follower_gets_what_changes_beside_the_journal(run: RunFolder, leader: Leader) -> None:
    call = HeldCall()
    task = asyncio.create_task(service_of(run, leader).follow(asked(run), cast(Any, call)))
    await until(lambda: bool(call.batches))
    call.acknowledge(call.batches[0].after)

    def told(name: str) -> list[bytes]:
        return [file.digest for batch in call.batches[1:] for file in batch.files if file.name == name]

    for times in (1, 2):
        for name in (WITNESS_FILE, SHARERS_FILE, RECORD_FILE, PEERS_FILE):
            (run.root / name).write_text(f"{name}, {times}")
            await until(lambda name=name, times=times: len(told(name)) == times or task.done())  # type: ignore[misc]
            assert told(name)[-1].hex() == digest_of((run.root / name).read_bytes())
    call.from_follower.put_nowait(None)
    await task


async def test_of_two_that_show_one_link_at_once_one_is_let_in(
    run: RunFolder, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, look = threading.Barrier(2), seats.admission_of

    def together(root: Path) -> seats.Admission | None:
        found = look(root)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return found

    monkeypatch.setattr(seats, "admission_of", together)
    service, invite, call = service_of(run, leader), new_standby_invite(run.root, 2e9), HeldCall()
    call.from_follower.put_nowait(None)
    keys = {"anna": b"a" * 32, "bert": b"b" * 32}
    ended = await asyncio.gather(
        *(
            service.follow(asked(run, follower=name, public_key=key, invite=invite), cast(Any, call))
            for name, key in keys.items()
        ),
        return_exceptions=True,
    )
    (refused,) = [one for one in ended if one is not None]
    assert isinstance(refused, Unauthenticated)


class Fetched(HeldCall):
    """A call that a file is fetched in."""

    async def write(self, message: bytes, _: None) -> None:
        self.raw.append(message)


async def test_a_file_is_opened_and_read_where_nobody_else_waits_for_it(run: RunFolder, leader: Leader) -> None:
    content, loop, threads = b"12345678" * FRAME_BYTES, threading.get_ident(), set[int]()
    go_on = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    def slowly() -> Slow:
        threads.add(threading.get_ident())
        assert go_on.wait(20)
        return Slow(content)

    service, call = service_of(run, leader), Fetched()
    offered = OfferedFile(name="one", digest=digest_of(content), size_bytes=len(content), open=slowly)
    service._of_base["one", offered.digest] = offered
    file = pb.HeldFile(name="one", digest=bytes.fromhex(offered.digest), size_bytes=len(content))
    request = asked(run)
    admit(run.root, request.public_key, request.invite, 0.0)
    fetching = asyncio.create_task(
        service.fetch(pb.FetchRequest(public_key=request.public_key, file=file), cast(Any, call))
    )
    await until(lambda: bool(threads))
    go_on.set()
    await fetching
    assert loop not in threads
    reader = FrameReader(len(content), offered.digest)
    assert b"".join(bytes(reader.feed(frame)) for frame in call.raw) == content
    reader.finish()


async def test_a_file_whose_base_was_closed_since_it_was_found_is_not_offered_any_more(
    run: RunFolder, leader: Leader
) -> None:
    base = take_base(run)
    offered = next(one for one in base.files if one.name == run.journal_path.name)
    service, request = service_of(run, leader), asked(run)
    service._of_base[offered.name, offered.digest] = offered
    base.pins.close()
    admit(run.root, request.public_key, request.invite, 0.0)
    file = pb.HeldFile(name=offered.name, digest=bytes.fromhex(offered.digest), size_bytes=offered.size_bytes)
    with pytest.raises(Unavailable, match="follow anew"):
        await service.fetch(pb.FetchRequest(public_key=request.public_key, file=file), cast(Any, Fetched()))
