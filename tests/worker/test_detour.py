"""A worker that nobody reaches, and one that goes to such a worker: where they go, and what they say."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peering.certificate import new_certificate
from protocol.errors import RemoteError, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import Digest
from protocol.joinlink import Bootstrap
from protocol.tickets import PASS_S
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import Recorder
from worker import detour as ways_round
from worker.detour import Detour, RelayedLine, relays_in
from worker.neighbours import Neighbours
from worker.timing import Timing

ME, OTHER = ("12D3KooW" + letter * 44 for letter in "MS")
FAR, NEAR = (f"12D3KooW{'R' * 44}@{host}:7001" for host in ("8.8.8.8", "192.168.1.7"))


class Net:
    """This machine's node."""

    def __init__(self) -> None:
        self.is_ready = False
        self.offer: Bootstrap | None = None
        self.asked: list[tuple[tuple[Bootstrap, ...], int]] = []
        self.at: tuple[Bootstrap, ...] = ()
        self.peer_id, self.relay_pass = ME, b""

    async def wait_at(self, relays: tuple[Bootstrap, ...], port: int) -> tuple[str, tuple[Bootstrap, ...]]:
        self.asked.append((relays, port))
        if not self.at:
            raise Unavailable("not now")
        return self.peer_id, self.at

    async def reach(self, _peer_id: str, _through: tuple[Bootstrap, ...]) -> Path:
        raise FileNotFoundError


def test_which_relays_are_gone_to() -> None:
    told = [FAR, NEAR, "junk", FAR.replace("8.8.8.8", "a.name.example"), FAR.replace(":7001", ":0")]
    assert relays_in(told[:3], "run.example.org") == (Bootstrap.parse(FAR),)
    assert relays_in(told[:3], "192.168.1.1") == (Bootstrap.parse(FAR), Bootstrap.parse(NEAR))
    assert [one.host for one in relays_in(told[1:], "a.name.example")] == ["a.name.example"]
    assert len(relays_in([FAR] * 99, "h")) == 4


