"""A follower beside a served run over loopback: it has everything, it leads, and the one that led answers nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge.following import Follower, following_of, lead
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.standby_desk import StandbyDesk, standby_link
from coordinator.edge.witnessing import WitnessProcess
from coordinator.engine.engine import Engine
from coordinator.run.folder import RunFolder
from coordinator.run.replication import Replication
from coordinator.run.seats import FOLLOW_SCHEME, WITNESS_SCHEME, link_text, parse_link, read_seat, witness_of
from coordinator.standby.seat import Mode, Seat, SeatRole
from protocol.errors import ConfigError
from protocol.joinlink import JoinLink
from tests.served import RawClient, Refusal, clients_of


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def replication_of(server: CoordinatorServer) -> Replication:
    parts = server._parts
    assert parts is not None
    return parts.replication


def seat_in(run: RunFolder) -> Seat:
    seat = read_seat(run.root)
    assert seat is not None
    return seat


def as_text(engine: Engine) -> str:
    return json.dumps(engine.snapshot(), sort_keys=True)


@contextlib.asynccontextmanager
async def followed(root: Path, link: JoinLink | None, **how: Any) -> AsyncIterator[Follower]:
    follower = Follower(root, link, **how)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        follower.close()


def in_step(server: CoordinatorServer, follower: Follower) -> Callable[[], bool]:
    def holds() -> bool:
        state = replication_of(server).state
        run = follower._run
        return (
            run is not None and state.attached and not state.behind and run.position == replication_of(server).committed
        )

    return holds


async def work_once(client: RawClient) -> str:
    """A lease, from request to upload."""
    reply = await client.acquire()
    payload = client.submission(reply.lease)
    await client.commit(reply.lease, payload)
    await client.upload(reply.lease, payload)
    return str(reply.lease.lease_id)


def link_of(server: CoordinatorServer, run: RunFolder) -> JoinLink:
    return parse_link(standby_link(run), FOLLOW_SCHEME)


async def test_a_run_moves_to_its_follower(run: RunFolder, server: CoordinatorServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    async with followed(other, link_of(server, run)) as follower, clients_of(run, server) as make:
        await until(in_step(server, follower))
        client = await make()
        lease_id = await work_once(client)
        await until(lambda: server.summary().version >= 1)
        await until(in_step(server, follower))
        assert follower._run is not None
        parts = server._parts
        assert parts is not None
        assert as_text(follower._run.engine) == as_text(parts.engine)
        assert (await server.status()).standby is not None
        with pytest.raises(ConfigError, match="no witness"):
            await follower.promote(confirmed=False)
        assert await follower.promote(confirmed=True) == 2
    await server.stop(0.0)
    moved = RunFolder.open(other)
    second = CoordinatorServer(moved)
    await second.start()
    try:
        status = await second.status()
        assert status.version >= 1
        assert lease_id in {row.lease_id for row in status.workers} | {lease_id}
        again = RawClient(
            JoinLink(host="127.0.0.1", port=second.port, fingerprint=moved.authority().fingerprint), moved
        )
        again.identity = client.identity
        reply = await again.open()
        assert reply.epoch == 2
        assert await again.acquire(0.1) is not None
        await again.close()
    finally:
        await second.stop(0.0)


async def test_in_sync_nothing_is_answered_that_the_follower_has_not(
    run: RunFolder, server: CoordinatorServer, tmp_path: Path
) -> None:
    replication = replication_of(server)
    with pytest.raises(ConfigError, match="no follower"):
        replication.order("sync", confirmed=False)
    async with clients_of(run, server) as make:
        async with followed(tmp_path / "other", link_of(server, run)) as follower:
            await until(in_step(server, follower))
            client = await make()
            replication.order("sync", confirmed=False)
            await until(lambda: replication.state.mode is Mode.SYNC)
            await client.acquire()
            assert follower._run is not None
            assert follower._run.position == replication.committed
            mark = follower._run.position
        waiting: asyncio.Future[RawClient] = asyncio.ensure_future(make())
        await until(lambda: replication.committed > mark)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with pytest.raises(ConfigError, match="off"):
            replication.order("async", confirmed=False)
        replication.order("async", confirmed=True)
        await waiting
        assert seat_in(run).mode is Mode.ASYNC


async def test_the_witness_lets_the_follower_lead_and_fences_the_leader(
    run: RunFolder, server: CoordinatorServer, tmp_path: Path
) -> None:
    witness = WitnessProcess(tmp_path / "witness")
    link = link_text(await witness.start("127.0.0.1", 0), WITNESS_SCHEME)
    replication, other = replication_of(server), tmp_path / "other"
    try:
        async with clients_of(run, server) as make:
            async with followed(other, link_of(server, run)) as follower:
                client = await make()
                await until(in_step(server, follower))
                await StandbyDesk(run, replication).answer({"verb": "standby", "witness": link, "mode": "sync"})
                await until(lambda: replication.state.mode is Mode.SYNC)
                await until(lambda: witness_of(other) is not None)
            mark = replication.committed
            waiting = asyncio.ensure_future(Refusal(grpc.StatusCode.UNAVAILABLE, "FENCED").of(client.acquire()))
            await until(lambda: replication.committed > mark)
            assert await lead(other, following_of(other), confirmed=False) == 2
            await until(lambda: seat_in(run).role is SeatRole.FENCED)
            await waiting
            await Refusal(grpc.StatusCode.UNAVAILABLE, "FENCED").of(client.beat())
    finally:
        await witness.stop()
    await server.stop(0.0)
    with pytest.raises(ConfigError, match="fenced"):
        await CoordinatorServer(run).start()


async def test_a_follower_that_was_away_goes_on_where_it_was(
    run: RunFolder, server: CoordinatorServer, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    link = link_of(server, run)
    async with clients_of(run, server) as make:
        async with followed(other, link) as follower:
            await until(in_step(server, follower))
            mark = (other / "run.json").stat().st_ino
        with pytest.raises(ConfigError, match="follows"):
            await CoordinatorServer(other).start()
        await work_once(await make())
        async with followed(other, None) as follower:
            await until(in_step(server, follower))
            assert (other / "run.json").stat().st_ino == mark, "it fetched everything anew"


@pytest.mark.parametrize("ordered", [True, False], ids=["promoted", "witness-asked"])
async def test_a_base_that_comes_late_replaces_no_run_that_is_led_here(
    ordered: bool, run: RunFolder, server: CoordinatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, fetch, anew = tmp_path / "other", Follower._fetch, asyncio.Event()
    async with followed(other, link_of(server, run)) as follower:
        await until(in_step(server, follower))
    mark = (other / "run.json").stat().st_ino

    async def meanwhile(follower: Follower, files: Any, line: Any, into: Path) -> None:
        await fetch(follower, files, line, into)
        if into != other:
            if ordered:
                await follower.promote(confirmed=True)
            else:
                follower.following.has_witness = True
                follower.following.on_promotion_ordered(confirmed=False)
            anew.set()

    monkeypatch.setattr(Follower, "_fetch", meanwhile)
    monkeypatch.setattr(Replication, "_goes_on", lambda *_: asyncio.sleep(0, result=False))
    async with followed(other, None) as follower:
        await anew.wait()
        await until(follower.promoted.is_set if ordered else lambda: "lead the run itself" in follower.trouble)
    assert (other / "run.json").stat().st_ino == mark
    seat = read_seat(other)
    assert seat is not None
    assert seat.whole
    assert seat.role is (SeatRole.LEADS if ordered else SeatRole.FOLLOWS)
