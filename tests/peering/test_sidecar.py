"""Real nodes: hivemind's DHT behind p2pd on loopback. What it finds, what it refuses, and that nothing is left of it.

In a network namespace of their own where the system lets this user make one, else on loopback; which it is, they say.
Run by `make peers`, one of them with all other tests too; where hivemind should be and is not they fail, never skip.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from peering.companion import Companion, SidecarStatus
from peering.node_key import node_identity
from peering.orders import SidecarOrders
from peering.record import RecordSigner
from protocol.errors import RemoteError
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId
from protocol.joinlink import Bootstrap
from protocol.tls import CertificateAuthority
from tests.peering.test_companion import left_of, ready

PEERS = pytest.mark.peers
WITHOUT = sys.platform not in ("linux", "darwin")
"""Where hivemind is none of our dependencies."""

RUN = RunId("run-1")
AUTHORITY = CertificateAuthority.create(RUN)
SIGNER = RecordSigner.of(RUN, AUTHORITY, PrivateIdentity.generate())
HERE = Digest(AUTHORITY.fingerprint)
Make = Callable[..., Any]


def signed(sequence: int, signer: RecordSigner = SIGNER, **changes: Any) -> bytes:
    said = {"epoch": 1, "addresses": ("127.0.0.1:5",), "issued_s": time.time(), **changes}
    return signer.sign(sequence=sequence, **said)


def orders_of(
    through: tuple[Bootstrap, ...] = (),
    host: str = "127.0.0.1",
    identity: Path | None = None,
    relay: bool = False,
) -> Callable[[Path], bytes]:
    def orders(folder: Path) -> bytes:
        return SidecarOrders(
            folder=folder, fingerprint=HERE, through=through, host=host, port=0, announce=(), identity=identity,
            relay=relay, map_port=False,
        ).to_json()  # fmt: skip

    return orders


@pytest.fixture
async def make(tmp_path: Path, apart: tuple[str, ...]) -> AsyncIterator[Make]:
    made: list[Companion] = []
    command = (*apart, sys.executable, "-m", "peering.sidecar")

    async def companion(*through: Bootstrap, **options: Any) -> tuple[Companion, SidecarStatus]:
        traces = tmp_path / f"traces-{len(made)}"
        made.append(Companion(orders_of(through, **options), traces, command=command, first_pause_s=0.1))
        await made[-1].start()
        await ready(made[-1], limit_s=90.0)
        return made[-1], await made[-1].status()

    yield companion
    folders = [str(one._folder) for one in made if one._folder is not None]
    for one in made:
        await one.stop()
    assert [left_of(folder) for folder in folders] == [[] for _ in folders]


@PEERS
async def test_a_record_is_found_with_its_author_and_both_bootstraps_gone_through_one_cached_peer(make: Make) -> None:
    first, at_first = await make()
    second, at_second = await make(at_first.addresses[0])
    kept, at_kept = await make(at_first.addresses[0], at_second.addresses[0])
    asking, _ = await make(at_first.addresses[0], host="")  # it listens nowhere
    record = signed(1)
    assert await first.store(record)
    began_s = time.monotonic()
    assert await asking.find(HERE) == record
    print(f"found in {time.monotonic() - began_s:.3f} s")
    await first.stop()
    await second.stop()
    late, _ = await make(at_first.addresses[0], at_second.addresses[0], host="")  # a machine that comes back
    began_s = time.monotonic()
    assert await late.enter(at_kept.addresses) == 1
    assert await late.find(HERE) == record
    print(f"found through one cached peer in {time.monotonic() - began_s:.3f} s")
    assert time.monotonic() - began_s < 5.0
    assert await kept.find(HERE) == record


@pytest.mark.skipif(WITHOUT, reason="hivemind is for Linux and macOS")
async def test_nobody_overwrites_replays_or_squats(make: Make) -> None:
    """At most: hold back the newest record for as long as nobody honest is asked."""
    one, at_one = await make()
    other, _ = await make(at_one.addresses[0])
    strangers = RecordSigner.of(RUN, CertificateAuthority.create(RUN), PrivateIdentity.generate())
    assert await one.store(signed(5))
    for bad in (b"junk", signed(9, strangers), signed(9, issued_s=time.time() + 3600), signed(9, life_s=90_000.0)):
        with pytest.raises(RemoteError):
            await other.store(bad)
    assert not await other.store(signed(4))  # a replay
    newest = signed(6)
    assert await other.store(newest)
    assert await one.find(HERE) == newest
    assert not await other.store(signed(5))
    assert await one.find(HERE) == newest


@PEERS
async def test_what_hostile_nodes_send_is_not_kept(make: Make, apart: tuple[str, ...]) -> None:
    """A node without our validator: it stores what it likes, under our key and others, with later expiries."""
    one, at_one = await make()
    good = signed(1)
    assert await one.store(good)
    script = f"""
