"""Real agents and a real coordinator that moves: it is found again at another port, and nobody gets a new link."""

from __future__ import annotations

import asyncio
import socket

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
