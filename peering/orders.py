"""What whoever starts the sidecar tells it, once, on its standard input. Decides nothing, and touches nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError
from protocol.ids import Digest
from protocol.joinlink import Bootstrap

MAX_ORDERS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOrders:
    """How to run."""

    folder: Path
    """For sockets: private to this user, and short."""
    fingerprint: Digest
    """Of the run whose record this node takes part in keeping; it keeps no other."""
    through: tuple[Bootstrap, ...]
    host: str
    """To listen on; empty: nowhere, and others' records are not kept here."""
    port: int
    announce: tuple[str, ...]
    """`HOST:PORT` by which others reach it, where that is another."""
    identity: Path | None
    """Where the key lies that its peer id follows from, so that links may name it; None: another each time."""
    relay: bool
    """Pass on streams of others who cannot be reached."""
    map_port: bool
    """Ask the router for a port."""

    def to_json(self) -> bytes:
        """As it is told."""
        return json.dumps(
            {
                "folder": str(self.folder),
                "fingerprint": self.fingerprint,
                "through": list(map(str, self.through)),
                "host": self.host,
                "port": self.port,
                "announce": list(self.announce),
                "identity": None if self.identity is None else str(self.identity),
                "relay": self.relay,
                "map_port": self.map_port,
            }
        ).encode()

    @classmethod
    def from_json(cls, line: bytes) -> SidecarOrders:
        """What `to_json` gave; ConfigError where it is something else."""
        try:
            said: dict[str, Any] = json.loads(line)
            identity = said["identity"]
            return cls(
                folder=Path(said["folder"]),
                fingerprint=Digest(str(said["fingerprint"])),
                through=tuple(map(Bootstrap.parse, said["through"])),
                host=str(said["host"]),
                port=int(said["port"]),
                announce=tuple(map(str, said["announce"])),
                identity=None if identity is None else Path(identity),
                relay=bool(said["relay"]),
                map_port=bool(said["map_port"]),
            )
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError("the sidecar was told nothing that it understands") from error
