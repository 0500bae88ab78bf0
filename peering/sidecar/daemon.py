"""libp2p's own process, `p2pd`, as the sidecar runs it: with the flags that hivemind does not offer.

Decides what of libp2p is on: no port is asked of a router and nobody is asked to probe this machine unless that was
ordered; it is no relay, since ours is (peering/sidecar/relaying.py). Always: it is killed when the sidecar is (Linux),
and is of the sidecar's process group, which whoever started that sweeps. Touches the folder of its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from functools import partial
from pathlib import Path

from peering.orders import SidecarOrders
from peering.sidecar.addresses import multiaddr_of
from protocol.errors import ConfigError, Unavailable
from protocol.hosts import split_port
from protocol.parent import end_with

READY_S = 20.0
MEMORY_TARGET = "256MiB"
"""Go's collector keeps p2pd near it."""


class Daemon:
    """One p2pd. `start` once, `stop` once."""

    def __init__(self, orders: SidecarOrders) -> None:
        self._orders = orders
        self.control = orders.folder / "p2pd.sock"
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Until it answers; Unavailable where it does not."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                str(_binary()),
                *self._flags(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "GOMEMLIMIT": MEMORY_TARGET, "GOLOG_LOG_LEVEL": "error"},
                preexec_fn=partial(end_with, os.getpid()),
            )
        except OSError as error:
            raise ConfigError(f"p2pd cannot be started: {error.strerror or error}") from error
        self._reading = asyncio.create_task(self._read(ready))
        try:
            await asyncio.wait_for(ready, READY_S)
        except TimeoutError:
            raise Unavailable(f"p2pd was not ready within {READY_S:g} s") from None

    async def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # it keeps nothing
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def ended(self) -> None:
        """Wait until it is there no more."""
        if self._process is not None:
            await self._process.wait()

    async def _read(self, ready: asyncio.Future[None]) -> None:
        """Its output is read to the end: a full pipe would stop it."""
        assert self._process is not None
        assert self._process.stdout is not None
        last = b""
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the reader's limit
                continue
            if not line:
                break
            last = line
            if line.startswith(b"Peer ID:") and not ready.done():
                ready.set_result(None)
        if not ready.done():
            ready.set_exception(Unavailable(f"p2pd ended: {last[:200].decode(errors='replace').strip()}"))

    def _flags(self) -> list[str]:
        orders = self._orders
        on = {
            "listen": f"/unix{self.control}",
            "autonat": 0,
            "natPortMap": int(orders.map_port),
            "connManager": 1,
            "connLo": 64,
            "connHi": 128,
            "relay": 0,  # with 1 it is a relay for everybody, of 128 KiB a stream, whatever its other flags say
            "relayService": 0,
            "quic": 0,
            "idleTimeout": "60s",
        }
        if orders.host:
            on["dhtServer"] = 1
            on["hostAddrs"] = multiaddr_of(orders.host, orders.port)
            if orders.announce:
                on["announceAddrs"] = ",".join(multiaddr_of(*_host_port(one, orders.port)) for one in orders.announce)
        else:
            on["dhtClient"] = 1
            on["noListenAddrs"] = 1
        if orders.identity is not None:
            on["id"] = str(orders.identity)
        return [f"-{name}={value}" for name, value in on.items()]


def _host_port(text: str, port: int) -> tuple[str, int]:
    host, own = split_port(text)
    return host.strip("[]"), own or port


def _binary() -> Path:
    found = importlib.util.find_spec("hivemind")
    places = [] if found is None else found.submodule_search_locations or []
    for place in places:
        binary = Path(place) / "hivemind_cli" / "p2pd"
        if binary.is_file():
            return binary
    raise ConfigError("the peer-to-peer network needs the package hivemind with its p2pd, and it is not installed")
