"""8 MiB through two NATs and a relay: real sidecars, the real listener and line, each on a machine of its own.

Run by `make peers`, as root, with iproute2 and nftables; where these are missing they fail, and never skip.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peering.companion import Companion
from peering.line import PeerLine
from peering.pace import at_once
from peering.relay_credit import feed
from protocol.errors import RemoteError
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, digest_of
from protocol.joinlink import Bootstrap
from protocol.tickets import sign_pass, sign_ticket
from tests.peering.lans import NET, Lan
from tests.peering.test_companion import left_of, ready
from tests.peering.test_sidecar import AUTHORITY, RUN, orders_of, signed

pytestmark = pytest.mark.peers

BLOCK = os.urandom(8 * 1024 * 1024)
DIGEST = digest_of(BLOCK)
ME = PrivateIdentity.generate()
Make = Callable[..., Any]


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    made.add("relay", 1)
    made.add("other", 2)
    made.add_behind_nat("giver", 11)
    made.add_behind_nat("taker", 12)
    yield made
    made.remove()


@pytest.fixture
def giver(lan: Lan, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The listener of a worker that nobody reaches."""
    (tmp_path / "block").write_bytes(BLOCK)
    (tmp_path / "run").write_text(str(RUN))
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem)
    process = subprocess.Popen(
        lan.on("giver", sys.executable, "-m", "tests.peering.giver", str(tmp_path)), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
async def node(lan: Lan, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Companion] = []
    feeding: list[asyncio.Task[None]] = []

    async def start(name: str, *, host: str = "", relay: bool = False) -> Companion:
        async def on_ready() -> None:
            await one.store(signed(1))

        one = Companion(
            orders_of(host=host, relay=relay), tmp_path / f"traces-{len(made)}", command=lan.command(name),
            first_pause_s=0.1, on_ready=on_ready,
        )  # fmt: skip
        made.append(one)
        await one.start()
        await ready(one, limit_s=90.0)
        await on_ready()
        if relay:
            feeding.append(asyncio.create_task(feed(one, at_once)))
        return one

    yield start
    for task in feeding:
        task.cancel()
    folders = [str(one._folder) for one in made if one._folder is not None]
    for one in made:
        await one.stop()
    assert [left_of(folder) for folder in folders] == [[] for _ in folders]


async def taken(path: Path, giver: dict[str, Any], stall_s: float = 5.0) -> bytes:
    line = PeerLine("", 0, bytes.fromhex(giver["certificate"]), ME, stall_s=stall_s, socket=str(path))
    line.ticket = sign_ticket(AUTHORITY, RUN, ME.public_key, time.time() + 600)
    try:
        return b"".join([bytes(piece) async for piece in line.block(Digest(DIGEST), len(BLOCK), 0)])
    finally:
        await line.close()


async def pass_of(companion: Companion) -> bytes:
    return sign_pass(AUTHORITY, (await companion.status()).peer_id, time.time())


async def address_of(companion: Companion, number: int) -> Bootstrap:
    (port,) = {one.port for one in (await companion.status()).addresses}
    return Bootstrap(peer_id=(await companion.status()).peer_id, host=f"{NET}.{number}", port=port)


async def test_8_mib_go_through_two_nats_and_a_relay(lan: Lan, giver: dict[str, Any], node: Make) -> None:
    relay = await node("relay", host=f"{NET}.1", relay=True)
    at_relay = await address_of(relay, 1)
    behind, taker = await node("giver"), await node("taker")
    began_s = time.monotonic()
    name, through = await behind.wait_at([at_relay], giver["port"], await pass_of(behind))
    print(f"waits at the relay after {time.monotonic() - began_s:.2f} s")
    assert through == (at_relay,)
    path = await taker.reach(name, through, await pass_of(behind))  # not its own
    with pytest.raises(RemoteError):
        await taken(path, giver)
    assert path == await taker.reach(name, through, await pass_of(taker))
    began_s = time.monotonic()
    assert digest_of(await taken(path, giver)) == DIGEST
    print(f"8 MiB through two NATs and a relay in {time.monotonic() - began_s:.2f} s")


def pids_of(companion: Companion) -> tuple[int, int]:
    """Its sidecar's and p2pd's."""
    assert companion.pid is not None
    (p2pd,) = left_of(str(companion._folder))
    return companion.pid, p2pd


def lives(pid: int) -> bool:
    path = Path(f"/proc/{pid}/cmdline")
    return path.is_file() and path.read_bytes() != b""


async def test_whatever_is_killed_leaves_nothing_and_the_block_comes_again(
    lan: Lan, giver: dict[str, Any], node: Make
) -> None:
    """Relays, the giver's node and the taker's, one after the other; what the worker does is done every half second."""
    relays = dict(zip((1, 2), await asyncio.gather(*(
        node(name, host=f"{NET}.{number}", relay=True) for name, number in (("relay", 1), ("other", 2))
    )), strict=True))  # fmt: skip
    behind, taker = await asyncio.gather(node("giver"), node("taker"))

    async def again() -> bytes:
        async with asyncio.timeout(60.0):
            while True:
                try:
                    there = [(relay, number) for number, relay in relays.items() if relay.ready.is_set()]
                    named = [await address_of(*one) for one in there]
                    name, through = await behind.wait_at(named, giver["port"], await pass_of(behind))
                    return await taken(await taker.reach(name, through, await pass_of(taker)), giver)
                except (RemoteError, OSError, ValueError):
                    await asyncio.sleep(0.5)  # real processes

    assert digest_of(await again()) == DIGEST
    for whose, companion in (("relay", relays[1]), ("giver", behind), ("taker", taker)):
        for which in range(2):
            await ready(companion, limit_s=90.0)
            victims = pids_of(companion)
            os.kill(victims[which], signal.SIGKILL)
            began_s = time.monotonic()
            while any(map(lives, victims)):
                assert time.monotonic() - began_s < 5.0
                await asyncio.sleep(0.05)
            gone_s = time.monotonic() - began_s
            assert digest_of(await again()) == DIGEST
            took_s = time.monotonic() - began_s
            print(f"{whose}, {('sidecar', 'p2pd')[which]} killed: nothing left after {gone_s:.2f} s,"
                  f" the block comes again after {took_s:.1f} s")  # fmt: skip
