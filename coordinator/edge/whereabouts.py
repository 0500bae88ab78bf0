"""Where this run is, as its workers and whoever looks for it are told: the newest record, and who hears of it at once.

Decides when a record is made anew (at each start, and long before the last has expired) and to whom it goes: to every
worker that opens a session or asks for sources, and at a start to the workers that shared when the run was served last.
These tell others; so a run that comes back elsewhere is found without a new link. Always: nothing here is waited for,
and whoever cannot be reached is left. Touches two small files of the run's folder, and the network.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from coordinator.edge.node import RunNode
from coordinator.run.folder import RunFolder
from coordinator.run.found_again import FoundAgain, addresses_of
from coordinator.settings import RunSettings
from peering import finding
from peering.record import MAX_LIFE_S, RecordSigner, read_record
from peering.tracker import Shared
from protocol.errors import BarnraiseError, RemoteError
from protocol.ids import Digest
from protocol.joinlink import Bootstrap

RENEW_S = MAX_LIFE_S / 4
TOLD_AT_ONCE = 8

_log = structlog.get_logger(__name__)

TellSharer = Callable[[Shared, bytes], Awaitable[bytes]]


class Whereabouts:
    """One served run's. `start` once, `stop` once."""

    def __init__(
        self,
        files: FoundAgain,
        signer: RecordSigner,
        settings: RunSettings,
        wall_s: Callable[[], float],
        *,
        fingerprint: Digest,
        epoch: int = 0,
        tell: TellSharer | None = None,
        network: RunNode | None = None,
    ) -> None:
        """`network`: this machine's node of the run's peer-to-peer network; None: it has none."""
        self._files, self._signer, self._settings, self._wall_s = files, signer, settings, wall_s
        self._fingerprint, self._epoch, self._tell = fingerprint, epoch, tell or self._tell_over_grpc
        self._task: asyncio.Task[None] | None = None
        self._network = network
        self.record = b""
        """The newest; empty before the start."""

    @classmethod
    def of(cls, folder: RunFolder, settings: RunSettings, wall_s: Callable[[], float], epoch: int) -> Whereabouts:
        """Those of the run in `folder`, which this machine leads in `epoch`."""
        authority = folder.authority()
        network = RunNode(folder.root, settings, Digest(authority.fingerprint)) if settings.p2p else None
        signer = RecordSigner.of(folder.run_id, authority, folder.manifest_identity())
        digest = Digest(authority.fingerprint)
        return cls(FoundAgain(folder.root), signer, settings, wall_s, fingerprint=digest, epoch=epoch, network=network)

    @property
    def through(self) -> tuple[Bootstrap, ...]:
        """Nodes that join links name: this machine's first."""
        return () if self._network is None else self._network.through

    @property
    def node(self) -> RunNode | None:
        """This machine's node of the run's network."""
        return self._network

    async def start(self, port: int) -> None:
        """The coordinator listens on `port`."""
        if self._network is not None:
            await self._network.start()
        self._task = asyncio.create_task(self._go_on(port))

    async def stop(self) -> None:
        """Tell nobody any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._network is not None:
            await self._network.stop()

    def keep_sharers(self, sharers: tuple[Shared, ...]) -> None:
        """These share now: whom to tell when the run comes back from elsewhere."""
        self._files.keep_sharers(sharers)

    async def _go_on(self, port: int) -> None:
        while True:
            try:
                await asyncio.to_thread(self._make, port)
            except BarnraiseError as error:  # the disk is full, say: workers keep the last one
                _log.warning("record_not_made", reason=str(error))
            else:
                if self._network is not None:
                    await self._network.tell(self.record)
                await self._tell_all(await asyncio.to_thread(self._files.sharers))
            await asyncio.sleep(RENEW_S)

    def _make(self, port: int) -> None:
        now_s = self._wall_s()
        content = self._signer.sign(
            epoch=self._epoch,
            sequence=self._files.next_sequence(now_s),
            addresses=addresses_of(self._settings, port),
            issued_s=now_s,
        )
        read_record(content, self._fingerprint, now_s)  # what nobody would believe is not given out
        self.record = content

    async def _tell_all(self, sharers: tuple[Shared, ...]) -> None:
        at_once, reached = asyncio.Semaphore(TOLD_AT_ONCE), 0

        async def tell(shared: Shared) -> None:
            nonlocal reached
            async with at_once:
                with contextlib.suppress(RemoteError):
                    await self._tell(shared, self.record)
                    reached += 1

        await asyncio.gather(*(tell(one) for one in sharers))
        if sharers:
            _log.info("sharers_told", told=reached, of=len(sharers))

    async def _tell_over_grpc(self, shared: Shared, record: bytes) -> bytes:
        return await finding.asked(shared.host, shared.port, shared.certificate, self._fingerprint, record)
