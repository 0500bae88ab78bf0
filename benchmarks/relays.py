"""A block from a worker that nobody can connect to: what the way through a relay costs, beside the direct one.

    python -m benchmarks.relays [--quick] [--json FILE]

On loopback, each its own process as on machines of their own: the product's listener, the product's line to it, and
for the relayed way three sidecars with their p2pd (giver's, relay's, taker's), without a rate. One block, three times
each way; the fastest counts for speed, all of them for processor time. Columns: MB/s, processor seconds a GB of all
processes, of that the relay's own node, and its memory. `--quick`: 16 MiB once, in place of 64 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Final

import psutil

from benchmarks.report import Row, parse_args, print_rows, write_results
from peering.certificate import new_certificate
from peering.companion import Companion
from peering.line import PeerLine
from peering.orders import SidecarOrders
from peering.pace import at_once
from peering.record import RecordSigner
from peering.relay_credit import feed
from peering.serving import PeerServer
from protocol.errors import Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId, digest_of
from protocol.tickets import sign_pass, sign_ticket
from protocol.tls import CertificateAuthority

RUN: Final = RunId("relays")
LOOPBACK: Final = "127.0.0.1"
COLUMNS: Final = (
    {"heading": "way", "shows": "{way}"},
    {"heading": "MB/s", "shows": "{mb_per_s:.0f}"},
    {"heading": "processor seconds a GB", "shows": "{cpu_s_per_gb:.1f}"},
    {"heading": "of which the relay's node", "shows": "{relay_cpu_s_per_gb:.1f}"},
    {"heading": "its memory, MB", "shows": "{relay_mb:.0f}"},
)


class _OneBlock:
    """As a `BlockShelf`."""

    def __init__(self, content: bytes) -> None:
        self._content, self.digest = content, digest_of(content)

    def open(self, digest: Digest) -> BinaryIO | None:
        return io.BytesIO(self._content) if digest == self.digest else None


def _give(size_bytes: int, ca_pem: bytes, pipe: Connection) -> None:
    """The giver's listener, until the pipe's other end is gone."""

    async def serve() -> None:
        block, certificate = _OneBlock(os.urandom(size_bytes)), new_certificate()
        server = PeerServer(
            block, certificate.leaf, certificate.name, run_id=RUN, ca_pem=ca_pem, now_s=time.time, bytes_per_s=1e12
        )
        pipe.send((await server.start(LOOPBACK, 0), certificate.der, block.digest))
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(pipe.recv)

    asyncio.run(serve())


def _orders(fingerprint: Digest, folder: Path, *, host: str, relay: bool) -> bytes:
    return SidecarOrders(
        folder=folder, fingerprint=fingerprint, through=(), host=host, port=0, announce=(), identity=None,
        relay=relay, map_port=False,
    ).to_json()  # fmt: skip


class RelayedScene:
    """The giver, three sidecars, and a taker."""

    def __init__(self, size_bytes: int, root: Path) -> None:
        self._size_bytes, self._root = size_bytes, root
        self._authority = CertificateAuthority.create(RUN)
        self._me = PrivateIdentity.generate()
        self._nodes: dict[str, Companion] = {}
        self._certificate, self._digest, self._port = b"", Digest(""), 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While everything is there."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        giver = context.Process(target=_give, args=(self._size_bytes, self._authority.cert_pem, there), daemon=True)
        giver.start()
        there.close()
        feeding: asyncio.Task[None] | None = None
        try:
            self._port, self._certificate, self._digest = await asyncio.to_thread(here.recv)
            for name, host in (("relay", LOOPBACK), ("giver", ""), ("taker", "")):
                orders = partial(_orders, Digest(self._authority.fingerprint), host=host, relay=name == "relay")
                self._nodes[name] = Companion(orders, self._root / f"{name}.json")
                await self._nodes[name].start()
                await asyncio.wait_for(self._nodes[name].ready.wait(), 120.0)
            signer = RecordSigner.of(RUN, self._authority, self._me)
            record = signer.sign(epoch=0, sequence=1, addresses=(f"{LOOPBACK}:1",), issued_s=time.time())
            await self._nodes["relay"].store(record)  # by which it knows whose passes hold
            feeding = asyncio.create_task(feed(self._nodes["relay"], at_once))
            yield
        finally:
            if feeding is not None:
                feeding.cancel()
            for node in self._nodes.values():
                await node.stop()
            here.close()
            giver.kill()
            giver.join()

    async def relayed(self) -> Path:
        """The socket behind which the giver is."""
        (at,) = (await self._nodes["relay"].status()).addresses[:1]
        name, through = await self._nodes["giver"].wait_at([at], self._port, await self._pass_of("giver"))
        if not through:
            raise Unavailable("the relay took nobody")
        return await self._nodes["taker"].reach(name, through, await self._pass_of("taker"))

    async def _pass_of(self, name: str) -> bytes:
        return sign_pass(self._authority, (await self._nodes[name].status()).peer_id, time.time())

    async def take(self, socket: str) -> float:
        """The block, by that way; seconds."""
        line = PeerLine(LOOPBACK, self._port, self._certificate, self._me, socket=socket)
        line.ticket = sign_ticket(self._authority, RUN, self._me.public_key, time.time() + 600)
        began_s, count = time.monotonic(), 0
        try:
            async for piece in line.block(self._digest, self._size_bytes, 0):
                count += len(piece)
        finally:
            await line.close()
        assert count == self._size_bytes
        return time.monotonic() - began_s

    @property
    def relay_pid(self) -> int:
        """Of the relay's sidecar; its p2pd is below it."""
        pid = self._nodes["relay"].pid
        assert pid is not None
        return pid


def _family(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def _cpu_s(pid: int) -> float:
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in _family(pid)))


async def _measured(scene: RelayedScene, way: str, socket: str, times: int, size_bytes: int) -> dict[str, Any]:
    await scene.take(socket)  # connections, and whatever else is done once
    began_s, relay_began_s = _cpu_s(os.getpid()), _cpu_s(scene.relay_pid)
    took_s = [await scene.take(socket) for _ in range(times)]
    gb = times * size_bytes / 1e9
    row: dict[str, Any] = {
        "way": way,
        "mb_per_s": size_bytes / 1e6 / min(took_s),
        "cpu_s_per_gb": (_cpu_s(os.getpid()) - began_s) / gb,
    }
    if socket:
        row["relay_cpu_s_per_gb"] = (_cpu_s(scene.relay_pid) - relay_began_s) / gb
        row["relay_mb"] = sum(one.memory_info().rss for one in _family(scene.relay_pid)) / 1e6
    return row


async def measure(size_bytes: int, times: int) -> list[Row]:
    """Both ways."""
    with tempfile.TemporaryDirectory() as folder:
        scene = RelayedScene(size_bytes, Path(folder))
        async with scene.open():
            direct = await _measured(scene, "direct", "", times, size_bytes)
            return [
                direct,
                await _measured(scene, "through a relay", str(await scene.relayed()), times, size_bytes),
            ]


def main() -> int:
    """The whole of it."""
    args = parse_args((__doc__ or "").partition("\n")[0])
    rows = asyncio.run(measure((16 if args.quick else 64) << 20, 1 if args.quick else 3))
    print_rows(rows)
    if args.json is not None:
        beside = "others measured on it meanwhile"
        write_results(args.json, rows, command="python -m benchmarks.relays", columns=COLUMNS, beside=beside)
    return 0


if __name__ == "__main__":
    sys.exit(main())
