"""The page's HTTP server: a thread and an event loop of its own.

Decides how it listens and ends. Always: nothing here touches the engine or the coordinator's loop; pictures come in
through `publish`, from any thread; a connection that does not say within `OPENING_S` what it wants is cut, and there
are never more of them than leave files enough for workers. Touches one listening socket, and how many files this
process may open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from typing import ClassVar

import structlog
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.page.address import PageAddress
from coordinator.page.app import page_app
from coordinator.page.board import Board
from coordinator.page.operator import OperatorDoor, OperatorPages
from coordinator.page.view import RunView
from protocol.errors import ConfigError
from protocol.hosts import WILDCARDS, address_text

OPENING_S = 10.0
MOST_CONNECTIONS = 4000
SHARE_OF_FILES = 4
"""The page takes at most one in so many of the files that the process may have open: the rest is for workers."""
BACKLOG = 512
_STOP_S = 3.0

_log = structlog.get_logger(__name__)

TURN_S = 0.0005
"""How long one thread may keep the interpreter while another wants it: Python's own 5 ms, several times in each of a
worker's calls, would be felt there whenever a thousand viewers are told of a change."""


class PageServer:
    """One run's page. `start` once, `stop` once; `publish` in between, from any thread."""

    def __init__(self, address: PageAddress, door: OperatorDoor | None = None) -> None:
        """`door`: what it has for operators; None: it is only read."""
        self._address, self._door = address, door
        self._loop: asyncio.AbstractEventLoop | None = None
        self._board: Board | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    def start(self) -> str:
        """Listen, and answer with the page's address. ConfigError where that cannot be."""
        listening = _listen(self._address)
        host, port = listening.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - told apart, not bound
        self.url = f"http://{address_text(shown, port)}/"
        begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening, begun), name="page", daemon=True)
        sys.setswitchinterval(min(sys.getswitchinterval(), TURN_S))
        self._thread.start()
        begun.wait(10.0)
        return self.url

    def publish(self, view: RunView) -> None:
        """Show `view` from now on."""
        loop, board = self._loop, self._board
        if loop is not None and board is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(board.publish, view)

    def stop(self) -> None:
        """Let all viewers go and end the thread; blocks for `_STOP_S` at most."""
        loop, board, server, thread = self._loop, self._board, self._server, self._thread
        if thread is None:
            return
        if loop is not None and board is not None and server is not None:
            server.should_exit = True
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(board.close)
        thread.join(_STOP_S)

    def _run(self, listening: socket.socket, begun: threading.Event) -> None:
        try:
            asyncio.run(self._serve(listening, begun))
        except Exception as error:
            _log.error("page_ended", error=repr(error))
        finally:
            begun.set()
            listening.close()

    async def _serve(self, listening: socket.socket, begun: threading.Event) -> None:
        door = self._door
        self._loop, self._board = asyncio.get_running_loop(), Board(time.time, operators=door is not None)
        names = {*self._address.names, *({self._address.host} - set(WILDCARDS))}
        config = uvicorn.Config(
            page_app(
                self._board,
                names=names,
                abort=_abort,
                operators=None if door is None else OperatorPages(self._board, door),
            ),
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level=logging.ERROR,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        _OPEN.clear()
        _Connection.room = _room()
        telling = asyncio.create_task(self._board.tell_for_ever())
        begun.set()
        await self._server.serve(sockets=[listening])
        telling.cancel()


class _Connection(H11Protocol):
    """A connection that is cut where it does not ask for anything, and that a stalled answer can cut."""

    room: ClassVar[int] = MOST_CONNECTIONS
    """How many there may be at a time."""
    _opening: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(_OPEN) >= self.room:
            transport.abort()
            return
        _OPEN[self.client] = self
        self._opening = self.loop.call_later(OPENING_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if _OPEN.get(self.client) is self:
            del _OPEN[self.client]
        super().connection_lost(exc)

    def _give_up(self) -> None:
        begun: object = self.cycle  # which uvicorn says is always there; it is None until a request's head is
        if begun is None:
            self.transport.abort()


def _room() -> int:
    """How many connections the page may have, once the process may open as many files as it is allowed to ask for."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, soft // SHARE_OF_FILES)


_OPEN: dict[tuple[str, int] | None, _Connection] = {}
"""By the other side's address: of the page's one thread."""


def _abort(scope: Scope) -> None:
    connection = _OPEN.get(tuple(scope["client"]) if scope.get("client") else None)
    if connection is not None:
        connection.transport.abort()


def _listen(address: PageAddress) -> socket.socket:
    """A listening socket; where the default port is taken, on a free one."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    for port in (address.port,) if address.chosen else (address.port, 0):
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address.host, port))
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            trouble = error
        else:
            return listening
    raise ConfigError(
        f"the page cannot listen on {address_text(address.host, address.port)} ({trouble.strerror}): end the program "
        "that has it, name another with --http HOST:PORT, or leave the page out with --no-http"
    )
