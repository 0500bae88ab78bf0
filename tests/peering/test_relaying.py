"""Relay, giver and taker as their sidecars are, over real sockets, with a made-up libp2p between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peering.keeping import RecordKeeper
from peering.orders import SidecarOrders
from peering.relay_credit import PIECE_BYTES, feed
from peering.sidecar import reached, relaying
from peering.sidecar.daemon import Daemon
from peering.sidecar.pipe import Ends
from peering.sidecar.reached import Reached
from peering.sidecar.reaching import MOST_WAYS, Reaching
from peering.sidecar.relaying import CREDIT_BYTES, NOT_ENROLLED, RelayDesk
from peering.sidecar.talk import PEER, RELAY, OnStream
from protocol.errors import RateLimited, Unavailable
from protocol.joinlink import Bootstrap
from protocol.tickets import PASS_S, PASS_SKEW_S, sign_pass
from protocol.tls import CertificateAuthority
from tests.peering.test_sidecar import AUTHORITY, HERE, RUN, orders_of, signed

IDS = {one: f"12D3KooW{one * 44}" for one in "RGTSX"}
NOW_S = time.time()
SHOWN = {one: sign_pass(AUTHORITY, IDS[one], NOW_S).hex() for one in IDS}
RELAY_NODE = Bootstrap(peer_id=IDS["R"], host="10.0.0.1", port=1)


class Wires:
    """Everybody's libp2p."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], OnStream] = {}
        self.gone: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    def of(self, name: str) -> Node:
        return Node(self, IDS[name])

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Node:
    """One node's, as `peering.sidecar.talk.Streams`."""

    def __init__(self, wires: Wires, peer_id: str) -> None:
        self._wires, self._peer_id = wires, peer_id

    async def open_at(self, peer: Bootstrap, protocol: str) -> Ends:
        return await self.open_to(peer.peer_id, protocol)

    async def open_to(self, peer_id: str, protocol: str) -> Ends:
        handler = self._wires.handlers.get((peer_id, protocol))
        if handler is None or peer_id in self._wires.gone:
            raise Unavailable("there is nobody")
        here, there = socket.socketpair()
        near, far = await asyncio.open_connection(sock=here), await asyncio.open_connection(sock=there)
        self._wires.writers += [near[1], far[1]]
        self._wires.tasks.append(asyncio.ensure_future(handler(self._peer_id, *far)))
        return near

    async def handle(self, protocol: str, on_stream: OnStream) -> None:
        self._wires.handlers[self._peer_id, protocol] = on_stream


@pytest.fixture
async def wires() -> AsyncIterator[Wires]:
    made = Wires()
    yield made
    await made.close()


@pytest.fixture
async def desk(wires: Wires) -> RelayDesk:
    keeper = RecordKeeper(HERE, lambda: NOW_S, lambda: 0.0)
    keeper.offer(signed(1, issued_s=NOW_S))
    made = RelayDesk(wires.of("R"), keeper)
    await made.start()
    made.credit.grant(CREDIT_BYTES)
    return made


@pytest.fixture
async def giver(wires: Wires, desk: RelayDesk, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reached]:
    """Behind the relay, with a listener on loopback that gives back what it gets."""
    monkeypatch.setattr(reached, "FIRST_PAUSE_S", 0.01)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = Reached(wires.of("G"))
    port = listener.sockets[0].getsockname()[1]
    assert await made.wait_at([RELAY_NODE], port, SHOWN["G"]) == (RELAY_NODE,)
    assert desk.has(IDS["G"])
    yield made
    made.stop()
    listener.close()


@pytest.fixture
async def taker(wires: Wires, tmp_path: Path) -> AsyncIterator[Reaching]:
    made = Reaching(wires.of("T"), tmp_path)
    yield made
    made.stop()


async def told(wires: Wires, who: str = "X", *, shown: object = None, **said: str) -> dict[str, object]:
    """What the relay says to a node, which shows what it should."""
    reader, writer = await wires.of(who).open_to(IDS["R"], RELAY)
    writer.write(json.dumps({**said, "pass": SHOWN[who] if shown is None else shown}).encode() + b"\n")
    answer: dict[str, object] = json.loads(await reader.readline())
    return answer


