"""Real nodes, each in a network namespace of its own on one bridge: a run's machine changes its address, and is found.

Run by `make peers`, as root, with iproute2; where namespaces cannot be made they fail, and never skip.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peering.companion import Companion
from protocol.joinlink import Bootstrap
from tests.peering.lans import NET, Lan
from tests.peering.test_companion import left_of, ready
from tests.peering.test_sidecar import HERE, orders_of, signed

pytestmark = pytest.mark.peers

WITHIN_S = 5.0
Make = Callable[..., Any]


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
