"""A person's commands to a process of the same machine: one JSON request a line, one JSON answer or a stream of them.

Decides where the socket lies and who may speak. It lies in a folder of its own, 0700, at the path that both sides know;
where that is too long for a socket, or its file system has none, in the runtime directory, and a pointer file says
where; where the system has no Unix sockets (Windows), on loopback, and the pointer file has the port and a token.
Holds always: only the same user and root are answered, which the kernel tells of a socket and the token of loopback;
a request is hostile until it is parsed: bounded in size and time, one a connection; whoever does not take an answer is
dropped. Touches that folder and the runtime directory. What requests mean is decided by whoever serves.

On the wire: `{"request": {...}}`, answered by lines `{"answer": {...}}`, the last of which has `"last": true`, or is
`{"error": "a sentence", "kind": "ConfigError", "last": true}`. Loopback's request has a `"token"` besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.errors import (
    BarnraiseError,
    BrokeDown,
    ConfigError,
    IllegalEvent,
    MalformedMessage,
    RateLimited,
    Refused,
    StorageTrouble,
    Unauthenticated,
    Unavailable,
)
from protocol.local_place import (
    HAS_UNIX_SOCKETS,
    MOST_PATH_BYTES,
    bound_socket,
    own_folder,
    peer_uid,
    pointed_at,
    pointer_of,
    user_name,
)
from protocol.private_files import write_private

MAX_REQUEST_BYTES = 64 * 1024
"""A ban with its reason takes 300 bytes."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of one line: a thousand join links take 200 KiB, a page of a status up to 512."""
MAX_CONNECTIONS = 32
"""At once: a person has a few; a script in a loop is told to wait."""
REQUEST_S: Final = 10.0
"""Until the request is here; it takes milliseconds."""
TAKEN_S: Final = 10.0
"""Until an answer's line is taken."""
ASK_S: Final = 60.0
"""Until the answer to a single request is here: a change waits for the disk."""
Json = dict[str, Any]
Answer = Json | AsyncIterator[Json]

_KINDS = {
    kind.__name__: kind
    for kind in (
        BrokeDown,
        ConfigError,
        IllegalEvent,
        MalformedMessage,
        RateLimited,
        Refused,
        StorageTrouble,
        Unauthenticated,
        Unavailable,
    )
}
"""Errors that arrive as what they were; any other is a refusal."""


class NobodyListens(Unavailable):
    """No process serves this path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as the system says."""

    uid: int | None
    """None on loopback, which tells nobody's number."""
    name: str
    """The user's name, for whoever reads later who did what."""


Handler = Callable[[Json, Caller], Awaitable[Answer]]
"""Answers one request: once, or with as many answers as there are. A BarnraiseError is told to whoever asked."""


