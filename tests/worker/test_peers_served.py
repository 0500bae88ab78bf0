"""Real agents and a real coordinator: who shares is found, and what others take there leaves the coordinator once."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge import sources
from protocol import chunks
from protocol.chunks import Chunks
from protocol.errors import DigestMismatch
from protocol.ids import Digest
from tests.worker.conftest import Recorder, Swarm
from worker.blocks import BlockCache, PartialBlock
from worker.rules.file import RULES_FILE, set_rule
from worker.rules.house import House
from worker.sharing import Sharing


async def joined(swarm: Swarm, name: str, **options: Any) -> Recorder:
    assert swarm.server is not None
    (swarm.link,) = await swarm.server.create_invites()
    _, recorder, _ = swarm.agent(name, **options)
    await recorder.saw("fetched")
    return recorder


def sent_bytes(swarm: Swarm) -> int:
    assert swarm.server is not None
    return swarm.server.summary().bytes_down


@pytest.fixture
def checked_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small blocks have chunks too; bytes of each that was checked."""
    checked: list[int] = []
    holds = Chunks.holds

    def counted(known: Chunks, number: int, content: bytes) -> bool:
        checked.append(len(content))
        return holds(known, number, content)

    monkeypatch.setattr(Chunks, "holds", counted)
    for bound in ("CHUNKED_ABOVE_BYTES", "CHUNK_BYTES", "LEAST_CHUNK_BYTES"):
        monkeypatch.setattr(chunks, bound, 1 << 14)
    return checked


async def test_what_goes_between_workers_counts_and_ends_with_a_pause(
    swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked_bytes: list[int]
) -> None:
    """The second takes from the first, a checked chunk at a time. Both homes' rules hold it, and whoever is paused is
    nobody's source any more, without being asked in vain."""
    monkeypatch.setattr(House, "_step_back", lambda _: None)  # the tests' own process keeps its priority
    giver, taker = (House(made_home(tmp_path / name), senses=[]) for name in ("giver's", "taker's"))
    agent, first, _ = swarm.agent("first", share_bytes_per_s=10**9, house=giver)
    await first.saw("fetched")
    assert "learn this machine's address" in first.texts("sharing")[0]
    assert first.texts("share_unreached") == []
    whole_bytes = sum(path.stat().st_size for path in (swarm.root / "first").rglob("blocks/*"))
    down_bytes, given = sent_bytes(swarm), list[int]()
    monkeypatch.setattr(giver._line, "_count", given.append)
    second = await joined(swarm, "second", house=taker)
    assert "of it from other workers" in second.texts("fetched")[0]
    from_first = whole_bytes - (sent_bytes(swarm) - down_bytes)
    assert from_first > 0.7 * whole_bytes
    assert sum(given) > from_first
    assert sum(checked_bytes) > 0.7 * whole_bytes
    assert used_bytes(taker) > whole_bytes
    assert swarm.server is not None
    sources = swarm.server._service.sources
    giver.pause(None)
    await agent.look_at_policy()
    async with asyncio.timeout(5.0):
        while sources.anybody_shares:
            await asyncio.sleep(0.01)
    giver.resume()
    await agent.look_at_policy()
    async with asyncio.timeout(5.0):
        while not sources.anybody_shares:
            await asyncio.sleep(0.01)


def made_home(home: Path) -> Path:
    home.mkdir()
    set_rule(home / RULES_FILE, "when.battery", "work")  # where nothing tells, it would wait
    return home


def used_bytes(house: House) -> int:
    return house.ledger.used(datetime.now().date())[0]


async def test_a_share_that_cannot_be_reached_is_told_to_its_volunteer_and_to_nobody_else(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "fetch_ca", lambda host, port, *_: fetch_elsewhere(host, port))
    first = await joined(swarm, "first", share_bytes_per_s=10**9)
    assert "forward that port" in await first.saw("share_unreached")
    second = await joined(swarm, "second")
    assert "from other workers" not in second.texts("fetched")[0]
    assert second.texts("sharing") == []  # nothing listens where nobody said so


def fetch_elsewhere(host: str, _port: int) -> bytes:
    """As behind a router that lets nothing in."""
    from protocol.bootstrap import fetch_ca

    return fetch_ca(host, 1, "0" * 64, 1.0)


async def test_a_liar_costs_a_try_and_the_coordinator_gives_the_rest(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gives zeros for everything that it is asked for."""
    mismatches: list[PartialBlock] = []

    class Zeros:
        def __init__(self, path: Path) -> None:
            self.path = path

        def open(self, digest: Digest) -> Any:
            import io

            return io.BytesIO(bytes(self.path.joinpath(digest).stat().st_size))

    def finish(partial: PartialBlock) -> None:
        try:
            honest(partial)
        except DigestMismatch:
            mismatches.append(partial)
            raise

    honest = PartialBlock.finish
    monkeypatch.setattr(PartialBlock, "finish", finish)
    monkeypatch.setattr(
        Sharing, "open", lambda sharing, digest: Zeros(sharing._blocks.path(digest).parent).open(digest)
    )
    await joined(swarm, "first", share_bytes_per_s=10**9)
    second = await joined(swarm, "second")
    await second.saw("fetched")
    assert 1 <= len(mismatches) <= 4  # those that were on their way at once


def test_only_what_this_process_checked_is_given(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    sharing = Sharing(cache, 10**6)
    content, digest = b"content", Digest("ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")
    cache.path(digest).write_bytes(content)
    assert sharing.open(digest) is None
    assert cache.has(digest, len(content))
    file = sharing.open(digest)
    assert file is not None
    with file:
        assert file.read() == content
    cache.path(digest).unlink()
    assert sharing.open(digest) is None
    assert sharing.open(Digest("../" + "0" * 61)) is None
