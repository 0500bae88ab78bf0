"""What of a run makes it found again elsewhere: the number of its latest record, workers that shared, nodes it knew.

Decides which addresses a record names, and its sequence: calendar seconds, and always more than the last, so that a
run that goes on from an older backup is not taken for older than it is. Always: the files are small, and of use to
nobody but the run; without them it is found as well, by fewer ways. Touches `record.json`, `sharers.json` and
`peers.json` in the run's folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coordinator.settings import RunSettings
from peering.limits import MAX_CERTIFICATE_BYTES
from peering.record import MOST_ADDRESSES
from peering.tracker import Shared
from protocol.errors import ConfigError, StorageTrouble
from protocol.hosts import address_text
from protocol.ids import Digest, digest_of
from protocol.joinlink import Bootstrap
from protocol.private_files import write_private

RECORD_FILE = "record.json"
SHARERS_FILE = "sharers.json"
PEERS_FILE = "peers.json"
MOST_SHARERS = 64
MOST_PEERS = 16
"""One that is still there is enough to enter the network; half of a swarm may have gone."""


@dataclass(frozen=True, slots=True)
class FoundAgain:
    """A run folder's files."""

    root: Path

    def next_sequence(self, wall_s: float) -> int:
        """The number of the next record; it is on disk before it is used."""
        path = self.root / RECORD_FILE
        try:
            last = int(json.loads(path.read_bytes())["sequence"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            last = 0
        sequence = max(last + 1, int(wall_s))
        write_private(path, json.dumps({"sequence": sequence}).encode())
        return sequence

    def sharers(self) -> tuple[Shared, ...]:
        """Who shared when this run was served last, as far as it was written down."""
        try:
            rows = json.loads((self.root / SHARERS_FILE).read_bytes())
            found = [_shared(row) for row in rows[:MOST_SHARERS]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return ()
        return tuple(one for one in found if 1 <= one.port <= 65_535)

    def keep_sharers(self, sharers: Iterable[Shared]) -> None:
        """Write down who shares at present."""
        kept = list(sharers)[:MOST_SHARERS]
        rows = [{"host": one.host, "port": one.port, "certificate": one.certificate.hex()} for one in kept]
        with contextlib.suppress(StorageTrouble):
            write_private(self.root / SHARERS_FILE, json.dumps(rows).encode())

    def peers(self) -> tuple[Bootstrap, ...]:
        """Nodes of the peer-to-peer network that this run's knew last."""
        try:
            rows = json.loads((self.root / PEERS_FILE).read_bytes())
            return tuple(Bootstrap.parse(str(row)) for row in rows[:MOST_PEERS])
        except (OSError, ValueError, LookupError, TypeError, RecursionError, ConfigError):
            return ()

    def keep_peers(self, met: Iterable[Bootstrap]) -> None:
        """Write down which nodes are known at present, before those that were; where none is, what was stays."""
        before, known = self.peers(), tuple(met)
        kept = tuple(dict.fromkeys((*known, *before)))[:MOST_PEERS]
        if known and set(kept) != set(before):
            with contextlib.suppress(StorageTrouble):
                write_private(self.root / PEERS_FILE, json.dumps(list(map(str, kept))).encode())


def addresses_of(settings: RunSettings, listening_port: int) -> tuple[str, ...]:
    """Where workers reach this run: all that is advertised, the one of the join links first."""
    return tuple(address_text(*place) for place in settings.join_addresses(listening_port)[:MOST_ADDRESSES])


def _shared(row: dict[str, object]) -> Shared:
    certificate = bytes.fromhex(str(row["certificate"]))[:MAX_CERTIFICATE_BYTES]
    return Shared(
        host=str(row["host"]), port=int(str(row["port"])), certificate=certificate, name=Digest(digest_of(certificate))
    )