async def echoed(path: Path, content: bytes) -> bytes:
    """What comes back of it, until that is all or the line is cut."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(content)
        return await reader.readexactly(len(content))
    except (asyncio.IncompleteReadError, OSError):
        return b""
    finally:
        writer.close()


async def test_bytes_go_through_a_relay_and_are_counted(taker: Reaching, giver: Reached, desk: RelayDesk) -> None:
    path = await taker.way_to(IDS["G"], giver.at, SHOWN["T"])
    assert path == await taker.way_to(IDS["G"], giver.at, SHOWN["T"])
    assert await echoed(path, b"abc" * 100_000) == b"abc" * 100_000
    assert desk.credit.passed == 600_000


async def test_without_credit_nothing_passes(wires: Wires, taker: Reaching, giver: Reached, desk: RelayDesk) -> None:
    path = await taker.way_to(IDS["G"], giver.at, SHOWN["T"])
    coming = asyncio.ensure_future(echoed(path, bytes(2 * CREDIT_BYTES)))
    while desk.credit.passed < CREDIT_BYTES:
        await asyncio.sleep(0.001)
    assert await echoed(path, b"one more") == b""  # who comes now is told that it is busy
    assert await told(wires, do="hello") == {"ok": False}  # nobody else is sent here
    await asyncio.sleep(0.01)
    assert desk.credit.passed < CREDIT_BYTES + 2 * 65536
    while not coming.done():
        desk.credit.grant(CREDIT_BYTES)
        await asyncio.sleep(0.001)
    assert len(await coming) == 2 * CREDIT_BYTES


async def test_nobody_is_reached_who_does_not_wait_nor_by_somebody_at_whom_they_do_not(
    wires: Wires, taker: Reaching, giver: Reached, desk: RelayDesk
) -> None:
    came: list[str] = []

    async def on_stream(peer_id: str, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(peer_id)
        writer.close()

    await wires.of("S").handle(PEER, on_stream)  # who waits elsewhere
    assert await echoed(await taker.way_to(IDS["S"], [RELAY_NODE], SHOWN["T"]), b"x") == b""
    assert came == []
    stranger, writer = await wires.of("X").open_to(IDS["G"], PEER)  # no relay of the giver's
    writer.write(b"x")
    with contextlib.suppress(ConnectionError):
        assert await stranger.read(1) == b""
    giver.stop()
    await asyncio.gather(*giver._tasks.values(), return_exceptions=True)
    while desk.waiting:
        await asyncio.sleep(0.001)
    assert await echoed(await taker.way_to(IDS["G"], [RELAY_NODE], SHOWN["T"]), b"x") == b""


async def test_a_relay_that_went_is_gone_back_to(wires: Wires, giver: Reached, desk: RelayDesk) -> None:
    wires.gone.add(IDS["R"])
    for writer in tuple(wires.writers):
        writer.transport.abort()
    async with asyncio.timeout(5.0):
        while giver.at:
            await asyncio.sleep(0.001)
        assert not desk.waiting
        wires.gone.clear()
        while not (giver.at and desk.waiting):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("line", [b"junk\n", b"[1]\n", b"[" * 5000 + b"\n", b"x" * 200_000, b'{"do": "to"}\n', b"{}\n"])
async def test_what_hostile_nodes_say_costs_the_relay_nothing(wires: Wires, desk: RelayDesk, line: bytes) -> None:
    reader, writer = await wires.of("X").open_to(IDS["R"], RELAY)
    writer.write(line)
    assert b'"ok"' not in await reader.read()
    assert (desk.waiting, desk.circuits) == (0, 0)


FOREIGN = CertificateAuthority.create(RUN)
LATE_S, EARLY_S = NOW_S - PASS_S - PASS_SKEW_S, NOW_S + PASS_SKEW_S


def pass_of(authority: CertificateAuthority, now_s: float, who: str = "X") -> str:
    return sign_pass(authority, IDS[who], now_s).hex()


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param("", id="none"),
        pytest.param(7, id="a number"),
        pytest.param("0" * 320, id="too long"),
        pytest.param(SHOWN["X"][:-2], id="truncated"),
        pytest.param(SHOWN["X"][:14], id="less than its end"),
        pytest.param("x" + SHOWN["X"][1:], id="no hexadecimal"),
        pytest.param(SHOWN["X"][:20] + f"{int(SHOWN['X'][20:22], 16) ^ 1:02x}" + SHOWN["X"][22:], id="forged"),
        pytest.param("7ff8" + SHOWN["X"][4:], id="for ever"),
        pytest.param(pass_of(AUTHORITY, NOW_S + 60.0)[:16] + SHOWN["X"][16:], id="made longer"),
        pytest.param(SHOWN["G"], id="another node's"),
        pytest.param(pass_of(FOREIGN, NOW_S), id="another run's"),
        pytest.param(pass_of(AUTHORITY, LATE_S), id="expired"),
        pytest.param(pass_of(AUTHORITY, EARLY_S + 1.0), id="lives too long"),
    ],
)
async def test_without_a_pass_of_its_own_a_node_takes_nobodys_place(
    wires: Wires, giver: Reached, desk: RelayDesk, shown: object
) -> None:
    for said in ({"do": "wait"}, {"do": "to", "peer": IDS["G"]}, {"do": "hello"}):
        assert await told(wires, shown=shown, **said) == {"why": NOT_ENROLLED}
    assert (desk.waiting, desk.circuits, desk.has(IDS["G"])) == (1, 0, True)


async def test_clocks_may_differ_and_before_the_record_nobody_is_known(wires: Wires, desk: RelayDesk) -> None:
    for now_s in (LATE_S + 1.0, EARLY_S):
        assert await told(wires, shown=pass_of(AUTHORITY, now_s), do="hello") == {"ok": True}
    desk._keeper.newest = None
    assert await told(wires, do="hello") == {"why": NOT_ENROLLED}


async def test_who_waits_shows_its_newest_pass_and_goes_when_that_has_run_out(
    wires: Wires, desk: RelayDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reached, "PING_S", 0.001)
    monkeypatch.setattr(reached, "FIRST_PAUSE_S", 0.01)
    now_s, pings, node = NOW_S, 0, Reached(wires.of("X"))

    def wall_s() -> float:
        nonlocal pings
        pings += 1
        return now_s

    async def until(*, waits: bool) -> None:
        async with asyncio.timeout(5.0):
            before = pings
            while pings < before + 3 or desk.has(IDS["X"]) is not waits:
                await asyncio.sleep(0.001)

    desk._keeper.wall_s = wall_s
    assert await node.wait_at([RELAY_NODE], 1, SHOWN["X"]) == (RELAY_NODE,)
    now_s = NOW_S + PASS_S
    await until(waits=True)
    await node.wait_at([RELAY_NODE], 1, pass_of(AUTHORITY, now_s))
    await until(waits=True)
    now_s += PASS_S
    await until(waits=True)
    now_s += PASS_S
    await until(waits=False)
    node.stop()


async def test_who_waits_and_who_passes_is_bounded(
    wires: Wires, taker: Reaching, giver: Reached, desk: RelayDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "MOST_WAITING", 1)
    assert await told(wires, do="wait") == {"why": "full"}
    path = await taker.way_to(IDS["G"], giver.at, SHOWN["T"])
    lines = [await asyncio.open_unix_connection(path) for _ in range(relaying.MOST_CIRCUITS_EACH)]
    for reader, writer in lines:
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    assert desk.circuits == relaying.MOST_CIRCUITS_EACH
    assert await echoed(path, b"x") == b""
    for _, writer in lines:
        writer.close()
    while desk.circuits:
        await asyncio.sleep(0.001)
    assert await echoed(path, b"x") == b"x"


async def test_ways_are_bounded(taker: Reaching, tmp_path: Path, giver: Reached) -> None:
    path = await taker.way_to(IDS["G"], giver.at, SHOWN["T"])
    assert await echoed(path, b"x") == b"x"
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    for number in range(MOST_WAYS + 5):
        await taker.way_to(f"12D3KooW{number:044}", [RELAY_NODE], SHOWN["T"])
    assert len(list(tmp_path.iterdir())) == MOST_WAYS
    assert path.exists()  # somebody uses it
    assert path.stat().st_mode & 0o077 == 0
    writer.close()
    for way in taker._ways.values():
        way.streams.add(asyncio.ensure_future(asyncio.Event().wait()))  # type: ignore[arg-type]
    with pytest.raises(RateLimited):
        await taker.way_to(IDS["X"], [RELAY_NODE], SHOWN["T"])


async def test_a_relay_is_given_what_its_owner_lets_go() -> None:
    granted: list[int] = []
    spent: list[int] = []

    class Desk:
        async def relay(self, grant: int) -> int:
            granted.append(grant)
            if len(granted) == 4:
                raise asyncio.CancelledError
            return 700_000

    async def spend(count: int) -> None:
        spent.append(count)
        if len(spent) == 2:
            raise RateLimited("the rules say no")

    async def pause(_seconds: float) -> None:
        pass

    with pytest.raises(asyncio.CancelledError):
        await feed(Desk(), spend, pause)
    assert spent == [PIECE_BYTES] * 4
    assert granted == [0, *[PIECE_BYTES] * 3]


def test_p2pd_is_no_relay_of_its_own_for_everybody(tmp_path: Path) -> None:
    """With `-relay=1` it is one, of 128 KiB a stream, whatever its other flags say."""
    for relay in (False, True):
        orders = SidecarOrders.from_json(orders_of(host="127.0.0.1", relay=relay)(tmp_path))
        assert {"-relay=0", "-relayService=0"} <= set(Daemon(orders)._flags())
