"""The operator's side of the page: logging in, what only operators see, and what they may do.

Decides who gets that far: over HTTPS or on this machine alone (`approach.py`), with the cookie of a visit
(`access.py`), and, to do something, with a form of that visit, sent by a page of this origin, not too often. Always: a
GET changes nothing; whatever is refused did nothing; acts go to the coordinator's own loop as the local socket's orders
do, and carry who did it. Works without scripts, and has none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from coordinator.page.access import Access, Somebody, Visit
from coordinator.page.acts import PAGE_ACTS
from coordinator.page.approach import Approach, approach_of, cookie_name, form_of, is_from_our_page, set_cookie
from coordinator.page.board import Board
from coordinator.page.rendering import template
from protocol.errors import BarnraiseError, MalformedMessage

POSTED = frozenset({"/login", "/logout", "/operator"})
"""Where a form may be sent."""
PASSWORD_NAME = "the page's password"  # noqa: S105 - what stands beside an order of whoever knows it
ROWS_SHOWN = 50
DOOR_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    # not `no-referrer`, under which browsers do not say which origin a form comes from
    "referrer-policy": "same-origin",
}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorDoor:
    """What the page has for operators, from whoever serves the run."""

    access: Access
    call: Callable[[str, Mapping[str, Any], Somebody], Awaitable[Mapping[str, Any]]]
    """Has the coordinator's own loop answer a call of the operator's service."""
    password_mark: Callable[[], str]
    """Another one for each password that is set; empty where none is."""
    check_password: Callable[[str], bool]
    """Takes a good part of a second of a processor, on purpose."""


class OperatorPages:
    """Answers for one page."""

    def __init__(self, board: Board, door: OperatorDoor) -> None:
        self._board, self._door = board, door
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="password")

    def routes(self) -> list[Route]:
        """To be served beside the public ones."""
        return [
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/operator", self._operator_page, methods=["GET"]),
            Route("/operator", self._act, methods=["POST"]),
        ]

    # ---- in and out ---------------------------------------------------------------------------------------------

    async def _login_page(self, request: Request) -> Response:
        if not approach_of(request):
            return self._too_open()
        return self._login(request.query_params.get("ticket", "")[:100])

    async def _log_in(self, request: Request) -> Response:
        approach = approach_of(request)
        form, refusal = await self._form(request, approach)
        if refusal is not None:
            return refusal
        access, cookie = self._door.access, None
        if "ticket" in form:
            cookie = access.redeem(form["ticket"])
            trouble = "This link was used, or is older than a minute: make another."
        else:
            wait_s = access.passwords.take()
            if wait_s:
                _log.warning("page_login_refused", reason="too many passwords")
                return self._login("", f"Too many tries: in {wait_s:.0f} s again.", 429)
            mark = self._door.password_mark()  # before: what is set meanwhile ends the visit
            check = partial(self._door.check_password, form.get("password", "")[:1000])
            is_password = await asyncio.get_running_loop().run_in_executor(self._one_at_a_time, check)
            if mark and is_password:
                cookie = access.begin(Somebody(name=PASSWORD_NAME, may_order=True), by_password=mark)
            trouble = "That is not the password."
        visit = None if cookie is None else access.visit(cookie)
        if cookie is None or visit is None:
            _log.warning("page_login_refused", reason=trouble)
            return self._login("", trouble, 403)
        _log.info("page_login", who=visit.who.name)
        headers = {**DOOR_HEADERS, "set-cookie": set_cookie(request, approach, cookie)}
        return RedirectResponse("/operator", 303, headers)

    async def _log_out(self, request: Request) -> Response:
        approach = approach_of(request)
        form, refusal = await self._form(request, approach)
        visit = None if refusal is not None else self._visit(request, approach)
        if refusal is not None or visit is None or not visit.has_token(form.get("token", "")):
            return refusal or RedirectResponse("/login", 303, DOOR_HEADERS)
        self._door.access.leave(request.cookies.get(cookie_name(request, approach), ""))
        _log.info("page_logout", who=visit.who.name)
        return RedirectResponse("/", 303, {**DOOR_HEADERS, "set-cookie": set_cookie(request, approach, "")})

    def _visit(self, request: Request, approach: Approach) -> Visit | None:
        if not approach:
            return None
        cookie = request.cookies.get(cookie_name(request, approach), "")
        visit = self._door.access.visit(cookie)
        if visit is not None and visit.by_password not in {None, self._door.password_mark()}:
            self._door.access.leave(cookie)
            return None
        return visit

    async def _form(self, request: Request, approach: Approach) -> tuple[Mapping[str, str], Response | None]:
        """What was filled in, or why it is not looked at."""
        if not approach:
            return {}, self._too_open()
        if not is_from_our_page(request, approach):
            return {}, self._said(403, "This form was not sent from this page: open the page itself, and try again.")
        try:
            return await form_of(request), None
        except MalformedMessage as error:
            return {}, self._said(400, f"{error}.")

    # ---- what operators see and do ------------------------------------------------------------------------------

    async def _operator_page(self, request: Request) -> Response:
        approach = approach_of(request)
        visit = self._visit(request, approach)
        if visit is None:
            return RedirectResponse("/login", 303, DOOR_HEADERS) if approach else self._too_open()
        try:
            invites = await self._door.call("ListInvites", {}, visit.who)
            orders = await self._door.call("ListOrders", {}, visit.who)
        except BarnraiseError as error:
            return self._said(503, f"Not shown: {str(error).rstrip('.')}.")
        told, visit.told = visit.told, []
        links, visit.links = visit.links, []
        invited = [json.loads(row) for row in invites.get("rows_json", ())]
        ordered = [json.loads(row) for row in reversed(orders.get("rows_json", ()))]
        facts = {
            "visit": visit,
            "told": told,
            "links": links,
            "invites": invited[:ROWS_SHOWN],
            "more_invites": int(invites.get("more", 0)) + max(0, len(invited) - ROWS_SHOWN),
            "orders": ordered[:ROWS_SHOWN],
            "held": self._board.view.health.paused,
        }
        return self._page("operator.html", 200, facts)

    async def _act(self, request: Request) -> Response:
        approach = approach_of(request)
        form, refusal = await self._form(request, approach)
        if refusal is not None:
            return refusal
        visit = self._visit(request, approach)
        if visit is None:
            return RedirectResponse("/login", 303, DOOR_HEADERS)
        act = PAGE_ACTS.get(form.get("act", ""))
        if act is None or not visit.has_token(form.get("token", "")):
            return self._said(403, "This form is not of this visit, or the page has changed: go back and load it anew.")
        wait_s = visit.acts.take()
        if wait_s:
            return self._said(429, f"That is a lot at once: in {wait_s:.0f} s again.")
        if act.confirm is not None and form.get("confirmed") != "yes":
            question, meaning = act.confirm
            facts = {"visit": visit, "form": form, "question": question, "meaning": meaning}
            return self._page("confirm.html", 200, facts)
        try:
            verb, message = act.call(form)
            reply = dict(await self._door.call(verb, message, visit.who))
            visit.told.append(act.told(form, reply))
            visit.links = list(reply.get("join_links", ()))
        except BarnraiseError as error:
            visit.told.append(f"Not done: {str(error).rstrip('.')}.")
        return RedirectResponse("/operator", 303, DOOR_HEADERS)

    # ---- pages --------------------------------------------------------------------------------------------------

    def _login(self, ticket: str, trouble: str = "", status: int = 200) -> Response:
        facts = {"ticket": ticket, "trouble": trouble, "password": bool(self._door.password_mark())}
        return self._page("login.html", status, facts)

    def _too_open(self) -> Response:
        return self._said(
            403,
            "Operators log in over HTTPS, or from the machine that serves the run: through an SSH tunnel to its own "
            "address, or a proxy on it that says X-Forwarded-Proto: https. The command line has it all, too.",
        )

    def _said(self, status: int, sentence: str) -> Response:
        return self._page("said.html", status, {"sentence": sentence})

    def _page(self, name: str, status: int, facts: Mapping[str, Any]) -> Response:
        shown = {"view": self._board.view, "number": 0, "operators": True, **facts}
        return Response(template(name).render(shown), status, media_type="text/html", headers=DOOR_HEADERS)
