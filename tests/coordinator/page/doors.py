"""A door for operators with nobody behind it: what is asked is kept, and answered as it was told to be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

from coordinator.page.access import Access, Somebody
from coordinator.page.app import page_app
from coordinator.page.board import Board
from coordinator.page.operator import OperatorDoor, OperatorPages
from tests.coordinator.page.asking import Answered, ask
from tests.coordinator.page.pictures import NOW_S, picture

MARIA = Somebody(name="maria", may_order=True)
PASSWORD = "correct horse battery"
PAUSE = {"act": "pause", "why": "moving house"}
INVITES = [
    {"invite": "ac32767545ee117e", "state": "open", "trusted": True, "owner": "maria", "uses": 3, "used": 1,
     "expires_at_s": 1_795_600_000.0},
    {"invite": "7039b8cd772f9b59", "state": "revoked", "trusted": False, "owner": "", "uses": 1, "used": 0,
     "expires_at_s": 1_795_600_000.0},
]  # fmt: skip
ORDERS = [
    {"number": 1, "at_s": 1.0, "actor": "maria, on the page", "kind": "RunHeld", "about": "paused",
     "detail": "moving <b>house</b>", "wall_s": 1_794_999_000.0, "what": "held"},
]  # fmt: skip


class Behind:
    """The coordinator's side of the door."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], Somebody]] = []
        self.replies: dict[str, Any] = {
            "ListInvites": {"rows_json": [json.dumps(row) for row in INVITES]},
            "ListOrders": {"rows_json": [json.dumps(row) for row in ORDERS]},
            "HoldRun": {"before": "running", "now": "paused"},
            "CreateInvite": {"join_links": ["barnraise://barn.example:7465/#" + "a" * 64 + ".an-invite-of-letters"]},
            "RevokeInvite": {"invite": "ac32767545ee117e", "changed": True},
        }
        self.passwords: list[str] = []
        self.mark = "first"
        self.now_s = 0.0
        self.access = Access(lambda: self.now_s)

    @property
    def ordered(self) -> list[tuple[str, dict[str, Any]]]:
        """What was asked that is more than looking."""
        return [(verb, message) for verb, message, _ in self.asked if not verb.startswith("List")]

    def door(self) -> OperatorDoor:
        return OperatorDoor(
            access=self.access, call=self.call, password_mark=lambda: self.mark, check_password=self.check
        )

    async def call(self, verb: str, message: Mapping[str, Any], who: Somebody) -> Mapping[str, Any]:
        self.asked.append((verb, dict(message), who))
        reply = self.replies.get(verb, {})
        if isinstance(reply, Exception):
            raise reply
        return dict(reply)

    def check(self, password: str) -> bool:
        self.passwords.append(password)
        return password == PASSWORD


class Caller:
    """A browser, as far as its headers go."""

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1:7466", https: bool = False) -> None:
        self.app, self.host = app, host
        self.origin = f"{'https' if https else 'http'}://{host}"
        self.proxied = {"x_forwarded_proto": "https"} if https else {}
        self.cookie = ""

    async def get(self, path: str, **more: Any) -> Answered:
        return await ask(self.app, path, **self._headers(more))

    async def post(self, path: str, fields: Mapping[str, str], **more: Any) -> Answered:
        from urllib.parse import urlencode

        more = {"origin": self.origin, "content_type": "application/x-www-form-urlencoded", **more}
        body = urlencode(fields).encode()
        answer = await ask(self.app, path, method="POST", **{"body": body, **self._headers(more)})
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def log_in(self, ticket: str) -> Answered:
        return await self.post("/login", {"ticket": ticket})

    async def token(self) -> str:
        """What forms of this visit have in them."""
        page = (await self.get("/operator")).body.decode()
        found = re.search(r'name="token" value="([^"]+)"', page)
        assert found is not None, page
        return found.group(1)

    def _headers(self, more: dict[str, Any]) -> dict[str, Any]:
        cookie = {"cookie": self.cookie} if self.cookie else {}
        return {
            name: value for name, value in {"host": self.host, **self.proxied, **cookie, **more}.items() if value != ""
        }


def page_before(behind: Behind) -> ASGIApp:
    """The run's page, with that door."""
    board = Board(lambda: NOW_S, operators=True)
    board.publish(picture())
    return page_app(board, names={"barn.example"}, abort=lambda _: None, operators=OperatorPages(board, behind.door()))


async def logged_in(app: ASGIApp, behind: Behind) -> Caller:
    """Maria, who opened the address that she was given."""
    caller = Caller(app)
    await caller.log_in(behind.access.ticket(MARIA))
    return caller
