"""The page's thread: it listens where it was told, tells news as they come, drops who takes none, and ends."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from coordinator.page import app as app_module
from coordinator.page.address import DEFAULT_HTTP_PORT, PageAddress
from coordinator.page.server import PageServer
from coordinator.page.view import Headline, Tone
from protocol.errors import ConfigError
from tests.coordinator.page.pictures import picture


@pytest.fixture
def page() -> Iterator[PageServer]:
    server = PageServer(PageAddress(port=free_port(), chosen=True))
    server.start()
    server.publish(picture())
    yield server
    server.stop()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def read(url: str) -> bytes:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            error.close()
    raise AssertionError("never ready")


def events(page: PageServer, path: str = "events/overview?since=0") -> socket.socket:
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    line = socket.create_connection((host, int(port)), timeout=10)
    line.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return line


def until(line: socket.socket, word: bytes) -> bytes:
    got = b""
    while word not in got:
        piece = line.recv(1 << 16)
        assert piece, got[-300:]
        got += piece
    return got


def test_pages_metrics_and_news(page: PageServer) -> None:
    assert b"Round 42 of 400" in read(page.url)
    assert b"barnraise_round 42.0" in read(f"{page.url}metrics")
    with events(page) as line:
        until(line, b'"headline"')
        page.publish(picture(headline=Headline(tone=Tone.WAITING, text="Something else")))
        assert b"Something else" in until(line, b"Something else")


def test_it_ends_soon_though_somebody_watches(page: PageServer) -> None:
    with events(page) as line:
        until(line, b'"headline"')
        page.stop()
        assert not [one for one in threading.enumerate() if one.name == "page" and one.is_alive()]


def test_a_viewer_that_takes_nothing_is_dropped(page: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "STALL_S", 0.2)
    stalled = events(page)
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deadline_s, number = time.monotonic() + 20.0, 0
    while b"barnraise_page_viewers_dropped_total 1.0" not in read(f"{page.url}metrics"):
        number += 1  # large news, until what lies between the two is full
        page.publish(picture(headline=Headline(tone=Tone.WAITING, text=f"{number} " + "x" * 400_000)))
        assert time.monotonic() < deadline_s, "never dropped"
    assert b"barnraise_page_viewers 0.0" in read(f"{page.url}metrics")
    stalled.close()


def test_where_it_listens() -> None:
    assert PageAddress.parse(None) == PageAddress(host="127.0.0.1", port=DEFAULT_HTTP_PORT, chosen=False)
    assert PageAddress.parse(":7000").port == 7000
    assert PageAddress.parse("[::1]:7000").host == "::1"
    assert PageAddress.parse("0.0.0.0", ["Barn.Example"]) == PageAddress(
        host="0.0.0.0", port=DEFAULT_HTTP_PORT, chosen=True, names=("barn.example",)
    )
    with pytest.raises(ConfigError):
        PageAddress.parse("127.0.0.1:http")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--no-http"):
            PageServer(PageAddress(port=port, chosen=True)).start()
        other = PageServer(PageAddress(port=port))
        assert not other.start().endswith(f":{port}/"), "nobody asked for this very port: a free one will do"
        other.stop()
