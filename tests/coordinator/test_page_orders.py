"""From `coordinator login` to an order on the page, over HTTP against a real coordinator; and the page's password."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from coordinator.edge.operator_client import OperatorClient, change_operator_key, list_orders
from coordinator.edge.server import CoordinatorServer
from coordinator.page.address import PageAddress
from coordinator.run import password
from coordinator.run.folder import RunFolder
from coordinator.run.operator_keys import KeyOrder
from coordinator.store.operators import Role
from protocol.errors import ConfigError
from protocol.identity import PrivateIdentity
from protocol.local_place import own_name

WORDS = "correct horse battery staple"


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scrypt has it, but for the price."""
    monkeypatch.setitem(password._COST, "n", 2**4)


@pytest.fixture
async def shown(run: RunFolder) -> AsyncIterator[CoordinatorServer]:
    started = CoordinatorServer(run, page=PageAddress(port=0, chosen=True, names=("barn.example",)))
    await started.start()
    yield started
    await started.stop(0.0)


class Tab:
    """A browser's tab, as far as HTTP goes."""

    def __init__(self, url: str) -> None:
        self.netloc = urlsplit(url).netloc
        self.cookie = ""

    async def ask(self, path: str, fields: dict[str, str] | None = None) -> tuple[int, str]:
        return await asyncio.to_thread(self._ask, path, fields)

    def _ask(self, path: str, fields: dict[str, str] | None) -> tuple[int, str]:
        line = http.client.HTTPConnection(self.netloc, timeout=20)
        headers = {"cookie": self.cookie}
        if fields is not None:
            headers |= {
                "origin": f"http://{self.netloc}",
                "content-type": "application/x-www-form-urlencoded",
            }
        line.request("GET" if fields is None else "POST", path, urlencode(fields or {}), headers)
        answer = line.getresponse()
        body = answer.read().decode()
        self.cookie = answer.headers.get("set-cookie", self.cookie).partition(";")[0]
        line.close()
        return answer.status, body

    async def order(self, **fields: str) -> str:
        """What the page says of it."""
        _, page = await self.ask("/operator")
        (token, *_) = re.findall(r'name="token" value="([^"]+)"', page)
        status, _ = await self.ask("/operator", {**fields, "token": token})
        assert status == 303
        (told,) = re.findall(r'class="told[^>]*>([^<]*)<', (await self.ask("/operator"))[1])
        return str(told)


async def test_from_the_command_to_an_order_on_the_page(run: RunFolder, shown: CoordinatorServer) -> None:
    (here, public), good_for_s = await OperatorClient(run).login()
    assert here.startswith(shown.page_url)
    assert public.startswith("https://barn.example/login?ticket=")
    assert good_for_s == 60.0
    tab, ticket = Tab(here), here.partition("ticket=")[2]
    while (await tab.ask("/login"))[0] == 503:  # before the first picture
        await asyncio.sleep(0.05)
    assert (await tab.ask("/login", {"ticket": ticket}))[0] == 303
    assert await tab.order(act="pause", why="moving house") == "The run is paused."
    assert (await tab.order(act="set", key="qorum", value="2")).startswith("Not done: there is no setting `qorum`")
    made = await tab.order(act="invite", count="2", uses="1", hours="1", owner="", trusted="yes")
    assert made.startswith("2 join links were made.")
    invites = await OperatorClient(run).invites()
    assert [one["trusted"] for one in invites] == [True, True]
    assert "nobody else comes in by it" in await tab.order(act="revoke", invite=invites[0]["invite"])
    assert await tab.order(act="ban", whom="owner", name="eve", why="lied") == "eve: banned."
    assert (await tab.order(act="rollback", whom="worker", name="nobody", confirmed="yes")).startswith(
        "Not done: no worker"
    )
    orders = await asyncio.to_thread(list_orders, run)
    assert {one["actor"] for one in orders} == {f"{own_name()}, on the page"}
    assert [one["what"] for one in orders] == ["held", "invited", "revoked an invite", "banned an owner"]
    assert (await Tab(here).ask("/login", {"ticket": ticket}))[0] == 403


async def test_a_login_ends_with_the_key_that_it_came_by(run: RunFolder, shown: CoordinatorServer) -> None:
    key = PrivateIdentity.generate().public_key.hex()
    order = KeyOrder(name="maria", public_key=key, role=Role.OPERATOR)
    await asyncio.to_thread(change_operator_key, run, order)
    from coordinator.edge.operators import with_key

    assert shown._run is not None
    who = with_key(shown._run.registry.operators.find(bytes.fromhex(key)))
    (here, _) = shown._operator.page_login(who) if shown._operator.page_login else ("", "")
    tab = Tab(here)
    while (await tab.ask("/login"))[0] == 503:
        await asyncio.sleep(0.05)
    await tab.ask("/login", {"ticket": here.partition("ticket=")[2]})
    assert (await tab.ask("/operator"))[0] == 200
    await asyncio.to_thread(change_operator_key, run, KeyOrder(name="maria"))
    assert (await tab.ask("/operator"))[0] == 303


async def test_the_password(run: RunFolder, shown: CoordinatorServer) -> None:
    tab = Tab(shown.page_url)
    while (await tab.ask("/login"))[0] == 503:
        await asyncio.sleep(0.05)
    assert 'type="password"' not in (await tab.ask("/login"))[1]
    assert str(run.root) not in (await tab.ask("/login"))[1], "anybody may read this page"
    assert (await tab.ask("/login", {"password": ""}))[0] == 403
    password.set_password(run, WORDS)
    assert (await tab.ask("/login", {"password": WORDS.upper()}))[0] == 403
    assert (await tab.ask("/login", {"password": WORDS}))[0] == 303
    await tab.order(act="resume")
    assert (await asyncio.to_thread(list_orders, run))[-1]["actor"] == "the page's password, on the page"
    password.set_password(run, WORDS)
    assert (await tab.ask("/operator"))[0] == 303, "it may have been changed since somebody knew it"
    assert (await tab.ask("/login", {"password": WORDS}))[0] == 303
    password.drop_password(run)
    assert (await tab.ask("/operator"))[0] == 303


async def test_without_a_page_nobody_logs_in(run: RunFolder, server: Any, join: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="shows no page"):
        await OperatorClient(run).login()


def test_a_password_is_kept_as_scrypt_has_it(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="at least 12 characters"):
        password.set_password(run, "short")
    assert not password.is_password(run, "")
    password.set_password(run, WORDS)
    file = run.root / "secret" / "page.password"
    assert file.stat().st_mode & 0o077 == 0
    assert WORDS.encode() not in file.read_bytes()
    assert password.is_password(run, WORDS)
    for other in ("", WORDS + " ", "x" * 5000, "\ud800"):
        assert not password.is_password(run, other)
    kept = file.read_bytes()
    password.set_password(run, WORDS)
    assert file.read_bytes() != kept, "each has its own salt"
    for broken in (
        b"",
        b"[]",
        b'{"salt": 3, "key": "00"}',
        b'{"salt": "00", "key": ""}',
        b'{"salt": "zz", "key": "00"}',
    ):
        file.write_bytes(broken)
        assert not password.is_password(run, "")
    assert password.drop_password(run)
    assert not password.drop_password(run)
