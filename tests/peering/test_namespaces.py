"""Real nodes, each in a network namespace of its own on one bridge: a run's machine changes its address, and is found.

Run by `make peers`, as root, with iproute2; where namespaces cannot be made they fail, and never skip.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peering.companion import Companion
from protocol.joinlink import Bootstrap
from tests.peering.test_companion import left_of, ready
from tests.peering.test_sidecar import HERE, orders_of, signed

pytestmark = pytest.mark.peers

NET = "10.213.77"
WITHIN_S = 5.0
Make = Callable[..., Any]


def ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}; is this root?"


class Lan:
    """Namespaces on one bridge, by name; each has one address."""

    def __init__(self) -> None:
        self._prefix = f"bar{os.getpid()}"
        self._bridge = f"{self._prefix}b"[:15]
        self._made: list[str] = []
        ip("link", "add", self._bridge, "type", "bridge")
        ip("link", "set", self._bridge, "up")

    def add(self, name: str, number: int) -> None:
        """A machine at that address."""
        inside, outside = f"{self._prefix}{name}", f"{self._prefix}v{len(self._made)}"[:15]
        ip("netns", "add", inside)
        self._made.append(inside)
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
        ip("link", "set", outside, "master", self._bridge, "up")
        ip("-n", inside, "link", "set", "lo", "up")
        ip("-n", inside, "link", "set", "eth0", "up")
        ip("-n", inside, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")

    def move(self, name: str, number: int) -> None:
        """The machine has another address from here on, and the old one no more."""
        inside = f"{self._prefix}{name}"
        ip("-n", inside, "addr", "flush", "dev", "eth0")
        ip("-n", inside, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")

    def command(self, name: str) -> tuple[str, ...]:
        """A sidecar on that machine."""
        return ("ip", "netns", "exec", f"{self._prefix}{name}", sys.executable, "-m", "peering.sidecar")

    def remove(self) -> None:
        """All of it."""
        for inside in self._made:
            ip("netns", "del", inside)
        ip("link", "del", self._bridge)


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    yield made
    made.remove()


@pytest.fixture
async def node(lan: Lan, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Companion] = []

    async def start(name: str, number: int, *through: Bootstrap, listens: bool = True) -> tuple[Companion, Any]:
        orders = orders_of(through, host=f"{NET}.{number}" if listens else "")
        made.append(Companion(orders, tmp_path / f"traces-{len(made)}", command=lan.command(name), first_pause_s=0.1))
        await made[-1].start()
        await ready(made[-1], limit_s=90.0)
        return made[-1], await made[-1].status()

    yield start
    folders = [str(one._folder) for one in made if one._folder is not None]
    for one in made:
        await one.stop()
    assert [left_of(folder) for folder in folders] == [[] for _ in folders]


async def test_a_run_whose_machine_changes_its_address_is_found_through_one_cached_peer(lan: Lan, node: Make) -> None:
    for name, number in (("run", 1), ("friend", 2), ("worker", 3)):
        lan.add(name, number)
    run, at_run = await node("run", 1)
    _, at_friend = await node("friend", 2, at_run.addresses[0])
    worker, _ = await node("worker", 3, at_run.addresses[0], listens=False)
    before, after = (signed(number, addresses=(f"{NET}.{at}:7070",)) for number, at in ((1, 1), (2, 9)))
    assert await run.store(before)
    assert await worker.find(HERE) == before
    await run.stop()
    lan.move("run", 9)
    moved, _ = await node("run", 9, *at_friend.addresses)
    told_s = time.monotonic()
    assert await moved.store(after)
    while (found := await worker.find(HERE)) != after:
        assert time.monotonic() - told_s < WITHIN_S, f"still {found!r}"
    print(f"told to be found {time.monotonic() - told_s:.2f} s after the move")
    await moved.stop()  # who was there before, and comes back when nobody else is there but the friend
    late, _ = await node("worker", 3, listens=False)
    began_s = time.monotonic()
    assert await late.enter(at_friend.addresses) == 1
    assert await late.find(HERE) == after
    took_s = time.monotonic() - began_s
    print(f"found through one cached peer in {took_s:.2f} s")
    assert took_s < WITHIN_S
