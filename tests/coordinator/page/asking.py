"""Asks an ASGI application one question, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: ASGIApp,
    path: str,
    *,
    method: str = "GET",
    host: str = "127.0.0.1:7466",
    body: bytes = b"",
    client: str = "127.0.0.1",
    **headers: str,
) -> Answered:
    """The whole answer. `client`: the address that the question comes from."""
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "scheme": "http", "client": (client, 1), "server": ("127.0.0.1", 7466),
        "headers": [(b"host", host.encode()),
                    *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answered(start["status"], found, b"".join(one.get("body", b"") for one in sent[1:]))
