"""What this machine gives to other workers, where its volunteer said `--share`: the listener, and what is told of it.

Decides what is told to the coordinator: blocks whose digest this process has checked, each once, and all of them again
where the coordinator has forgotten; nothing while the volunteer's rules let nothing out. Always: nothing
listens before a session is open, nor where nobody said `--share`. Touches the network and, reading, the block cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from peering.certificate import PeerCertificate, new_certificate
from peering.keeping import RecordKeeper
from peering.serving import PeerServer, Uplink
from protocol.errors import RateLimited
from protocol.ids import Digest
from protocol.v1 import barnraise_pb2 as pb
from worker.home import Enrolment

EVERYWHERE = "0.0.0.0"  # noqa: S104 - others have to reach it
MOST_TOLD_AT_ONCE = 4096


class Checked(Protocol):
    """What a `BlockCache` is to others."""

    @property
    def checked(self) -> frozenset[Digest]:
        """What may be given."""

    def path(self, digest: Digest) -> Path:
        """Where it lies."""


class Sharing:
    """One process's."""

    def __init__(
        self,
        blocks: Checked,
        bytes_per_s: int,
        *,
        host: str = EVERYWHERE,
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        records: RecordKeeper | None = None,
        certificate: PeerCertificate | None = None,
        uplink: Uplink | None = None,
    ) -> None:
        """`port` 0: any that is free. `records`: what whoever looks for the run is told. `certificate`: a new one.
        `uplink`: the volunteer's rules about the line; None: there are none."""
        self._blocks, self._bytes_per_s, self._clock = blocks, bytes_per_s, clock
        self._host, self._port, self._records, self._uplink = host, port, records, uplink
        self._certificate = certificate or new_certificate()
        self._server: PeerServer | None = None
        self._told: set[Digest] | None = None
        """By the coordinator's present process; None: nothing."""
        self._telling: set[Digest] = set()
        self._book = b""
        self._behind_s = 0.0
        """What the coordinator's clock is ahead of this one's."""
        self.port = 0
        """Where it listens, once it does."""

    @property
    def sent_bytes(self) -> int:
        """To other workers, since the start."""
        return 0 if self._server is None else self._server.sent_bytes

    async def start(self, enrolment: Enrolment) -> bool:
        """Listen; whether that is new. ConfigError where the port cannot be had."""
        self._told = None
        if self._server is not None:
            return False
        server = self._server_for(enrolment)
        self.port = await server.start(self._host, self._port)
        self._server = server
        return True

    def _server_for(self, enrolment: Enrolment) -> PeerServer:
        return PeerServer(
            self,
            self._certificate.leaf,
            self._certificate.name,
            run_id=enrolment.run_id,
            ca_pem=enrolment.ca_pem.encode(),
            now_s=lambda: self._clock() + self._behind_s,
            bytes_per_s=self._bytes_per_s,
            records=self._records,
            clock=self._clock,
            uplink=self._uplink,
        )

    async def pass_on(self, count: int) -> None:
        """Wait for the turn of so many bytes of others that a relay here passes on. RateLimited where none may go."""
        if self._server is None:
            raise RateLimited("nothing is shared yet")
        await self._server.pass_on(count)

    async def stop(self) -> None:
        """Hang up on whoever takes something."""
        if self._server is not None:
            await self._server.stop()

    def open(self, digest: Digest) -> BinaryIO | None:
        """As a `peering.serving.BlockShelf`."""
        if digest not in self._blocks.checked:
            return None
        try:
            return self._blocks.path(digest).open("rb")
        except FileNotFoundError:
            return None

    @property
    def is_closed(self) -> bool:
        """Whether the volunteer's rules let nothing out now."""
        return self._uplink is not None and self._uplink.is_closed

    @property
    def has_news(self) -> bool:
        """Whether the coordinator does not know yet what is here."""
        return self._told is None or self._told != self._offered

    @property
    def _offered(self) -> frozenset[Digest]:
        return frozenset() if self.is_closed else self._blocks.checked

    def tell(self, request: pb.SourcesRequest) -> None:
        """Put into `request` what the coordinator is to know."""
        here = self._offered
        known = set() if self._told is None else self._told
        request.whole = self._told is None
        new, gone = sorted(here - known)[:MOST_TOLD_AT_ONCE], sorted(known - here)[:MOST_TOLD_AT_ONCE]
        request.got.extend(bytes.fromhex(one) for one in new)
        request.gone.extend(bytes.fromhex(one) for one in gone)
        if not self.is_closed:
            request.share.port, request.share.certificate = self.port, self._certificate.der
        self._telling = known.union(new).difference(gone)

    def heard(self, reply: pb.SourcesReply) -> None:
        """The coordinator has it, unless it has forgotten the rest, or takes no share from here."""
        self._behind_s = reply.now_s - self._clock()
        forgotten = reply.notice or (self._told is not None and reply.book != self._book)
        self._told, self._book = (None if forgotten else self._telling), reply.book
