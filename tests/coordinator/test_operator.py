"""The operator's client against a real server: status, invites, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from barnraise.cli.status import print_status
from coordinator.operator_client import OperatorClient, create_invites, fetch_status, stop_run
from coordinator.runfolder import RunFolder
from coordinator.server import CoordinatorServer
from coordinator.status import RunStatus, one_line
from protocol.errors import MalformedMessage, Refused, Unavailable
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb


async def test_status_invites_and_stop(run: RunFolder, server: CoordinatorServer, join: Callable[..., Any]) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    status = await asyncio.to_thread(fetch_status, run)
    assert isinstance(status, RunStatus)
    (worker,) = status.workers
    assert (worker.state, worker.lease_id, worker.connected) == ("training", lease.lease_id, True)
    assert "0 of 2 inner steps" in worker.why
    assert status.waits
    assert "1 training" in one_line(status)
    links = await asyncio.to_thread(create_invites, run, count=2, trusted=True)
    assert len({JoinLink.parse(link).invite for link in links}) == 2
    await asyncio.to_thread(stop_run, run, reason="enough")
    over = await client.acquire(wait_s=20.0)
    assert over.over.reason
    await asyncio.wait_for(server.finished(), 10.0)
    assert (await asyncio.to_thread(fetch_status, run)).over
    await asyncio.to_thread(stop_run, run)  # again is fine


async def test_an_invite_says_whose_machine_it_is_for(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    links = await asyncio.to_thread(create_invites, run, count=2, owner=" maria ")
    first, second = [await join(link=link) for link in links]
    await join()
    lease = (await first.acquire()).lease
    waits = (await second.acquire(wait_s=0.0)).wait
    columns = len(lease.columns)
    assert columns == run.layout().columns, "the other machine was to find nothing left"
    assert "maria's other machines have the columns of round 1" in waits.reason
    status = await asyncio.to_thread(fetch_status, run)
    assert sorted(worker.owner for worker in status.workers) == ["", "maria", "maria"]
    print_status(status)
    assert "(maria's)" in capsys.readouterr().out


async def test_an_owner_that_could_steer_a_terminal_is_refused(run: RunFolder, server: CoordinatorServer) -> None:
    async with OperatorClient(run) as operator:
        for owner in ("\x1b[2J", "m" * 1000):
            with pytest.raises(Refused, match="printable"):
                await operator.create_invites(count=1, trusted=False, expires_in_s=1.0, owner=owner)


async def test_too_many_invites_are_refused(run: RunFolder, server: CoordinatorServer) -> None:
    async with OperatorClient(run) as operator:
        with pytest.raises(Refused, match="at most 1000"):
            await operator.create_invites(count=1001, trusted=False, expires_in_s=1.0)


@pytest.mark.parametrize("reply", [b"\xff\xff\xff", pb.GetStatusReply(status_json="{}").SerializeToString()])
async def test_an_answer_of_another_version_is_named(
    run: RunFolder, server: CoordinatorServer, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with OperatorClient(run) as operator:

        async def answer(*_: Any, **__: Any) -> bytes:
            return reply

        monkeypatch.setattr(operator._channel, "unary_unary", lambda _: answer)
        with pytest.raises(MalformedMessage, match="another version"):
            await operator.status()
        monkeypatch.undo()


def test_without_a_coordinator_the_error_says_what_to_do(run: RunFolder) -> None:
    with pytest.raises(Unavailable, match="coordinator run"):
        fetch_status(run)


async def test_with_a_stopped_coordinator_too(run: RunFolder) -> None:
    server = CoordinatorServer(run)
    await server.start()
    await server.stop(0.0)
    with pytest.raises(Unavailable, match="is it running"):
        await asyncio.to_thread(fetch_status, run)
