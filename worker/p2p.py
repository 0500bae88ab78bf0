"""A worker's part in the peer-to-peer network: its sidecar's orders, and whom it entered by, kept for the next time.

Decides whether this machine listens there: only where its volunteer shares; otherwise it asks and stores nothing for
others. Always: what the sidecar says is a hint. Touches the run's folder, and processes through the sidecar's keeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from peering.companion import Companion
from peering.keeping import RecordKeeper
from peering.orders import SidecarOrders
from peering.pace import Spend
from peering.relay_credit import feed
from protocol.errors import ConfigError, RemoteError, StorageTrouble
from protocol.ids import Digest
from protocol.joinlink import Bootstrap
from worker.acquaintances import SmallFiles

THROUGH_FILE = "through.json"
MOST_THROUGH = 16
EVERYWHERE = "0.0.0.0"  # noqa: S104 - others have to reach it


class WorkerNetwork:
    """As a worker's `RecordNetwork`. `start` and `stop` once."""

    def __init__(
        self,
        folder: Path,
        files: SmallFiles,
        keeper: RecordKeeper,
        *,
        through: tuple[Bootstrap, ...],
        listens: bool,
        port: int = 0,
        companion: Callable[..., Companion] = Companion,
        tell: Callable[[str], None] = lambda _text: None,
        pass_on: Spend | None = None,
    ) -> None:
        """`pass_on`: waits until so many bytes of others may come in here and go out again; None: none do."""
        self._files, self._keeper, self._given = files, keeper, through
        self._host, self._port = EVERYWHERE if listens else "", port
        self._pass_on = pass_on
        self._feeding: asyncio.Task[None] | None = None
        self._own: Bootstrap | None = None
        self.peer_id, self.relay_pass = "", b""
        """What the node is called, and what it shows to relays."""
        self._companion = companion(self._orders, folder / "sidecar.json", on_ready=self._on_ready, tell=tell)

    async def start(self) -> None:
        """Join; nothing is waited for."""
        await self._companion.start()
        if self._pass_on is not None:
            self._feeding = asyncio.create_task(feed(self._companion, self._pass_on))

    async def stop(self) -> None:
        """Leave."""
        if self._feeding is not None:
            self._feeding.cancel()
        await self._companion.stop()

    async def find(self, fingerprint: Digest) -> bytes:
        """The newest record that the network has; empty: none."""
        await self._companion.enter(self.through)
        return await self._companion.find(fingerprint)

    async def tell(self, record: bytes) -> None:
        """A newer record is known: the network may know it, too; and whom it is entered by next time."""
        with contextlib.suppress(RemoteError, ConfigError, OSError):
            await self._companion.store(record)
            await self._remember()

    # ---- relays: as a worker's `RelayedNetwork` ----------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the node is there."""
        return self._companion.ready.is_set()

    @property
    def offer(self) -> Bootstrap | None:
        """Where it passes streams on itself, as it knows; None: nowhere."""
        return self._own if self.is_ready and self._pass_on is not None else None

    async def wait_at(self, relays: tuple[Bootstrap, ...], port: int) -> tuple[str, tuple[Bootstrap, ...]]:
        """Be reached through some of these: by which name, and through which."""
        return await self._companion.wait_at(relays, port, self.relay_pass)

    async def reach(self, peer_id: str, through: tuple[Bootstrap, ...]) -> Path:
        """A Unix socket behind which that node is."""
        return await self._companion.reach(peer_id, through, self.relay_pass)

    @property
    def through(self) -> tuple[Bootstrap, ...]:
        """Peers by which the network may be entered: those met last, then those of the link."""
        return tuple(dict.fromkeys((*_read(self._files), *self._given)))[:MOST_THROUGH]

    async def _on_ready(self) -> None:
        status = await self._companion.status()
        self._own, self.peer_id = next(iter(status.addresses), None), status.peer_id
        if self._keeper.told:
            await self._companion.store(self._keeper.told)
        await self._remember()

    async def _remember(self) -> None:
        """Write down whom the sidecar knows, where it knows anybody."""
        before, met = self.through, (await self._companion.status()).peers
        kept = tuple(dict.fromkeys((*met, *before)))[:MOST_THROUGH]
        if met and set(kept) != set(_read(self._files)):
            with contextlib.suppress(StorageTrouble):
                self._files.keep(THROUGH_FILE, json.dumps(list(map(str, kept))).encode())

    def _orders(self, folder: Path) -> bytes:
        return SidecarOrders(
            folder=folder,
            fingerprint=self._keeper.fingerprint,
            through=self.through,
            host=self._host,
            port=self._port,
            announce=(),
            identity=None,
            relay=self._pass_on is not None,
            map_port=False,
        ).to_json()


def _read(files: SmallFiles) -> tuple[Bootstrap, ...]:
    try:
        rows = json.loads(files.kept(THROUGH_FILE) or b"[]")
        return tuple(Bootstrap.parse(str(row)) for row in rows[:MOST_THROUGH])
    except (ConfigError, ValueError, TypeError, RecursionError):
        return ()
