"""Real agents and a real coordinator that moves: it is found again at another port, and nobody gets a new link."""

from __future__ import annotations

import asyncio
import socket

import pytest

from coordinator.run.found_again import FoundAgain
from tests.worker.conftest import Gate, Swarm
from worker.rejoin import link_of


async def moved(swarm: Swarm) -> int:
    """The coordinator ends, and begins again at another port of the same folder; that port."""
    await swarm.stop()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    path = swarm.folder.root / "settings.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("port =")]
    path.write_text("\n".join([f"port = {port}", *lines]))
    await swarm.start()
    assert swarm.server is not None
    assert swarm.server.port == port
    return port


async def test_a_run_that_moves_is_found_through_one_peer_that_shares(swarm: Swarm, gate: Gate) -> None:
    assert swarm.server is not None
    before = swarm.server.port
    _, first, _ = swarm.agent("first", share_bytes_per_s=10**9, batch_hook=gate)
    await first.saw("fetched")
    (swarm.link,) = await swarm.server.create_invites()
    _, second, _ = swarm.agent("second", batch_hook=gate)
    assert "of it from other workers" in await second.saw("fetched")
    began_s = asyncio.get_running_loop().time()
    port = await moved(swarm)
    gate.opened.set()
    for recorder in (first, second):
        assert await recorder.saw("moved") == f"the run answers at 127.0.0.1:{port} now"
    assert asyncio.get_running_loop().time() - began_s < 5.0
    await first.saw("session_opened", 2)
    await second.saw("session_opened", 2)
    # and without any link, from then on
    assert link_of("", swarm.root / "second").port == port != before
    assert FoundAgain(swarm.folder.root).sharers()[0].host == "127.0.0.1"


@pytest.mark.peers
async def test_a_run_that_moves_is_found_in_the_network_alone(swarm: Swarm, gate: Gate) -> None:
    """Nobody shares blocks, and the old node is gone: a third node kept the record."""
    path = swarm.folder.root / "settings.toml"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    await swarm.stop()
    text = path.read_text().replace("p2p = false", "p2p = true").replace("p2p_port = 7467", f"p2p_port = {port}")
    path.write_text(text)
    swarm.link = ""
    await swarm.start()
    assert swarm.server is not None
    async with asyncio.timeout(60):
        while "?through=" not in (link := (await swarm.server.create_invites())[0]):
            await asyncio.sleep(0.2)
    swarm.link = link
    _, first, _ = swarm.agent("first", batch_hook=gate, p2p=True)
    await first.saw("fetched")
    async with asyncio.timeout(60):
        while not list((swarm.root / "first").rglob("through.json")):
            await asyncio.sleep(0.2)
    began_s = asyncio.get_running_loop().time()
    new = await moved(swarm)
    gate.opened.set()
    assert await first.saw("moved") == f"the run answers at 127.0.0.1:{new} now"
    print(f"found {asyncio.get_running_loop().time() - began_s:.1f} s after it was stopped")
