"""Other workers of the run whom this one has heard of from its coordinator, kept on disk: whom to ask where it went.

Decides who is remembered: those heard of last, up to `MOST_KEPT`, and of those only what this machine may connect to.
Always: nobody is believed anything; the file is written when somebody is new in it, and a damaged one is an empty one.
Touches the run's folder.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Protocol

from peering.limits import MAX_CERTIFICATE_BYTES
from peering.line import may_dial
from protocol.errors import ConfigError, StorageTrouble
from protocol.hosts import MAX_NAME_CHARACTERS

PEERS_FILE = "peers.json"
MOST_KEPT = 32


class SmallFiles(Protocol):
    """What a `RunHome` is here."""

    def keep(self, name: str, content: bytes) -> None:
        """Write a small file of this run, durably."""

    def kept(self, name: str) -> bytes | None:
        """What `keep` wrote; None where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquaintance:
    """Where another worker gives its blocks, and under which certificate (DER)."""

    host: str
    port: int
    certificate: bytes

    @property
    def is_sound(self) -> bool:
        """Whether its sizes are those of an honest one."""
        return (
            0 < len(self.host) <= MAX_NAME_CHARACTERS
            and 1 <= self.port <= 65_535
            and 0 < len(self.certificate) <= MAX_CERTIFICATE_BYTES
        )


class Acquaintances:
    """One run's, newest first."""

    def __init__(self, files: SmallFiles, near: str) -> None:
        """`near`: the host at which the coordinator was reached."""
        self._files, self._near = files, near
        self._known = _read(files)

    @property
    def known(self) -> tuple[Acquaintance, ...]:
        """Whom to ask, those heard of last first."""
        return self._known

    def met(self, found: list[Acquaintance]) -> None:
        """The coordinator named these."""
        sound = [one for one in found if one.is_sound and may_dial(one.host, self._near)]
        kept = tuple(dict.fromkeys((*sound, *self._known)))[:MOST_KEPT]
        is_new, self._known = not set(kept) <= set(self._known), kept
        if is_new:
            rows = [{"host": one.host, "port": one.port, "certificate": one.certificate.hex()} for one in kept]
            with contextlib.suppress(StorageTrouble):  # a full disk: they are met again
                self._files.keep(PEERS_FILE, json.dumps(rows).encode())


def _read(files: SmallFiles) -> tuple[Acquaintance, ...]:
    try:
        rows = json.loads(files.kept(PEERS_FILE) or b"[]")
        found = [
            Acquaintance(
                host=str(row["host"]), port=int(row["port"]), certificate=bytes.fromhex(str(row["certificate"]))
            )
            for row in rows[:MOST_KEPT]
        ]
    except (ConfigError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(one for one in found if one.is_sound)
