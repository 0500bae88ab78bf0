"""A real relay without a firewall: three real sidecars, listener and line, where any user may have a network to use.

Who is really kept out by routers is in test_relays.py (`make peers`). In a network namespace of their own where the
system lets this user make one, else on loopback; which it is, it says.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from peering.companion import Companion
from peering.pace import at_once
from peering.relay_credit import feed
from protocol.ids import digest_of
from tests.peering.test_companion import left_of, ready
from tests.peering.test_relays import BLOCK, DIGEST, pass_of, taken
from tests.peering.test_sidecar import AUTHORITY, RUN, WITHOUT, orders_of, signed


@pytest.mark.skipif(WITHOUT, reason="hivemind is for Linux and macOS")
async def test_8_mib_go_through_a_relay(tmp_path: Path, apart: tuple[str, ...]) -> None:
    for name, content in (("block", BLOCK), ("run", str(RUN).encode()), ("ca.pem", AUTHORITY.cert_pem)):
        (tmp_path / name).write_bytes(content)
    giver = subprocess.Popen(
        (*apart, sys.executable, "-m", "tests.peering.giver", str(tmp_path)), stdout=subprocess.PIPE
    )
    command = (*apart, sys.executable, "-m", "peering.sidecar")
    nodes = [
        Companion(orders_of(host="127.0.0.1" if is_relay else "", relay=is_relay), tmp_path / name, command=command)
        for name, is_relay in (("relay", True), ("giver", False), ("taker", False))
    ]
    assert giver.stdout is not None
    try:
        for node in nodes:
            await node.start()
        listener = json.loads(await asyncio.to_thread(giver.stdout.readline))
        await asyncio.gather(*(ready(node, limit_s=90.0) for node in nodes))
        relay, behind, taker = nodes
        feeding = asyncio.create_task(feed(relay, at_once))
        (at_relay,) = (await relay.status()).addresses
        await relay.store(signed(1))
        assert not await taker.relays_at(at_relay, await pass_of(behind))
        assert await taker.relays_at(at_relay, await pass_of(taker))
        name, through = await behind.wait_at([at_relay], listener["port"], await pass_of(behind))
        assert through == (at_relay,)
        path = await taker.reach(name, through, await pass_of(taker))
        assert digest_of(await taken(path, listener)) == DIGEST
        feeding.cancel()
    finally:
        folders = [str(node._folder) for node in nodes]
        await asyncio.gather(*(node.stop() for node in nodes))
        giver.kill()
        giver.wait()
        giver.stdout.close()
    assert [left_of(folder) for folder in folders] == [[]] * 3