import asyncio, time
from hivemind.dht import DHTNode
from peering.sidecar.addresses import multiaddr_of
from peering.sidecar.network import key_of
from protocol.ids import Digest
from protocol.joinlink import Bootstrap
at = Bootstrap.parse({str(at_one.addresses[0])!r})
async def main():
    where = multiaddr_of(at.host, at.port) + "/p2p/" + at.peer_id
    node = await DHTNode.create(initial_peers=[where], auto_nat=False, nat_port_map=False)
    key, later = key_of(Digest({str(HERE)!r})), time.time() + 10 * 86400
    good = bytes.fromhex({good.hex()!r})
    for value in (b"junk", good, {{"a": 1}}, b"x" * 4_000_000):
        await node.store(key, value, expiration_time=later)
    await node.store(key, good, subkey="more", expiration_time=later)
    await node.store("another key", b"value", expiration_time=later)
    got = await node.get("another key", latest=True)
    await node.shutdown()
asyncio.run(main())
"""
    hostile = await asyncio.to_thread(
        subprocess.run, [*apart, sys.executable, "-c", script], capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert hostile.returncode == 0, hostile.stderr[-500:]
    other, _ = await make(at_one.addresses[0], host="")
    assert await other.find(HERE) == good
    assert one.starts == 1


@PEERS
@pytest.mark.parametrize("victim", ["sidecar", "p2pd", "keeper", "keeper and sidecar"])
async def test_whatever_is_killed_no_process_is_left_after_5_s(tmp_path: Path, victim: str) -> None:
    script = f"""
import asyncio
from pathlib import Path
from tests.peering.test_companion import ready
from tests.peering.test_sidecar import orders_of
from peering.companion import Companion
async def main():
    companion = Companion(orders_of(), Path({str(tmp_path / "traces")!r}), first_pause_s=60.0)
    await companion.start()
    await ready(companion, limit_s=90.0)
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    keeper = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert keeper.stdout is not None
    try:
        assert await asyncio.to_thread(keeper.stdout.readline) == b"ready\n"
        left = json.loads((tmp_path / "traces").read_bytes())
        sidecar = int(left["group"])
        (p2pd,) = left_of(left["folder"])
        assert p2pd != sidecar
        if "sidecar" in victim:
            os.kill(sidecar, signal.SIGKILL)
        if victim == "p2pd":
            os.kill(p2pd, signal.SIGKILL)
        if "keeper" in victim:
            keeper.kill()
        await asyncio.sleep(5.0)  # real processes, and what is promised of them
        for pid in (sidecar, p2pd):
            assert not Path(f"/proc/{pid}/cmdline").is_file() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()


@PEERS
async def test_a_node_keeps_its_name(make: Make, tmp_path: Path) -> None:
    identity = node_identity(tmp_path)
    one, before = await make(identity=identity)
    await one.stop()
    _, after = await make(identity=identity)
    assert before.peer_id == after.peer_id
    assert identity.stat().st_mode & 0o777 == 0o600
