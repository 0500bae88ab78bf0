"""`python -m peering.sidecar`: reads its orders, starts p2pd, joins the network, and answers at a socket until it ends.

Decides what a request is: `find`, `store`, `enter`, `status`, and of streams to who cannot be reached: `wait_at`,
`reach`, `relay`, `try`. Always: p2pd is started before anything is imported that
has threads; a request is as hostile as any (protocol/local_socket.py bounds it, and asks the system who speaks); the
end of the standard input ends the process, and so does p2pd's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peering.keeping import RecordKeeper
from peering.orders import MAX_ORDERS_BYTES, SidecarOrders
from peering.record import MAX_RECORD_BYTES
from peering.sidecar.daemon import Daemon
from peering.sidecar.pipe import hang_up
from peering.sidecar.reached import Reached
from peering.sidecar.reaching import Reaching
from peering.sidecar.relaying import CREDIT_BYTES, RelayDesk
from peering.sidecar.talk import RELAY, ask_relay, heard
from protocol import local_socket
from protocol.errors import ConfigError, MalformedMessage, RemoteError
from protocol.joinlink import MOST_BOOTSTRAPS, Bootstrap
from protocol.parent import end_with_parent
from protocol.tickets import MOST_PASS_BYTES

if TYPE_CHECKING:
    from peering.sidecar.network import RunNetwork

SOCKET = "sidecar.sock"
DATA_BYTES = 4 << 30
"""A hard bound on what this process, or p2pd, may allocate; whoever started it holds it to much less."""
MOST_PEERS_TOLD = 16
PART_S = 0.3
"""For each part to end, before the process does anyway."""

Json = local_socket.Json


class Answers:
    """What each request is answered with."""

    def __init__(self, network: RunNetwork, keeper: RecordKeeper, folder: Path, *, relays: bool) -> None:
        self._network, self._keeper = network, keeper
        self.desk = RelayDesk(network, keeper) if relays else None
        self.reached, self.reaching = Reached(network), Reaching(network, folder, self.desk)

    async def __call__(self, request: Json, _caller: local_socket.Caller) -> Json:
        """As a handler of `local_socket.serve`."""
        match request.get("do"):
            case "find":
                return {"record": (await self._network.find()).hex()}
            case "store":
                return {"stored": await self._network.store(_record(request))}
            case "enter":
                return {"answered": await self._network.enter(_peers(request))}
            case "status":
                return await self._status()
            case "wait_at":
                port = _number(request, "port", 65_535)
                at = await self.reached.wait_at(_peers(request), port, _pass(request))
                return {"peer_id": self._network.peer_id, "at": list(map(str, at))}
            case "reach":
                (peer,) = _peers({"through": [f"{request.get('peer')}@relayed.invalid:1"]})
                return {"path": str(await self.reaching.way_to(peer.peer_id, _peers(request), _pass(request)))}
            case "relay":
                return await self._relay(_number(request, "grant", CREDIT_BYTES))
            case "try":
                return {"relays": await self._relays_at(_peers(request), _pass(request))}
        raise MalformedMessage("a sidecar is asked to find, store, enter, for its status, or for a way to others")

    async def _relay(self, grant: int) -> Json:
        if self.desk is None:
            raise MalformedMessage("this node was not told to be a relay")
        self.desk.credit.grant(grant)
        wanted = await self.desk.credit.wanted()
        return {"wants": wanted, "passed": self.desk.credit.passed, "waiting": self.desk.waiting}

    async def _relays_at(self, peers: tuple[Bootstrap, ...], shown: str) -> bool:
        for peer in peers:
            reader, writer = await self._network.open_at(peer, RELAY)
            try:
                await ask_relay(writer, shown, do="hello")
                if (await heard(reader)).get("ok") is not True:
                    return False
            finally:
                await hang_up(writer)
        return bool(peers)

    async def _status(self) -> Json:
        peers = await self._network.peers()
        return {
            "peer_id": self._network.peer_id,
            "addresses": list(map(str, await self._network.addresses())),
            "peers": list(map(str, peers[:MOST_PEERS_TOLD])),
            "connected": len(peers),
            "record": self._keeper.told.hex(),
        }


def _record(request: Json) -> bytes:
    text = request.get("record")
    if not isinstance(text, str) or len(text) > 2 * MAX_RECORD_BYTES:
        raise MalformedMessage("a record is at most 2 KiB, in hexadecimal")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MalformedMessage("a record is told in hexadecimal") from None


def _pass(request: Json) -> str:
    told = request.get("pass", "")
    if not isinstance(told, str) or len(told) > 2 * MOST_PASS_BYTES:
        raise MalformedMessage(f"a pass has at most {MOST_PASS_BYTES} bytes, in hexadecimal")
    return told


def _number(request: Json, name: str, most: int) -> int:
    told = request.get(name)
    if not isinstance(told, int) or not 0 <= told <= most:
        raise MalformedMessage(f"{name} is a number of at most {most}")
    return told


def _peers(request: Json) -> tuple[Bootstrap, ...]:
    told = request.get("through")
    if not isinstance(told, list) or len(told) > 4 * MOST_BOOTSTRAPS:
        raise MalformedMessage("peers are a short list")
    try:
        return tuple(Bootstrap.parse(str(one)) for one in told)
    except ConfigError as error:
        raise MalformedMessage(str(error)) from error


async def _ended(reader: asyncio.StreamReader) -> None:
    """Whoever started this process is there no more."""
    while await reader.read(4096):
        pass


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_ORDERS_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _serve() -> int:
    reader = await _standard_input()
    orders = SidecarOrders.from_json(await reader.readuntil(b"\n"))
    keeper = RecordKeeper(orders.fingerprint, time.time, time.monotonic)
    daemon = Daemon(orders)
    network: RunNetwork | None = None
    server: local_socket.LocalServer | None = None
    try:
        await daemon.start()
        from peering.sidecar.network import RunNetwork as Joined  # seconds, and threads

        gc.freeze()
        network = Joined(keeper, serves=bool(orders.host))
        await network.start(daemon.control, orders.through)
        answers = Answers(network, keeper, orders.folder, relays=orders.relay)
        if answers.desk is not None:
            await answers.desk.start()
        server = await local_socket.serve(orders.folder / SOCKET, answers)
        ends = [asyncio.ensure_future(one) for one in (_ended(reader), daemon.ended())]
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return 0 if ends[0] in done else 1
    except (ConfigError, RemoteError) as error:
        print(str(error), file=sys.stderr)
        return 2
    finally:
        # p2pd first: a library that speaks to it may wait for it for ever
        for part in (daemon.stop(), server.close() if server else None, network.stop() if network else None):
            if part is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(part, PART_S)


def main() -> Any:
    """Until the end of the standard input."""
    end_with_parent()
    os.umask(0o077)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = asyncio.run(_serve())
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be put away, and hivemind's threads need not be waited for


if __name__ == "__main__":
    main()
