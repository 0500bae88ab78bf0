"""The local socket: who is answered, where it lies, and what a hostile or a dead other side does to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import local_place, local_socket
from protocol.errors import BrokeDown, ConfigError, MalformedMessage, RateLimited, Refused, Unauthenticated, Unavailable
from protocol.local_socket import Caller, LocalServer, NobodyListens, ask, serve, stream


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "control" / "run.sock"


async def answer(request: dict[str, Any], caller: Caller) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
    match request.get("verb"):
        case "count":
            return counted(int(request["to"]))
        case "refuse":
            raise Refused("no")
        case "set":
            raise ConfigError("not like that")
        case "break":
            raise ZeroDivisionError
        case _:
            return {"asked": request, "uid": caller.uid, "by": caller.name}


async def counted(to: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(to):
        yield {"number": number}
    if not to:
        await asyncio.Event().wait()


@pytest.fixture
async def server(path: Path) -> AsyncIterator[LocalServer]:
    served = await serve(path, answer)
    yield served
    await served.close()


async def test_a_request_is_answered_and_the_system_says_who_asked(server: LocalServer, path: Path) -> None:
    told = await ask(path, {"verb": "hello", "of": ["é", 1.5, None]})
    assert told["asked"] == {"verb": "hello", "of": ["é", 1.5, None]}
    assert told["uid"] == os.getuid()
    assert told["by"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_answers_come_as_they_are_made_and_errors_as_what_they_are(server: LocalServer, path: Path) -> None:
    assert [one["number"] async for one in stream(path, {"verb": "count", "to": 3})] == [0, 1, 2]
    with pytest.raises(Refused, match=r"^no$"):
        await ask(path, {"verb": "refuse"})
    with pytest.raises(ConfigError, match="not like that"):
        await ask(path, {"verb": "set"})


async def test_a_fault_over_there_is_no_sentence_of_pythons(server: LocalServer, path: Path) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    with pytest.raises(BrokeDown, match="its log says why"):
        await ask(path, {"verb": "break"})
    assert isinstance(seen[0]["exception"], ZeroDivisionError)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"{}\n", "a request is"),
        (b'{"request": 3}\n', "a request is"),
        (b"[" * 60_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"x" * (local_socket.MAX_REQUEST_BYTES + 2), "at most"),
    ],
)
async def test_what_is_no_request_is_refused_in_words(server: LocalServer, path: Path, line: bytes, says: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    told = json.loads(await reader.readline())
    assert told["kind"] == "MalformedMessage"
    assert says in told["error"]
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_another_user_is_not_answered(server: LocalServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = iter([os.getuid(), os.getuid() + 1])  # of the server, as the client sees it; then the other way round
    monkeypatch.setattr(local_socket, "peer_uid", lambda _: next(uids))
    with pytest.raises(Unauthenticated, match="and root; you are"):
        await ask(path, {"verb": "hello"})
    monkeypatch.setattr(local_socket, "peer_uid", lambda _: 4321)
    monkeypatch.setattr("os.getuid", lambda: 1234)
    with pytest.raises(Unauthenticated, match=r"another user, user 4321, answers .*: nothing was said"):
        await ask(path, {"verb": "hello"})


async def test_only_so_many_are_answered_at_once(server: LocalServer, path: Path) -> None:
    held = [await asyncio.open_unix_connection(str(path)) for _ in range(local_socket.MAX_CONNECTIONS)]
    with pytest.raises(RateLimited, match="try again"):
        await ask(path, {"verb": "hello"})
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    while server._tasks:
        await asyncio.sleep(0)
    assert await ask(path, {"verb": "hello"})


async def test_whoever_goes_ends_its_stream_and_a_close_ends_all(server: LocalServer, path: Path) -> None:
    endless = stream(path, {"verb": "count", "to": 0})
    waiting = asyncio.ensure_future(anext(endless))
    while not server._tasks:
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    while server._tasks:
        await asyncio.sleep(0)
    second = asyncio.ensure_future(ask(path, {"verb": "count", "to": 0}))
    while not server._tasks:
        await asyncio.sleep(0)
    await server.close()
    with pytest.raises(Unavailable, match="ended in the middle"):
        await second
    assert not path.exists()
    with pytest.raises(NobodyListens):
        await ask(path, {})


async def test_a_silent_server_is_given_up_on(path: Path) -> None:
    async def silent(_: dict[str, Any], __: Caller) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    served = await serve(path, silent)
    with pytest.raises(Unavailable, match="within"):
        await ask(path, {}, timeout_s=0.01)
    await served.close()


async def test_what_a_killed_server_left_is_cleared_away_and_a_living_one_is_not(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with pytest.raises(NobodyListens):
        await ask(path, {})
    served = await serve(path, answer)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="another process answers"):
        await serve(path, answer)
    assert await ask(path, {})
    await served.close()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A test's own folder may be too deep for a socket by itself."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("why", ["too long", "refused"])
async def test_where_no_socket_can_lie_the_runtime_directory_has_it(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    path = tmp_path / ("r" * 120 if why == "too long" else "run") / "control.sock"
    genuine = local_place._bound_at

    def refusing(place: Path) -> socket.socket:
        if place == path:
            raise PermissionError("this file system has no sockets")
        return genuine(place)

    monkeypatch.setattr(local_place, "_bound_at", refusing)
    served = await serve(path, answer)
    assert await ask(path, {"verb": "hello"})
    pointer = local_place.pointer_of(path)
    place = Path(json.loads(pointer.read_text())["socket"])
    assert place.parent == short_folder / "barnraise"
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    await served.close()
    assert not place.exists()
    assert not pointer.exists()
    with pytest.raises(NobodyListens):
        await ask(path, {})


async def test_a_runtime_folder_that_somebody_else_laid_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"barnraise-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="is not a folder of your own"):
        await serve(tmp_path / ("r" * 120) / "control.sock", answer)


async def test_without_unix_sockets_a_token_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(local_socket, "HAS_UNIX_SOCKETS", False)
        served = await serve(path, answer)
    assert (await ask(path, {"verb": "hello"}))["uid"] is None
    pointer = local_place.pointer_of(path)
    assert stat.S_IMODE(pointer.stat().st_mode) == 0o600
    for token in ("", "é", None, 3):
        pointed = json.loads(pointer.read_text())
        pointer.write_text(json.dumps({**pointed, "token": token}))
        with pytest.raises(Unauthenticated, match="token"):
            await ask(path, {"verb": "hello"})
    await served.close()


async def test_an_answer_of_anything_else_is_malformed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)

    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"last": true}\n')
        writer.close()

    served = await asyncio.start_unix_server(other, str(path))
    with pytest.raises(MalformedMessage, match="another version"):
        await ask(path, {})
    served.close()