async def test_a_worker_that_nobody_reaches_waits_at_relays_and_says_so() -> None:
    net, told, rounds = Net(), list[pb.SourcesRequest](), 0
    notice = "nobody reaches it"

    async def announce() -> None:
        nonlocal notice
        request = pb.SourcesRequest(share=pb.Sharing(port=9, certificate=b"c"))
        detour.tell(request)
        told.append(request)
        detour.heard(pb.SourcesReply(relays=[FAR], relay_pass=b"1") if request.node else pb.SourcesReply())
        notice = "" if request.share.through else "nobody reaches it"

    async def sleep(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        match rounds:
            case 1:
                net.is_ready = True
            case 2:
                net.at = (Bootstrap.parse(FAR),)
            case 4:
                net.peer_id = OTHER  # another sidecar, after a kill
            case 6:
                raise asyncio.CancelledError

    detour = Detour(net, "run.example.org", Timing(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        await detour.keep(9, lambda: bool(notice), announce)
    assert net.asked[0] == ((Bootstrap.parse(FAR),), 9)
    said = [(one.share.peer_id, list(one.share.through)) for one in told]
    assert said == [("", []), (ME, [FAR]), (ME, [FAR]), (OTHER, [FAR])]
    assert [one.node for one in told] == [ME, ME, OTHER, OTHER]
    assert detour.relays == 1


async def test_a_pass_is_asked_for_again_long_before_it_runs_out() -> None:
    """With its relays gone, too: they may come back."""
    net, asked_at_s, now_s = Net(), list[float](), 0.0
    net.is_ready = True

    async def announce() -> None:
        detour.tell(pb.SourcesRequest())
        asked_at_s.append(now_s)
        detour.heard(pb.SourcesReply(relays=[FAR], relay_pass=b"pass %d" % now_s))

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if now_s > 2 * PASS_S:
            raise asyncio.CancelledError

    detour = Detour(net, "run.example.org", Timing(sleep=sleep, clock=lambda: now_s))
    with pytest.raises(asyncio.CancelledError):
        await detour.keep(9, lambda: True, announce)
    assert len(asked_at_s) >= 4
    assert max(later - one for one, later in itertools.pairwise(asked_at_s)) < 0.6 * PASS_S
    assert net.relay_pass == b"pass %d" % asked_at_s[-1]
    detour.heard(pb.SourcesReply(relay_pass=b"x" * 81))
    assert len(net.relay_pass) < 81


async def test_a_relay_is_offered_once_it_is_there() -> None:
    net, told = Net(), list[pb.SourcesRequest]()

    async def announce() -> None:
        request = pb.SourcesRequest()
        detour.tell(request)
        told.append(request)

    async def sleep(_seconds: float) -> None:
        if net.is_ready:
            raise asyncio.CancelledError
        net.is_ready, net.offer = True, Bootstrap.parse(FAR)

    detour = Detour(net, "h", Timing(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        await detour.keep(9, lambda: False, announce)
    (request,) = told
    assert (request.node, request.relay.port) == (ME, 7001)
    assert net.asked == []  # it is reached as it is


@pytest.mark.parametrize("network", [None, Net()])
async def test_where_there_is_no_way_to_a_holder_another_source_is_taken(network: Any) -> None:
    holder = pb.Holder(certificate=new_certificate().der, peer_id=ME, through=[FAR])
    line = RelayedLine(network, holder, "h", PrivateIdentity.generate())
    with pytest.raises(RemoteError, match="no way"):
        await anext(line.block(Digest("0" * 64), 10, 0))
    await line.close()


async def test_each_block_renews_the_way_and_another_way_is_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []
    ways = iter([Path("a"), Path("a"), Path("b")])

    class Line:
        ticket = None

        def __init__(self, *_: object, socket: str) -> None:
            dialled.append(socket)

        async def block(self, *_: object) -> AsyncGenerator[bytes, None]:
            yield b"x"

        async def close(self) -> None:
            dialled.append("closed")

    async def reach(_peer_id: str, _through: tuple[Bootstrap, ...]) -> Path:
        return next(ways)

    net: Any = Net()
    net.reach = reach
    monkeypatch.setattr(ways_round, "PeerLine", Line)
    holder = pb.Holder(certificate=new_certificate().der, peer_id=ME, through=[FAR])
    line = RelayedLine(net, holder, "h", PrivateIdentity.generate())
    for _ in range(3):
        assert [piece async for piece in line.block(Digest("0" * 64), 1, 0)] == [b"x"]
    assert dialled == ["a", "closed", "b"]


async def test_what_a_volunteer_reads_of_relays() -> None:
    net, recorder, rounds = Net(), Recorder(), 0
    net.is_ready, net.offer, net.at = True, Bootstrap.parse(NEAR), (Bootstrap.parse(FAR),)

    async def sources(request: pb.SourcesRequest) -> pb.SourcesReply:
        notice = "" if request.share.through else "nobody reaches it"
        return pb.SourcesReply(notice=notice, relays=[FAR], relay_notice="nobody reaches the relay either")

    async def sleep(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise asyncio.CancelledError

    class Shared:
        port, has_news, is_closed = 9, False, False

        async def start(self, _enrolment: object) -> bool:
            return True

        def tell(self, request: pb.SourcesRequest) -> None:
            request.share.port = self.port

        def heard(self, _reply: pb.SourcesReply) -> None:
            pass

    joining: Any = SimpleNamespace(
        enrolment=None, client=SimpleNamespace(sources=sources), dial_holder=None, timing=Timing(sleep=sleep),
        host="h", network=net, finder=None, identity=None,
    )  # fmt: skip
    neighbours = Neighbours(joining, recorder, Shared())  # type: ignore[arg-type]
    await neighbours.on_session()
    assert recorder.texts("share_unreached") == ["nobody reaches it"]
    assert neighbours._detouring is not None
    await asyncio.gather(neighbours._detouring, return_exceptions=True)
    assert "through 1 of the run's relays" in recorder.texts("sharing")[-1]
    assert len(recorder.texts("relaying")) == len(recorder.texts("relay_unreached")) == 1
