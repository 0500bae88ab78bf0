"""Operators elsewhere: keys of their own, what a role allows, who ordered what, and the end of a key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run as barnraise
from barnraise.cli.operator_keys import address_of
from coordinator.edge.elsewhere import RemoteLine
from coordinator.edge.operator_client import OperatorClient, change_operator_key, list_orders, revoke_invite
from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import invites_of
from coordinator.run.operator_keys import KeyOrder, keys_of
from coordinator.store.operators import MOST_KEYS, OperatorKey, Role
from coordinator.store.registry import Registry
from protocol.errors import ConfigError, MalformedMessage, Unauthenticated
from protocol.joinlink import WayBack
from protocol.local_place import own_name
from tests.coordinator.operators_elsewhere import MARIA, elsewhere, let_in


@pytest.fixture
async def line(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[RemoteLine]:
    await let_in(run)
    async with RemoteLine(elsewhere(run, server)) as one:
        yield one


async def test_an_order_from_elsewhere_names_its_key(
    run: RunFolder, line: RemoteLine, join: Callable[..., Any]
) -> None:
    operator = OperatorClient(line)
    assert await operator.hold("pause", "moving house") == {"before": "running", "now": "paused"}
    client = await join()
    assert "paused the run: moving house." in (await client.acquire(wait_s=0.0)).wait.reason
    assert (await operator.status()).sentence.startswith("The run is paused (moving house)")
    await operator.hold("resume")
    await operator.announce("back on Monday")
    orders = await operator.orders()
    assert orders == await asyncio.to_thread(list_orders, run)
    who = {(one["kind"], one["actor"]) for one in orders}
    assert who >= {("OperatorKeyAdded", own_name()), ("RunHeld", "maria, by key"), ("Announced", "maria, by key")}


async def test_a_stranger_is_told_how_to_be_let_in(run: RunFolder, server: CoordinatorServer) -> None:
    with pytest.raises(ConfigError, match=f"operator-key add RUN NAME {MARIA.public_key.hex()}"):
        async with RemoteLine(elsewhere(run, server)):
            pass


async def test_another_coordinator_is_not_spoken_to(run: RunFolder, server: CoordinatorServer) -> None:
    await let_in(run)
    where = elsewhere(run, server)
    with pytest.raises(Unauthenticated, match="expected a certificate"):
        async with RemoteLine(replace(where, link=replace(where.link, fingerprint="0" * 64))):
            pass


async def test_keys_are_given_at_the_run_folder_alone(line: RemoteLine) -> None:
    with pytest.raises(ConfigError, match="at the run folder alone"):
        await OperatorClient(line).key_order("AddOperatorKey", name="eve", public_key="0" * 64, role="operator")


def test_while_nobody_serves_it_is_noted_all_the_same(run: RunFolder) -> None:
    hexed = MARIA.public_key.hex()
    for changed in (True, False):
        found, served = change_operator_key(run, KeyOrder(name="maria", public_key=hexed, role="viewer"))
        assert (found["changed"], served) == (changed, False)
    registry = run.registry()
    invite = registry.create_invite(trusted=False, expires_at_s=2e9)
    registry.close()
    digest, changed = revoke_invite(run, invite)
    assert changed
    assert [one.state for one in invites_of(run)] == ["revoked"]
    change_operator_key(run, KeyOrder(name="maria"))
    assert keys_of(run) == []
    kinds = [(one["kind"], one["about"], one["actor"]) for one in list_orders(run)]
    me = own_name()
    assert kinds == [
        ("OperatorKeyAdded", "maria", me), ("InviteRevoked", digest, me), ("OperatorKeyRevoked", "maria", me),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "a b", "x" * 33, "\x1b[2J", "-rf"])
def test_a_name_that_could_steer_a_terminal_is_refused(run: RunFolder, name: str) -> None:
    with pytest.raises(MalformedMessage, match="an operator's name has"):
        change_operator_key(run, KeyOrder(name=name, public_key="0" * 64, role="operator"))


def test_one_name_a_key_and_one_key_a_name(tmp_path: Path) -> None:
    keys = Registry.open(tmp_path / "registry.sqlite").operators
    maria = OperatorKey(name="maria", public_key=MARIA.public_key, role=Role.OPERATOR, added_at_s=1.0)
    keys.add(maria)
    for other in (replace(maria, name="eve"), replace(maria, public_key=b"k" * 32)):
        with pytest.raises(ConfigError, match="revoke that first"):
            keys.add(other)
    assert keys.find(MARIA.public_key) == maria
    for number in range(MOST_KEYS - 1):
        keys.add(replace(maria, name=f"n{number}", public_key=bytes([number]) * 32))
    with pytest.raises(ConfigError, match="revoke one first"):
        keys.add(replace(maria, name="one-more", public_key=b"k" * 32))


async def test_the_commands_from_another_machine(
    run: RunFolder, server: CoordinatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    async def said(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert await asyncio.to_thread(barnraise, list(words)) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        return str(out if code == 0 else err)

    assert "has no operator's key" in await said("coordinator", "pause", "--at", "127.0.0.1", code=2)
    public_key = (await said("coordinator", "operator-key", "new")).strip()
    assert (await said("coordinator", "operator-key", "new")).strip() == public_key
    added = json.loads(await said("coordinator", "operator-key", "add", str(run.root), "maria", public_key, "--json"))
    assert added["address"] == address_of(run)
    way = WayBack.parse(added["address"])
    assert way is not None
    assert "no run is known at" in await said("coordinator", "pause", "--at", way.host, code=2)
    await said("coordinator", "pause", "--at", added["address"], "--why", "moving house")
    assert "time stands" in await said("status", f"--at={way.host}:{way.port}")
    told = json.loads(await said("coordinator", "orders", "--at", way.host, "--json"))
    assert [(one["actor"], one["detail"]) for one in told[-1:]] == [("maria, by key", "moving house")]
    assert "unexpected extra argument" in await said("coordinator", "pause", str(run.root), "--at", way.host, code=2)


def _terms(**terms: Any) -> Any:
    from coordinator.run.inviting import InviteTerms

    return InviteTerms(**terms)
