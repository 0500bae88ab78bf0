"""Where the page listens, and to which names it answers: what `--http` and `--http-name` say. Touches nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from protocol.hosts import canonical_host, split_port

DEFAULT_HTTP_PORT = 7466
"""Next to the workers' port (coordinator/settings.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAddress:
    """One place."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_HTTP_PORT
    chosen: bool = False
    """Somebody named the port: where it is taken, that is an error. Otherwise a free one is taken instead."""
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None, names: Collection[str] = ()) -> PageAddress:
        """`HOST`, `HOST:PORT` or `:PORT`; None is the default. ConfigError where it is none of these."""
        own = tuple(canonical_host(name) for name in names)
        if text is None:
            return cls(names=own)
        if text.startswith(":"):
            text = f"127.0.0.1{text}"
        host, port = split_port(text)
        return cls(host=canonical_host(host), port=port or DEFAULT_HTTP_PORT, chosen=True, names=own)