class LocalServer:
    """What `serve` gives: a socket that is listened on until `close`."""

    def __init__(self, handler: Handler, files: tuple[Path, ...], token: str) -> None:
        self._handler = handler
        self._files = files
        self._token = token
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, bound: socket.socket) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_server(self._connected, sock=bound, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """End what is under way, and leave nothing behind."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for file in self._files:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # whoever has gone, or takes nothing, is owed nothing more; close() cancels
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._exchange(reader, writer)
        finally:
            self._tasks.discard(task)
            await _hang_up(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            caller = self._admitted(writer)
            async with asyncio.timeout(REQUEST_S):
                request = await self._request(reader)
            answer = await self._handler(request, caller)
            if isinstance(answer, dict):
                await _say(writer, {"answer": answer, "last": True})
            else:
                await self._stream(answer, reader, writer)
                await _say(writer, {"last": True})
        except BarnraiseError as error:
            kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS), "Refused")
            await _say(writer, {"error": str(error), "kind": kind, "last": True})
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            context = {"message": "a local request failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            await _say(writer, {"error": "this failed over there; its log says why", "kind": "BrokeDown", "last": True})

    def _admitted(self, writer: asyncio.StreamWriter) -> Caller:
        if len(self._tasks) > MAX_CONNECTIONS:
            raise RateLimited(f"{MAX_CONNECTIONS} commands are being answered at once already: try again in a moment")
        if self._token:
            return Caller(uid=None, name="the operator")
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid not in (os.getuid(), 0):
            raise Unauthenticated(f"this is for user {user_name(os.getuid())} and root; you are {user_name(uid)}")
        return Caller(uid=uid, name=user_name(uid))

    async def _request(self, reader: asyncio.StreamReader) -> Json:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise MalformedMessage(f"a request has at most {MAX_REQUEST_BYTES} bytes") from None
        except asyncio.IncompleteReadError as error:
            raise MalformedMessage("a request is one line") from error
        envelope = _object(line, "a request")
        request, token = envelope.get("request"), envelope.get("token", "")
        if self._token and not (isinstance(token, str) and hmac.compare_digest(token.encode(), self._token.encode())):
            raise Unauthenticated("the token is not this run's: is its pointer file yours to read?")
        if not isinstance(request, dict):
            raise MalformedMessage('a request is {"request": {...}}')
        return request

    async def _stream(
        self, answers: AsyncIterator[Json], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """All answers, or as many as are wanted: whoever asked has gone when its side of the connection ends."""
        gone = asyncio.ensure_future(reader.read(1))
        coming: asyncio.Future[Json] | None = None
        try:
            while not gone.done():
                coming = asyncio.ensure_future(anext(answers))
                await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                await _say(writer, {"answer": coming.result()})
        except StopAsyncIteration:
            pass
        finally:
            for task in (gone, coming):
                if task is not None and not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            if hasattr(answers, "aclose"):
                await answers.aclose()


async def serve(path: Path, handler: Handler) -> LocalServer:
    """Answer requests at `path`, for whoever may serve it: its former socket, if any, is nobody's any more.

    ConfigError where somebody answers there, or neither the folder nor the runtime directory takes a socket.
    """
    own_folder(path.parent)
    pointer = pointer_of(path)
    if await _somebody_answers(path):
        raise ConfigError(f"another process answers at {path}: end that one first")
    for stale in (path, pointer):
        stale.unlink(missing_ok=True)
    if not HAS_UNIX_SOCKETS:
        token = secrets.token_hex(32)
        bound = socket.create_server(("127.0.0.1", 0))
        write_private(pointer, json.dumps({"port": bound.getsockname()[1], "token": token}).encode())
        server = LocalServer(handler, (pointer,), token)
    else:
        bound, place = bound_socket(path)
        if place != path:
            write_private(pointer, json.dumps({"socket": str(place)}).encode())
        server = LocalServer(handler, (place,) if place == path else (place, pointer), "")
    await server.listen(bound)
    return server


async def ask(path: Path, request: Json, *, timeout_s: float = ASK_S) -> Json:
    """The one answer to `request` of whoever serves `path`; the errors that it gave, as they were there.

    NobodyListens where no process does; Unavailable where one does and says nothing in time.
    """
    try:
        async with asyncio.timeout(timeout_s), contextlib.aclosing(stream(path, request)) as answers:
            async for answer in answers:
                return answer
    except TimeoutError:
        raise Unavailable(f"no answer at {path} within {timeout_s:g} s") from None
    raise MalformedMessage(f"no answer at {path}: does a process of another version serve it?")


async def stream(path: Path, request: Json) -> AsyncGenerator[Json, None]:
    """Every answer to `request`, as they come."""
    reader, writer, token = await _connect(path)
    try:
        envelope = {"request": request, **({"token": token} if token else {})}
        await _say(writer, envelope)
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                raise Unavailable(f"whoever serves {path} ended in the middle of this: look, then try again") from None
            except asyncio.LimitOverrunError:
                raise MalformedMessage(f"an answer at {path} is longer than {MAX_ANSWER_BYTES} bytes") from None
            answer = _object(line, f"the answer at {path}")
            if "error" in answer:
                raise _KINDS.get(str(answer.get("kind")), Refused)(str(answer["error"]))
            if isinstance(answer.get("answer"), dict):
                yield answer["answer"]
            if answer.get("last"):
                return
    finally:
        await _hang_up(writer)


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """The other side, and the token that it wants."""
    try:
        place = pointed_at(path)
        if "port" in place:
            loopback = await asyncio.open_connection("127.0.0.1", int(place["port"]), limit=MAX_ANSWER_BYTES)
            return *loopback, str(place["token"])
        target = str(place.get("socket", path))
        if len(os.fsencode(target)) > MOST_PATH_BYTES:
            raise FileNotFoundError(target)
        reader, writer = await asyncio.open_unix_connection(target, limit=MAX_ANSWER_BYTES)
    except PermissionError:
        raise ConfigError(
            f"{path} is for the user who serves it, and for root: give this command as one of them"
        ) from None
    except OSError as error:
        raise NobodyListens(f"nobody answers at {path}") from error
    uid = peer_uid(writer.get_extra_info("socket"))
    if os.getuid() not in (uid, 0) and uid != 0:
        await _hang_up(writer)
        raise Unauthenticated(f"another user, {user_name(uid)}, answers at {target}: nothing was said")
    return reader, writer, ""


async def _somebody_answers(path: Path) -> bool:
    try:
        _, writer, _ = await _connect(path)
    except (NobodyListens, ConfigError, Unauthenticated):
        return False
    await _hang_up(writer)
    return True


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _say(writer: asyncio.StreamWriter, message: Json) -> None:
    writer.write(json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n")
    async with asyncio.timeout(TAKEN_S):  # not wait_for, which in Python 3.11 may swallow a cancellation
        await writer.drain()


def _object(line: bytes, what: str) -> Json:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedMessage(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise MalformedMessage(f"{what} is not a JSON object")
    return found
