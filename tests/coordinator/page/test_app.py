"""Who is answered, with what, and how a coordinator's health is told."""

from __future__ import annotations

import json

import pytest
from starlette.types import ASGIApp

from coordinator.page.app import ALIVE_S, is_own_host, liveness, page_app, readiness
from coordinator.page.board import Board
from coordinator.page.rendering import Sheet
from coordinator.page.view import Headline, RunView, Tone
from tests.coordinator.page.asking import ask
from tests.coordinator.page.pictures import NOW_S, picture

PARTS = {
    "run": "card", "headline": "headline", "round": "open_round", "rounds": "closed", "loss": "losses",
    "columns": "columns", "workers": "workers", "states": "worker_states", "bytes": "moved", "verdicts": "judged",
    "energy": "energy", "credit": "credit", "health": "health",
}  # fmt: skip


@pytest.fixture
def board() -> Board:
    return Board(lambda: NOW_S + 1.0)


@pytest.fixture
def app(board: Board) -> ASGIApp:
    return page_app(board, names={"barn.example"}, abort=lambda _: None)


async def test_json_has_what_the_picture_has(app: ASGIApp, board: Board) -> None:
    view = picture()
    board.publish(view)
    assert RunView.model_validate_json((await ask(app, "/api")).body) == view
    whole = json.loads(view.model_dump_json())
    for part, name in PARTS.items():
        answer = await ask(app, f"/api/{part}")
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.body) == whole[name]
    wrong = await ask(app, "/api/secrets")
    assert wrong.status == 404
    assert b"/api/secrets" in wrong.body
    assert b"verdicts" in wrong.body, "it says what there is"


async def test_before_the_first_picture_it_says_so(app: ASGIApp) -> None:
    for path in ("/", "/workers", "/api", "/metrics", "/readyz"):
        answer = await ask(app, path)
        assert answer.status == 503, path
        assert b"try again" in answer.body
    assert (await ask(app, "/livez")).status == 503


@pytest.mark.parametrize("path", ["/", "/workers", "/api", "/metrics", "/static/page.js", "/nowhere", "/livez"])
async def test_each_answer_keeps_a_browser_in(app: ASGIApp, board: Board, path: str) -> None:
    board.publish(picture())
    headers = (await ask(app, path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_done_here(app: ASGIApp, board: Board, method: str) -> None:
    board.publish(picture())
    assert (await ask(app, "/", method=method)).status == 405


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:7466", True),
        ("localhost", True),
        ("[::1]:7466", True),
        ("192.0.2.7", True),
        ("barn.example", True),
        ("BARN.example:7466", True),
        ("evil.example", False),
        ("barn.example.evil.example", False),
        ("", False),
        ("a b", False),
    ],
)
async def test_no_other_name_leads_here(app: ASGIApp, board: Board, host: str, *, answered: bool) -> None:
    board.publish(picture())
    answer = await ask(app, "/api", host=host)
    assert answer.status == (200 if answered else 421)
    assert is_own_host(host, {"barn.example"}) is answered
    if not answered:
        assert b"--http-name" in answer.body


async def test_files_are_kept_by_browsers_until_they_change(app: ASGIApp) -> None:
    first = await ask(app, "/static/page.css")
    assert first.status == 200
    assert first.headers["content-type"].startswith("text/css")
    assert (await ask(app, "/static/page.css", if_none_match=first.headers["etag"])).status == 304
    for path in ("/static/../view.py", "/static/view.py", "/static/"):
        assert (await ask(app, path)).status == 404


def test_health_in_words() -> None:
    view = picture()
    assert readiness(view, 1.0) == (200, "ready")
    stalled = view.model_copy(update={"health": view.health.model_copy(update={"stalled": "cannot record"})})
    assert readiness(stalled, 1.0) == (503, "cannot record")
    assert liveness(1.0) == (200, "alive")
    assert liveness(ALIVE_S + 1.0)[0] == 503
    assert readiness(view, ALIVE_S + 1.0)[0] == 503


def test_one_rendering_serves_everybody(board: Board) -> None:
    board.publish(picture())
    assert board.page(Sheet.OVERVIEW) is board.page(Sheet.OVERVIEW)
    assert board.metrics() is board.metrics()
    assert board.json("workers") is board.json("workers")


def test_a_viewer_is_sent_what_it_lacks(board: Board) -> None:
    board.publish(picture())
    has = board.page(Sheet.OVERVIEW).number
    current, lost = board.watch(Sheet.OVERVIEW, has), board.watch(Sheet.OVERVIEW, 0)
    assert not current.news.is_set(), "it has everything"
    assert lost.news.is_set(), "nobody knows what it has"
    assert board.news_for(current) == b""
    board.publish(picture(headline=Headline(tone=Tone.WAITING, text="waits")))
    told, everything = _panels(board.news_for(current)), _panels(board.news_for(lost))
    assert list(told) == ["headline"]
    assert len(everything) == 11
    assert board.news_for(current) == b"", "told once"
    board.leave(current)
    board.leave(lost)
    assert board.watching == 0


def _panels(event: bytes) -> dict[str, str]:
    kind, number, data, *_ = event.decode().split("\n")
    assert kind == "event: panels"
    assert number.startswith("id: ")
    panels: dict[str, str] = json.loads(data.removeprefix("data: "))
    return panels
