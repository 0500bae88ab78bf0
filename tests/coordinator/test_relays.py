"""Relays of a run: which are named, and which shares behind them count. The node is made up, the calls are real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge import relays as edge
from coordinator.edge.relays import MOST_NAMED, MOST_NODES
from coordinator.edge.server import CoordinatorServer
from peering.certificate import new_certificate
from protocol.errors import Unavailable
from protocol.joinlink import Bootstrap
from protocol.tickets import check_pass
from protocol.v1 import barnraise_pb2 as pb
from tests.coordinator.test_sources import asked, blocks_of
from tests.served import Refusal

Join = Callable[..., Any]
PEER, OTHER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", "12D3KooW" + "B" * 44
OWN = Bootstrap(peer_id="12D3KooW" + "A" * 44, host="192.0.2.1", port=7467)


class Node:
    """Reaches what a test says."""

    peer_id = OWN.peer_id

    def __init__(self) -> None:
        self.relay: Bootstrap | None = OWN
        self.is_there = True
        self.tried: list[Bootstrap] = []
        self.reached: list[tuple[str, tuple[Bootstrap, ...]]] = []
        self.lets_through, self.shown = True, list[bytes]()

    async def relays_at(self, peer: Bootstrap, shown: bytes) -> bool:
        self.tried.append(peer)
        self.shown.append(shown)
        if not self.is_there:
            raise Unavailable("there is nobody")
        return self.lets_through

    async def reach(self, peer_id: str, through: tuple[Bootstrap, ...], shown: bytes) -> Path:
        self.shown.append(shown)
        self.reached.append((peer_id, through))
        if not self.is_there:
            raise Unavailable("there is nobody")
        return Path("a socket")


@pytest.fixture
def node(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()
    sources = server._service.sources
    sources._relays._node = made
    sources._reach = lambda _shared: "nobody connects there"
    monkeypatch.setattr(edge, "fetch_ca_behind", lambda *_: b"")
    return made


async def test_a_relay_is_named_once_it_was_tried(join: Join, node: Node) -> None:
    relay, worker = await join(), await join()
    offer = pb.RelayOffer(peer_id=PEER, port=7001)
    node.is_there = False
    refused = await asked(relay, relay=offer)
    assert "--p2p-port" in refused.relay_notice
    assert (await asked(relay, relay=offer)).relay_notice == refused.relay_notice
    assert len(node.tried) == 1  # remembered, not tried at each question
    node.is_there, node.lets_through, offer.port = True, False, 7003
    assert "clock" in (await asked(relay, relay=offer)).relay_notice
    node.lets_through = True
    assert list((await asked(worker, node=OTHER)).relays) == [str(OWN)]
    offer.port = 7002  # another, since the router lets that in
    assert (await asked(relay, relay=offer)).relay_notice == ""
    assert list((await asked(worker, node=OTHER)).relays) == [str(OWN), f"{PEER}@127.0.0.1:7002"]
    assert list((await asked(worker)).relays) == []  # it could go nowhere
    assert list((await asked(relay, relay=offer, node=OTHER)).relays) == [str(OWN)]  # nobody waits at themselves
    await asked(relay)
    assert list((await asked(worker, node=OTHER)).relays) == [str(OWN)]


async def test_a_share_counts_behind_relays_that_were_named_and_no_others(join: Join, node: Node) -> None:
    holder, taker = await join(), await join()
    (block, *_), certificate = await blocks_of(holder), new_certificate()
    share = pb.Sharing(port=7000, certificate=certificate.der, peer_id=OTHER, through=[f"{PEER}@127.0.0.1:9"])
    assert (await asked(holder, got=[block], share=share)).notice == "nobody connects there"
    assert node.reached == []
    share.through.append(str(OWN))
    assert (await asked(holder, got=[block], share=share)).notice == ""
    assert node.reached == [(OTHER, (OWN,))]
    assert (await taker.acquire(0.0)).peers
    (named,) = (await asked(taker, wanted=[block], room=4, node=OTHER)).holders
    assert (named.host, named.port, named.peer_id, list(named.through)) == ("", 0, OTHER, [str(OWN)])
    assert not (await asked(taker, wanted=[block], room=4)).holders
    share.through[:] = []  # its relays went
    assert (await asked(holder, share=share)).notice
    assert not (await asked(taker, wanted=[block], room=4, node=OTHER)).holders


async def test_what_is_behind_a_relay_is_tried_before_it_is_named(
    join: Join, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> bytes:
        raise Unavailable("another certificate")

    monkeypatch.setattr(edge, "fetch_ca_behind", nobody)
    share = pb.Sharing(port=7000, certificate=new_certificate().der, peer_id=OTHER, through=[str(OWN)])
    holder = await join()
    for _ in range(2):
        assert "through the relays" in (await asked(holder, share=share)).notice
    assert len(node.reached) == 1


async def test_a_worker_gets_passes_for_a_few_nodes_of_its_own_and_without_one_hears_of_no_relays(
    join: Join, node: Node, server: CoordinatorServer
) -> None:
    worker, run = await join(), server._service.sources._run
    names = [f"12D3KooW{number:044}" for number in range(MOST_NODES + 1)]
    told = [await asked(worker, node=name) for name in (*names, names[0])]
    for name, reply in zip(names[:MOST_NODES], told, strict=False):
        check_pass(reply.relay_pass, run.authority.cert_pem, name, run.wall_time())
    assert (told[MOST_NODES].relay_pass, list(told[MOST_NODES].relays)) == (b"", [])
    check_pass(told[-1].relay_pass, run.authority.cert_pem, names[0], run.wall_time())
    assert (await asked(worker)).relay_pass == b""
    node.lets_through = False  # what this machine's own node shows to relays
    await asked(worker, relay=pb.RelayOffer(peer_id=PEER, port=7001))
    check_pass(node.shown[-1], run.authority.cert_pem, OWN.peer_id, run.wall_time())


async def test_without_a_node_of_its_own_a_coordinator_sends_nobody_to_relays(join: Join) -> None:
    offered = await asked(await join(), relay=pb.RelayOffer(peer_id=PEER, port=7001), node=OTHER)
    assert "no part in a peer-to-peer network" in offered.relay_notice
    assert (list(offered.relays), offered.relay_pass) == ([], b"")


@pytest.mark.parametrize(
    "fields",
    [
        {"relay": pb.RelayOffer(peer_id="no peer", port=1)},
        {"relay": pb.RelayOffer(peer_id=PEER, port=0)},
        {"node": "x" * 65},
        {"share": pb.Sharing(port=1, certificate=b"1", peer_id="x" * 65)},
        {"share": pb.Sharing(port=1, certificate=b"1", through=["x"] * (MOST_NAMED + 1))},
    ],
)
async def test_more_than_an_honest_worker_tells_is_refused(join: Join, node: Node, fields: dict[str, Any]) -> None:
    await Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Sources").of(asked(await join(), **fields))
