"""What operators do on the page, once they are in. Who gets in: tests/edge/test_door.py."""

from __future__ import annotations

import json

import pytest
from starlette.types import ASGIApp

from coordinator.page.access import Somebody
from coordinator.page.app import page_app
from coordinator.page.board import Board
from protocol.errors import ConfigError, Unavailable
from tests.coordinator.page.asking import ask
from tests.coordinator.page.doors import MARIA, PAUSE, Behind, Caller, logged_in, page_before
from tests.coordinator.page.pictures import NOW_S, picture


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def app(behind: Behind) -> ASGIApp:
    return page_before(behind)


@pytest.fixture
async def maria(app: ASGIApp, behind: Behind) -> Caller:
    return await logged_in(app, behind)


async def test_a_true_form_is_done_once_and_says_so_once(maria: Caller, behind: Behind) -> None:
    answer = await maria.post("/operator", {**PAUSE, "token": await maria.token()})
    assert (answer.status, answer.headers["location"]) == (303, "/operator")
    assert behind.ordered == [("HoldRun", {"kind": "PAUSE", "why": "moving house"})]
    assert behind.asked[-1][2] == MARIA
    assert b"The run is paused." in (await maria.get("/operator")).body
    assert b"The run is paused." not in (await maria.get("/operator")).body


async def test_a_rollback_is_asked_about_first(maria: Caller, behind: Behind) -> None:
    change = {"act": "rollback", "of": "key", "name": "x", "changed": True, "workers": ["liar"], "note": "soon"}
    behind.replies["ChangeStanding"] = {"change_json": json.dumps(change)}
    fields = {"act": "rollback", "whom": "worker", "name": "liar", "why": "lied", "token": await maria.token()}
    answer = await maria.post("/operator", fields)
    assert b"as if this worker had never taken part" in answer.body
    assert behind.ordered == []
    await maria.post("/operator", {**fields, "confirmed": "yes"})
    assert behind.ordered == [("ChangeStanding", {"act": "ROLLBACK", "worker": "liar", "why": "lied"})]
    assert b"liar: a version without its work will be made. Soon." in (await maria.get("/operator")).body


async def test_links_are_shown_once_and_what_people_wrote_is_text(maria: Caller, behind: Behind) -> None:
    fields = {"act": "invite", "count": "1", "uses": "3", "hours": "24", "owner": "maria", "token": await maria.token()}
    await maria.post("/operator", fields)
    expected = {"count": 1, "uses": 3, "expires_in_s": 86_400.0, "owner": "maria", "trusted": False}
    assert behind.ordered == [("CreateInvite", expected)]
    page = (await maria.get("/operator")).body
    assert b"barnraise://barn.example:7465/#" in page
    assert b"moving &lt;b&gt;house&lt;/b&gt;" in page
    assert b"barnraise://barn.example:7465/#" not in (await maria.get("/operator")).body
    await maria.post("/operator", {**fields, "count": "51"})
    assert len(behind.ordered) == 1
    assert b"count: a whole number from 1 to 50" in (await maria.get("/operator")).body


async def test_what_the_coordinator_refuses_is_told(maria: Caller, behind: Behind) -> None:
    behind.replies["ChangeSetting"] = ConfigError("there is no setting `qorum`")
    fields = {"act": "set", "key": "qorum", "value": "2", "token": await maria.token()}
    await maria.post("/operator", fields)
    assert b"Not done: there is no setting `qorum`." in (await maria.get("/operator")).body


async def test_what_was_told_waits_for_a_page_that_can_be_shown(maria: Caller, behind: Behind) -> None:
    await maria.post("/operator", {**PAUSE, "token": await maria.token()})
    orders, behind.replies["ListOrders"] = behind.replies["ListOrders"], Unavailable("nobody answers")
    answer = await maria.get("/operator")
    assert (answer.status, b"Not shown: nobody answers." in answer.body) == (503, True)
    behind.replies["ListOrders"] = orders
    assert b"The run is paused." in (await maria.get("/operator")).body


async def test_a_viewer_has_no_forms(app: ASGIApp, behind: Behind) -> None:
    caller = Caller(app)
    await caller.log_in(behind.access.ticket(Somebody(name="vera", may_order=False)))
    page = (await caller.get("/operator")).body
    assert b"who may look and order nothing" in page
    assert b'action="/operator"' not in page
    await caller.post("/operator", {**PAUSE, "token": await caller.token()})
    assert behind.asked[-1][2].may_order is False, "what the desk then refuses"


async def test_a_page_without_a_door_takes_no_form(behind: Behind) -> None:
    board = Board(lambda: NOW_S)
    board.publish(picture())
    app = page_app(board, names=(), abort=lambda _: None)
    assert (await ask(app, "/operator")).status == 404
    assert (await ask(app, "/operator", method="POST")).status == 405
    assert b"/operator" not in (await ask(app, "/")).body
