"""One node of a run's peer-to-peer network: hivemind's DHT, with one record in it.

Decides what this node keeps and passes on: the discovery record of its own run, checked as everywhere, the newest that
it has seen, for as long as that says and no longer. Everything else is refused: other keys, foreign runs, subkeys, a
later expiry than the record's own (by which the latest would win), an older record than the one that is here. Always:
what others say is believed only so. Touches the network through p2pd.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from hivemind.dht import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, PeerID
from hivemind.utils import MSGPackSerializer
from hivemind.utils.multiaddr import Multiaddr

from peering.keeping import RecordKeeper
from peering.record import MAX_RECORD_BYTES
from peering.sidecar.addresses import bootstrap_of, multiaddr_of
from peering.sidecar.pipe import Ends
from peering.sidecar.talk import OnStream
from protocol.errors import RemoteError, Unavailable
from protocol.ids import Digest
from protocol.joinlink import Bootstrap

ENTER_S = 5.0
FIND_S = 8.0
OPEN_S = 8.0
"""For a stream to another node, with its connection."""
REPLICAS = 8
_ENVELOPE_BYTES = 8
_KEY = "barnraise-run-record-v1:"


class OneRecord(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """Takes the one run's record, and nothing else."""

    def __init__(self, keeper: RecordKeeper) -> None:
        self._keeper = keeper
        self._key = DHTID.generate(source=key_of(keeper.fingerprint)).to_bytes()

    def validate(self, record: DHTRecord) -> bool:
        """Whether this may be kept here, or believed."""
        if record.key != self._key or record.subkey != DHTProtocol.IS_REGULAR_VALUE:
            return False
        if len(record.value) > MAX_RECORD_BYTES + _ENVELOPE_BYTES:
            return False
        try:
            content = MSGPackSerializer.loads(record.value)
            if not isinstance(content, bytes):
                return False
            self._keeper.offer_of_stranger(content)
        except (RemoteError, ValueError, TypeError):
            return False
        newest = self._keeper.newest
        if newest is None or content != self._keeper.content:
            return False
        return bool(record.expiration_time <= newest.expires_s)

    def merge_with(self, _other: RecordValidatorBase) -> bool:
        """There is one."""
        return False


class RunNetwork:
    """This node."""

    def __init__(self, keeper: RecordKeeper, *, serves: bool) -> None:
        self._keeper, self._serves = keeper, serves
        self._node: Any = None
        self._p2p: Any = None

    async def start(self, control: Path, through: tuple[Bootstrap, ...]) -> None:
        """Speak to the p2pd behind `control`, and enter by whichever of these peers is there."""

        class OwnSockets(P2P):  # type: ignore[misc]  # hivemind has no types
            _UNIX_SOCKET_PREFIX = f"/unix{control.parent}/"

        self._p2p = await OwnSockets.replicate(Multiaddr(f"/unix{control}"))
        self._node = await DHTNode.create(
            p2p=self._p2p,
            num_replicas=REPLICAS,
            client_mode=not self._serves,
            record_validator=OneRecord(self._keeper),
            cache_size=16,
            strict=False,
            wait_timeout=3,
        )
        await self.enter(through)

    async def stop(self) -> None:
        """Leave."""
        if self._node is not None:
            with contextlib.suppress(Exception):  # whatever a library says at its end
                await self._node.shutdown()
                await self._p2p.shutdown()

    @property
    def peer_id(self) -> str:
        """What this node is called."""
        return str(self._p2p.peer_id.to_base58())

    async def enter(self, through: tuple[Bootstrap, ...]) -> int:
        """Get to know these peers, and those near them; how many answered."""
        answered = sum(await asyncio.gather(*map(self._meet, through)))
        if answered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENTER_S):
                    await self._node.find_nearest_nodes([self._node.node_id])
        return answered

    async def store(self, content: bytes) -> bool:
        """Pass on a record; whether another node, or this one, took it. RemoteError where it does not hold."""
        self._keeper.offer(content)
        newest = self._keeper.newest
        if newest is None or content != self._keeper.content:
            return False
        try:
            async with asyncio.timeout(FIND_S):
                return bool(
                    await self._node.store(
                        key_of(self._keeper.fingerprint), content, expiration_time=newest.expires_s, exclude_self=False
                    )
                )
        except TimeoutError:
            return False

    async def find(self) -> bytes:
        """The newest record that this node comes to know by asking; empty: none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIND_S):
                await self._node.get(key_of(self._keeper.fingerprint), latest=True)
        return self._keeper.told

    async def peers(self) -> list[Bootstrap]:
        """Those that this node is connected to, as far as they have plain addresses."""
        found = []
        for info in await self._p2p.list_peers():
            own = [bootstrap_of(info.peer_id.to_base58(), str(one)) for one in info.addrs]
            found += [one for one in own if one is not None][:1]
        return found

    async def addresses(self) -> list[Bootstrap]:
        """Where this node is reached, as far as it knows."""
        with contextlib.suppress(ValueError):
            own = [bootstrap_of(self.peer_id, str(one)) for one in await self._p2p.get_visible_maddrs(latest=True)]
            return [one for one in own if one is not None]
        return []

    # ---- streams: as `peering.sidecar.talk.Streams` -----------------------------------------------------------------

    async def open_at(self, peer: Bootstrap, protocol: str) -> Ends:
        """A stream to a node, connecting to it if need be."""
        try:
            async with asyncio.timeout(OPEN_S):
                at = [Multiaddr(multiaddr_of(peer.host, peer.port))]
                await self._p2p._client.connect(PeerID.from_base58(peer.peer_id), at)
        except Exception as error:  # hivemind raises what it likes
            raise Unavailable("another node cannot be reached") from error
        return await self.open_to(peer.peer_id, protocol)

    async def open_to(self, peer_id: str, protocol: str) -> Ends:
        """A stream to a node that this one is connected to."""
        try:
            async with asyncio.timeout(OPEN_S):
                _, reader, writer = await self._p2p.call_binary_stream_handler(PeerID.from_base58(peer_id), protocol)
        except Exception as error:  # likewise
            raise Unavailable("another node takes no such stream") from error
        return reader, writer

    async def handle(self, protocol: str, on_stream: OnStream) -> None:
        """Have these streams from now on."""

        async def begun(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await on_stream(info.peer_id.to_base58(), reader, writer)

        await self._p2p.add_binary_stream_handler(protocol, begun)

    async def _meet(self, peer: Bootstrap) -> bool:
        try:
            async with asyncio.timeout(ENTER_S):
                peer_id = PeerID.from_base58(peer.peer_id)
                await self._p2p._client.connect(peer_id, [Multiaddr(multiaddr_of(peer.host, peer.port))])
                return await self._node.protocol.call_ping(peer_id, strict=False) is not None
        except Exception:  # hivemind raises what it likes; a peer that is not there is nothing out of the way
            return False


def key_of(fingerprint: Digest) -> str:
    """What the record of a run is stored under."""
    return _KEY + fingerprint
