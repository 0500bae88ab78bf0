"""This machine's node of the run's peer-to-peer network: the sidecar that the coordinator keeps, where `p2p` is on.

Decides where it listens and by which addresses it is named. Always: its name among peers stays the same, since join
links carry it; it is the node's own key, in a file of its own, and no key of the run's is given to it. A coordinator
whose node does not work serves the run as ever. Whom the node knows is written down: where the run goes on elsewhere,
with the old machine lost, the network is entered by one of them. Touches `p2p/` and `peers.json` in the run's folder,
and the sidecar.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from coordinator.run.found_again import FoundAgain
from coordinator.settings import RunSettings
from peering.companion import Companion
from peering.node_key import node_identity
from peering.orders import SidecarOrders
from peering.pace import UplinkPace
from peering.relay_credit import feed
from protocol.errors import BarnraiseError
from protocol.hosts import address_text, canonical_host, split_port
from protocol.ids import Digest
from protocol.joinlink import Bootstrap

_log = structlog.get_logger(__name__)

REMEMBERED_EVERY_S = 20.0
"""Whom the node knows: of a worker that came since, the run's next machine does not hear."""


class RunNode:
    """One served run's. `start` and `stop` once."""

    def __init__(self, root: Path, settings: RunSettings, fingerprint: Digest) -> None:
        self._folder, self._settings, self._fingerprint = root / "p2p", settings, fingerprint
        self._files = FoundAgain(root)
        self._beside: list[asyncio.Task[None]] = []
        self._record = b""
        self._own: tuple[Bootstrap, ...] = ()
        self.peer_id = ""
        """What the node is called, once it is there."""
        self._companion = Companion(
            self._orders,
            self._folder / "sidecar.json",
            on_ready=self._on_ready,
            tell=lambda why: _log.warning("p2p_ended", reason=why),
        )

    @property
    def through(self) -> tuple[Bootstrap, ...]:
        """Nodes by which the network is entered: this one, once it listens, and those of the settings."""
        return tuple(dict.fromkeys((*self._own[:2], *map(Bootstrap.parse, self._settings.p2p_through))))

    async def start(self) -> None:
        """Begin; nothing is waited for."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await self._companion.start()
        self._beside = [asyncio.create_task(self._remember())]
        if rate := self._settings.p2p_relay_bytes_per_s:
            self._beside.append(asyncio.create_task(feed(self._companion, UplinkPace(rate).spend)))

    async def stop(self) -> None:
        """Leave."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._companion.stop()

    # ---- relays ------------------------------------------------------------------------------------------------------

    @property
    def relay(self) -> Bootstrap | None:
        """Where this node passes streams on itself; None: nowhere, or not yet."""
        return self._own[0] if self._settings.p2p_relay_bytes_per_s and self._own else None

    async def relays_at(self, peer: Bootstrap, shown: bytes) -> bool:
        """Whether that node passes streams on, as seen from here, for whoever has this pass."""
        return await self._companion.relays_at(peer, shown)

    async def reach(self, peer_id: str, through: tuple[Bootstrap, ...], shown: bytes) -> Path:
        """A Unix socket behind which that node is."""
        return await self._companion.reach(peer_id, through, shown)

    async def tell(self, record: bytes) -> None:
        """This is the run's newest record."""
        self._record = record
        with contextlib.suppress(BarnraiseError, OSError):  # not there yet: it is told when it is
            await self._companion.store(record)

    async def _on_ready(self) -> None:
        status = await self._companion.status()
        advertised = self._advertised(status.addresses[0].port if status.addresses else self._settings.p2p_port)
        own = [Bootstrap(peer_id=status.peer_id, host=host, port=port) for host, port in advertised]
        self._own, self.peer_id = tuple(own) or status.addresses, status.peer_id
        if self._record:
            await self._companion.store(self._record)
        _log.info("p2p_ready", peers=len(status.peers), node=str(self._own[0]) if self._own else "")

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(REMEMBERED_EVERY_S)
            with contextlib.suppress(BarnraiseError, OSError):  # it is not there at this moment
                met = (await self._companion.status()).peers
                await asyncio.to_thread(self._files.keep_peers, met)

    def _advertised(self, port: int) -> list[tuple[str, int]]:
        return [(canonical_host(split_port(one)[0]), port) for one in self._settings.advertised_hosts]

    def _orders(self, folder: Path) -> bytes:
        port = self._settings.p2p_port
        announce = tuple(address_text(*place) for place in self._advertised(port)) if port else ()
        return SidecarOrders(
            folder=folder,
            fingerprint=self._fingerprint,
            through=tuple(dict.fromkeys((*map(Bootstrap.parse, self._settings.p2p_through), *self._files.peers()))),
            host=self._settings.host,
            port=port,
            announce=announce,
            identity=node_identity(self._folder),
            relay=bool(self._settings.p2p_relay_bytes_per_s),
            map_port=self._settings.p2p_map_port,
        ).to_json()
