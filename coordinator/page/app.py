"""What is answered over HTTP: pages, their news, the same as JSON, metrics, health, and three files.

Decides routes, headers, and whom it answers. Always: only GET and HEAD, but for operators' forms (`operator.py`), where
the run has a door for them; only by an address or a name that is ours, so
that no other site can have a browser read it under a name of its own (DNS rebinding); nothing is loaded from elsewhere
(content security policy); a viewer that takes nothing for `STALL_S` is dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.page.board import Board, NothingYet, Viewer
from coordinator.page.operator import POSTED, OperatorPages
from coordinator.page.rendering import Sheet
from coordinator.page.view import RunView
from protocol.errors import ConfigError
from protocol.hosts import canonical_host, split_port

STALL_S = 10.0
MOST_WATCHERS = 2000
ALIVE_S = 60.0
"""A coordinator whose loop has not made a picture for so long hangs."""
PING_S = 20.0
"""So often a viewer without news is sent a comment: whoever has gone is found out."""

_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
    }.items()
]
_PARTS = {
    "run": "card",
    "headline": "headline",
    "round": "open_round",
    "rounds": "closed",
    "loss": "losses",
    "columns": "columns",
    "workers": "workers",
    "states": "worker_states",
    "bytes": "moved",
    "energy": "energy",
    "verdicts": "judged",
    "credit": "credit",
    "health": "health",
}
"""Under `/api/`: what each panel shows."""

_log = structlog.get_logger(__name__)

Abort = Callable[[Scope], None]
"""Cuts the connection of a request at once, whatever is still to be sent."""


def page_app(board: Board, *, names: Collection[str], abort: Abort, operators: OperatorPages | None = None) -> ASGIApp:
    """The application. `names`: hosts, besides addresses and localhost, under which it may be asked; `operators`: what
    it has for them."""

    def page(sheet: Sheet) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            return _html(board.page(sheet).document)

        return answer

    async def api(request: Request) -> Response:
        part = request.path_params.get("part")
        if part is None:
            return _plain(board.json(), "application/json")
        if part not in _PARTS:
            raise HTTPException(404, f"there is no /api/{part[:40]}; there are {', '.join(_PARTS)}, and /api for all")
        return _plain(board.json(_PARTS[part]), "application/json")

    async def metrics(_: Request) -> Response:
        return _plain(board.metrics(), "text/plain; version=0.0.4; charset=utf-8")

    async def live(_: Request) -> Response:
        return _told(*liveness(board.age_s()))

    async def ready(_: Request) -> Response:
        return _told(*readiness(board.view, board.age_s()))

    async def static(request: Request) -> Response:
        return _static(request)

    routes = [
        Route("/", page(Sheet.OVERVIEW)),
        Route("/workers", page(Sheet.WORKERS)),
        Route("/api", api),
        Route("/api/{part}", api),
        Route("/metrics", metrics),
        Route("/livez", live),
        Route("/readyz", ready),
        Route("/static/{name}", static),
        *(Route(f"/events/{sheet}", _Events(board, sheet, abort)) for sheet in Sheet),
        *(operators.routes() if operators is not None else ()),
    ]
    app = Starlette(routes=routes, exception_handlers={NothingYet: _nothing_yet, HTTPException: _refused})
    return _Guarded(app, names, POSTED if operators is not None else frozenset())


def liveness(age_s: float) -> tuple[int, str]:
    """Status and words: whether the coordinator's own loop goes round."""
    if age_s > ALIVE_S:
        return 503, f"the coordinator has not said anything for {age_s:.0f} s"
    return 200, "alive"


def readiness(view: RunView, age_s: float) -> tuple[int, str]:
    """Status and words: whether workers are given work and what they send is recorded."""
    status, words = liveness(age_s)
    trouble = view.health.stalled or view.health.paused
    return (503, trouble) if status == 200 and trouble else (status, words if status != 200 else "ready")


class _Events:
    """One viewer's stream of what changes: an ASGI application, since a stalled one must be cut off in mid-send."""

    def __init__(self, board: Board, sheet: Sheet, abort: Abort) -> None:
        self._board, self._sheet, self._abort = board, sheet, abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if self._board.watching >= MOST_WATCHERS:
            full = PlainTextResponse("too many viewers; the page itself can be loaded anew", 503, {"retry-after": "30"})
            await full(scope, receive, send)
            return
        watcher = self._board.watch(self._sheet, _number(request))
        gone = asyncio.create_task(_gone(receive))
        try:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
            await self._send(send, {"type": "http.response.body", "body": b"retry: 3000\n\n", "more_body": True})
            await self._go_on(watcher, gone, send)
        except TimeoutError:
            self._board.dropped += 1
            self._abort(scope)
        finally:
            gone.cancel()
            self._board.leave(watcher)

    async def _go_on(self, watcher: Viewer, gone: asyncio.Task[None], send: Send) -> None:
        while not gone.done() and not self._board.closed:
            news = asyncio.ensure_future(watcher.news.wait())
            await asyncio.wait({news, gone}, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
            body = b": still here\n\n"
            if news.done():
                watcher.news.clear()
                body = b"" if self._board.closed else self._board.news_for(watcher)
            news.cancel()
            if body and not gone.done():
                await self._send(send, {"type": "http.response.body", "body": body, "more_body": True})
        if not gone.done():
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _send(send: Send, message: Message) -> None:
        async with asyncio.timeout(STALL_S):
            await send(message)


class _Guarded:
    """Refuses what is not meant for this page, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, names: Collection[str], posted: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(names)
        self._posted = posted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(Request(scope))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in _HEADERS if pair[0] not in kept]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            await (self._app if refusal is None else refusal)(scope, receive, with_headers)
        except Exception as error:  # the viewer was answered: one line, not a page of stack, for the log
            _log.error("page_failed", path=scope["path"][:80], error=repr(error))

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD") and not (
            request.method == "POST" and request.scope["path"] in self._posted
        ):
            return PlainTextResponse("this page is only read: GET", 405, {"allow": "GET, HEAD"})
        host = request.headers.get("host", "")
        if is_own_host(host, self._names):
            return None
        return PlainTextResponse(
            f"asked as {host[:80]!r}, which is no name of this coordinator: `--http-name` makes it answer to one",
            421,
        )


def is_own_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header names this page: an address, localhost, or one of `names` (canonical)."""
    try:
        host = canonical_host(split_port(header)[0])
    except ConfigError:
        return False
    if host == "localhost" or host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _number(request: Request) -> int:
    """The rendering that the viewer has: as it was told last, or as its page says; 0 where neither makes sense."""
    text = request.headers.get("last-event-id") or request.query_params.get("since", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _html(document: bytes) -> Response:
    return Response(document, media_type="text/html", headers={"cache-control": "no-store"})


def _plain(body: bytes, kind: str) -> Response:
    return Response(body, headers={"content-type": kind, "cache-control": "no-store"})


def _told(status: int, words: str) -> Response:
    return PlainTextResponse(f"{words}\n", status, {"cache-control": "no-store"})


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404, "there is no such file")
    body, tag = _file(name)
    headers = {"content-type": f"{_STATIC[name]}; charset=utf-8", "cache-control": "no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers)


@cache
def _file(name: str) -> tuple[bytes, str]:
    body = (Path(__file__).parent / "static" / name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


async def _nothing_yet(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}; try again in a moment\n", 503, {"retry-after": "1"})


async def _refused(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "that went wrong"
    return PlainTextResponse(f"{detail}\n", status)
