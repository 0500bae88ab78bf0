"""The operator's client against a real server: status, invites, stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from barnraise.cli.app import run as barnraise
from barnraise.cli.status import print_status
from coordinator.edge.health import LEASES
from coordinator.edge.operator_client import OperatorClient, announce, create_invites, fetch_status, hold_run, stop_run
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.status import RunStatus, WorkerState
from coordinator.edge.stopped import engine_of_journal
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import InviteTerms
from coordinator.run.reaching import CoordinatorStopped, control_path
from protocol.errors import ConfigError, MalformedMessage
from protocol.joinlink import JoinLink
from protocol.local_place import own_name
from protocol.local_socket import ask
from tests.served import clients_of

HEALTH = "/grpc.health.v1.Health/Check"


async def test_status_invites_and_stop(run: RunFolder, server: CoordinatorServer, join: Callable[..., Any]) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    status = await asyncio.to_thread(fetch_status, run)
    assert isinstance(status, RunStatus)
    (worker,) = status.workers
    assert (worker.state, worker.lease_id, worker.connected) == ("training", lease.lease_id, True)
    assert "0 of 2 inner steps" in worker.why
    assert status.waits
    assert status.worker_states[WorkerState.TRAINING] == 1
    links, served = await asyncio.to_thread(create_invites, run, InviteTerms(count=2, trusted=True))
    assert served
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
    links, _ = await asyncio.to_thread(create_invites, run, InviteTerms(count=2, owner=" maria "))
    first, second = [await join(link=link) for link in links]
    await join()
    lease = (await first.acquire()).lease
    waits = (await second.acquire(wait_s=0.0)).wait
    columns = len(lease.columns)
    assert columns == run.layout().columns, "the other machine was to find nothing left"
    assert "Your other machines hold what this one could take of round 1" in waits.reason
    status = await asyncio.to_thread(fetch_status, run)
    assert sorted(worker.owner for worker in status.workers) == ["", "maria", "maria"]
    print_status(status)
    assert "(maria's)" in capsys.readouterr().out


async def test_one_link_lets_in_as_many_as_it_is_for(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any]
) -> None:
    (link,), served = await asyncio.to_thread(create_invites, run, InviteTerms(uses=2))
    assert served
    for _ in range(2):
        await join(link=link)
    with pytest.raises(grpc.RpcError, match="for 2 machines"):
        await join(link=link)


async def test_an_owner_that_could_steer_a_terminal_is_refused(run: RunFolder, server: CoordinatorServer) -> None:
    operator = OperatorClient(run)
    for owner in ("\x1b[2J", "m" * 1000):
        with pytest.raises(MalformedMessage, match="printable"):
            await operator.create_invites(InviteTerms(owner=owner))


async def test_too_many_invites_are_refused(run: RunFolder, server: CoordinatorServer) -> None:
    operator = OperatorClient(run)
    with pytest.raises(MalformedMessage, match="at most 1000"):
        await operator.create_invites(InviteTerms(count=1001))


@pytest.mark.parametrize("answer", [{"status_json": 3}, {"status_json": "{}"}, {"unheard_of": "x"}])
async def test_an_answer_of_another_version_is_named(
    run: RunFolder, server: CoordinatorServer, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other(*_: Any) -> dict[str, Any]:
        return answer

    monkeypatch.setattr("coordinator.edge.operator_client.ask", other)
    with pytest.raises(MalformedMessage, match="another version"):
        await OperatorClient(run).status()


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"verb": "fly"},
        {"verb": ["pause"]},
        {"verb": "GetStatus", "message": 3},
        {"verb": "StopRun", "message": {"unheard_of": 1}},
        {"verb": "HoldRun", "message": {"why": "x" * 1000}},
        {"verb": "Announce", "message": {"text": "\x1b[2J"}},
    ],
)
async def test_what_is_no_order_is_refused(run: RunFolder, server: CoordinatorServer, request_: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        await ask(control_path(run), request_)


async def test_a_paused_run_grants_nothing_says_so_and_goes_on(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(barnraise, ["coordinator", "pause", str(run.root), "--why", "moving house"]) == 0
    client = await join()
    reply = await client.acquire(wait_s=0.0)
    assert "paused the run: moving house." in reply.wait.reason
    checked = await client.call(HEALTH, health_pb2.HealthCheckRequest(service=LEASES), health_pb2.HealthCheckResponse)
    assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
    status = await asyncio.to_thread(fetch_status, run)
    assert status.sentence.startswith("The run is paused (moving house)")
    assert await asyncio.to_thread(barnraise, ["coordinator", "resume", str(run.root), "--json"]) == 0
    assert (await client.acquire(wait_s=20.0)).lease.lease_id
    capsys.readouterr()
    assert await asyncio.to_thread(barnraise, ["coordinator", "orders", str(run.root), "--json"]) == 0
    held, lifted = json.loads(capsys.readouterr().out)
    assert (held["kind"], held["detail"], lifted["kind"]) == ("RunHeld", "moving house", "HoldLifted")
    assert held["actor"] == lifted["actor"] == own_name()


async def test_a_stopped_run_is_held_from_its_next_start_on(run: RunFolder) -> None:
    held = await asyncio.to_thread(hold_run, run, "pause", "moving house")
    assert held == {"before": "running", "now": "paused", "served": False}
    await asyncio.to_thread(announce, run, "back on Monday")
    with pytest.raises(MalformedMessage):
        await asyncio.to_thread(announce, run, "a\x1b[31mb")
    server = CoordinatorServer(run)
    await server.start()
    try:
        assert "moving house" in server.summary().sentence
        held = await asyncio.to_thread(hold_run, run, "resume")
        assert held == {"before": "paused", "now": "running", "served": True}
    finally:
        await server.stop(0.0)
    state = engine_of_journal(run)[0].state
    assert state.announcement is not None
    assert [one.kind for one in state.orders] == ["RunHeld", "Announced", "HoldLifted"]


async def test_a_worker_in_training_hears_what_is_announced(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any]
) -> None:
    client = await join()
    assert (await client.beat()).announcement == ""
    await asyncio.to_thread(announce, run, "back on Monday")
    assert (await client.beat()).announcement == "back on Monday"


def test_an_order_to_a_stopped_coordinator_says_to_start_it(run: RunFolder) -> None:
    with pytest.raises(CoordinatorStopped, match="is not running; start it with `barnraise coordinator run"):
        stop_run(run)


async def test_join_links_are_made_while_it_is_stopped_and_work_when_it_runs_again(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="takes a free port at its first start"):
        await asyncio.to_thread(create_invites, run, InviteTerms())
    server = CoordinatorServer(run)
    port = await server.start()
    await server.stop(0.0)
    (link,), served = await asyncio.to_thread(create_invites, run, InviteTerms(owner="maria"))
    assert not served
    assert JoinLink.parse(link).port == port
    server = CoordinatorServer(run)
    await server.start()
    try:
        async with clients_of(run, server) as make:
            await make(link=link)
            assert (await server.status()).workers[0].owner == "maria"
    finally:
        await server.stop(0.0)
