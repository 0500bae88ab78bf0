"""Bans against a real server over loopback TLS: what the operator orders, and what the shut out are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from barnraise.cli.app import run as run_cli
from barnraise.cli.status import print_status
from coordinator.edge.operator_client import change_standing, create_invites, fetch_status
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.status import WorkerState
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import InviteTerms
from coordinator.run.standings import Act, StandingChange, StandingOrder, digest_of_invite
from protocol.causes import CAUSE_KEY, Cause
from protocol.errors import ConfigError, MalformedMessage
from protocol.joinlink import JoinLink
from tests.served import Refusal

Code = grpc.StatusCode
Join = Callable[..., Any]


async def order(run: RunFolder, act: Act = Act.BAN, **whom: str) -> StandingChange:
    what = {"worker": "", "owner": "", "invite": "", "why": "it lies", **whom}
    change, served = await asyncio.to_thread(change_standing, run, StandingOrder.checked(act=act, **what))
    assert served
    return change


async def test_a_banned_key_is_shut_out_with_a_sentence_and_comes_back_when_unbanned(
    run: RunFolder, server: CoordinatorServer, join: Join, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await join()
    await client.acquire()
    worker = client.identity.worker_id
    change = await order(run, worker=worker[:12])
    assert (change.changed, change.of, change.name) == (True, "key", worker)
    await Refusal(Code.UNAUTHENTICATED, "not open").of(client.acquire())  # its session ended
    banned = "banned from this run: the operator banned it: it lies. If that is wrong, write to the operator"
    with pytest.raises(grpc.aio.AioRpcError, match="banned from this run") as caught:
        await client.open()
    assert dict(caught.value.trailing_metadata() or ())[CAUSE_KEY] == Cause.BANNED.value
    await Refusal(Code.FAILED_PRECONDITION, banned).of(client.enrol())
    status = await asyncio.to_thread(fetch_status, run)
    (shown,) = status.workers
    assert (shown.state, shown.weight, shown.standing) == (WorkerState.BANNED, 0.0, "banned by the operator")
    print_status(status)
    assert " 0.00 " in capsys.readouterr().out
    again = await order(run, worker=worker, why="another reason")
    assert (again.changed, again.note) == (False, "banned by the operator before: the operator banned it: it lies")
    assert (await order(run, Act.UNBAN, worker=worker)).changed
    assert not (await order(run, Act.UNBAN, worker=worker)).changed
    await client.open()
    assert (await asyncio.to_thread(fetch_status, run)).workers[0].standing == "on probation"
    assert (await order(run, Act.PARDON, worker=worker)).changed
    assert not (await order(run, Act.PARDON, worker=worker)).changed
    assert (await asyncio.to_thread(fetch_status, run)).workers[0].standing == "rising"


@pytest.mark.parametrize("by", ["owner", "invite"])
async def test_an_owners_or_an_invites_link_lets_nobody_in_and_is_not_spent(
    run: RunFolder, server: CoordinatorServer, join: Join, by: str
) -> None:
    links, _ = await asyncio.to_thread(create_invites, run, InviteTerms(count=2, owner="maria"))
    inside = await join(link=links[0])
    outside = await join(link=links[1], enrolled=False)
    stranger = await join()
    owner, invite = ("maria", "") if by == "owner" else ("", links[1])
    change = await order(run, owner=owner, invite=invite)
    assert change.changed
    sentence = "All machines of this owner are" if by == "owner" else "All machines that came with this invite are"
    await Refusal(Code.FAILED_PRECONDITION, sentence).of(outside.enrol())
    if by == "owner":
        assert change.workers == ("raw",)
        await Refusal(Code.FAILED_PRECONDITION, sentence).of(inside.open())
    else:
        await inside.open()
    await stranger.open()
    await order(run, Act.UNBAN, owner=owner, invite=invite)
    await outside.enrol()
    await outside.open()


async def test_a_key_goes_with_its_invite(run: RunFolder, server: CoordinatorServer, join: Join) -> None:
    (link,), _ = await asyncio.to_thread(create_invites, run, InviteTerms())
    client = await join(link=link)
    (shown,) = (await asyncio.to_thread(fetch_status, run)).workers
    assert shown.invite == digest_of_invite(link) == digest_of_invite(JoinLink.parse(link).invite or "")
    assert (await order(run, invite=shown.invite)).workers == ("raw",)
    await Refusal(Code.FAILED_PRECONDITION, "came with this invite").of(client.open())


async def test_an_order_that_names_nobody_or_too_many_is_refused(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    await join()
    await join()
    with pytest.raises(ConfigError, match="2 workers are called 'raw'"):
        await order(run, worker="raw")
    with pytest.raises(ConfigError, match="no worker is called"):
        await order(run, worker="nobody")
    for whom in ({}, {"worker": "a", "owner": "b"}, {"act": Act.PARDON, "owner": "b"}):
        with pytest.raises(MalformedMessage):
            StandingOrder.checked(**{"act": Act.BAN, "worker": "", "owner": "", "invite": "", "why": "", **whom})  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage, match="printable"):
        await order(run, worker="a", why="\x1b[2J")


def test_a_stopped_run_takes_a_ban_too(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["coordinator", "ban", str(run.root), "--owner", "maria", "--why", "sybils"]) == 0
    out, err = capsys.readouterr()
    assert out == "owner maria (0 enrolled: ): banned\n"
    assert "the coordinator is not running" in err
    assert run_cli(["coordinator", "ban", str(run.root), "--owner", "maria", "--json"]) == 0
    assert '"changed": false' in capsys.readouterr().out
    assert run_cli(["coordinator", "unban", str(run.root), "--owner", "maria"]) == 0
    assert run_cli(["coordinator", "unban", str(run.root), "--owner", "maria"]) == 0
    assert "is not banned" in capsys.readouterr().out
    assert run_cli(["coordinator", "pardon", str(run.root), "nobody"]) == 2
    assert run_cli(["coordinator", "ban", str(run.root)]) == 2
    assert "only one of them" in capsys.readouterr().err


def test_two_orders_at_once_meet_the_folders_lock(run: RunFolder) -> None:
    from coordinator.run.lock import folder_lock
    from coordinator.run.standings import change_standing_while_stopped

    lock = folder_lock(run.root)
    lock.acquire()
    try:
        with pytest.raises(ConfigError):
            change_standing_while_stopped(
                run, StandingOrder.checked(act=Act.BAN, worker="", owner="maria", invite="", why="")
            )
    finally:
        lock.release()
