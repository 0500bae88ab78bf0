"""A worker keeps a run whole beside its work: what it has is what `coordinator fork` goes on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.run.folder import RunFolder, init_run
from coordinator.run.forking import fork_run, read_archive
from coordinator.settings import RunSettings
from moe.layout import Layout, block_tensor_specs
from protocol.codecs import FP32
from protocol.errors import MalformedMessage, Refused
from protocol.ids import TRUNK, Digest, column_block
from protocol.manifest import BlockRef
from protocol.tensor_headers import payload_size
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import Recorder, Swarm, served
from worker.archivist import Archivist, check_sizes, kept_index
from worker.timing import Timing


@pytest.fixture
async def long_swarm(tmp_path: Path, corpus: Path) -> AsyncIterator[Swarm]:
    settings = RunSettings(
        preset="tiny",
        data=str(corpus),
        port=0,
        sequence_length=32,
        codec="fp32",
        heldout_limit=4,
        screening_sequences=4,
        archives=1,
        engine={
            "max_rounds": 50,
            "gather_s": 0.0,
            "heartbeat_interval_s": 0.1,
            "heartbeat_misses": 100.0,
            "outer_momentum": 0.9,
            "inner": {"inner_steps": 2, "batch_sequences": 2},
            "screening": {"enabled": False},
        },
    )
    folder = await asyncio.to_thread(init_run, tmp_path / "run", settings)
    async with served(Swarm(folder, tmp_path)) as made:
        yield made


async def test_an_archive_that_a_worker_made_is_what_a_run_goes_on_from(
    long_swarm: Swarm, tmp_path: Path, corpus: Path
) -> None:
    swarm = long_swarm
    _, recorder, task = swarm.agent("first", archive=True)
    await recorder.saw("archived", 3)
    (folder,) = (swarm.root / "first").rglob("archive")
    assert swarm.server is not None
    told = (await swarm.server.status()).elsewhere
    assert told is not None
    assert "by 1 worker that archives" in told.told or "by workers that archive" in told.told

    (swarm.link,) = await swarm.server.create_invites()
    _, second, _ = swarm.agent("second", archive=True)
    assert "1 workers keep whole versions already" in await second.saw("archive_none")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    index = read_archive(folder)
    assert index.manifest.momenta
    assert {path.name for path in (folder / "blobs").iterdir()} >= set(index.named())
    done = fork_run(folder, tmp_path / "forked", data=str(corpus))
    assert (done.version, done.from_run) == (index.record.version, swarm.folder.run_id)
    assert RunFolder.open(tmp_path / "forked").run_id != swarm.folder.run_id
    joining: Any = SimpleNamespace(home=SimpleNamespace(folder=folder.parent), timing=Timing())
    archivist = Archivist(joining, recorder)
    archivist._opened()
    assert archivist._held == kept_index(folder) == index
    rotten = folder / "blobs" / next(iter(index.manifest.momenta.values())).digest
    rotten.write_bytes(bytes(rotten.stat().st_size))
    again = Archivist(joining, recorder)
    again._opened()
    assert again._held is None


async def test_an_archive_leaves_a_lease_its_room_and_says_so(long_swarm: Swarm) -> None:
    _, recorder, _ = long_swarm.agent("first", archive=True, disk_bytes=8 << 20)
    assert "do not fit into the disk" in await recorder.saw("archive_no_room")
    await recorder.saw("submission_accepted")
    assert not list((long_swarm.root / "first").rglob("archive/archive.json"))


async def test_a_pause_breaks_it_off_and_trouble_is_not_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []

    async def keep(archivist: Archivist, session: int, latest: int, swarm: None) -> None:
        begun.append(latest)
        await asyncio.Event().wait()

    monkeypatch.setattr(Archivist, "_keep", keep)
    recorder, joining = Recorder(), cast(Any, SimpleNamespace(home=SimpleNamespace(folder=Path()), timing=Timing()))
    archivist = Archivist(joining, recorder)
    for allowed, expected in ((False, []), (True, [1]), (True, [1]), (False, [1]), (True, [1, 1])):
        archivist.on_beat(1, pb.HeartbeatReply(latest_version=1, archives=True), None, allowed=allowed)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert begun == expected
    await archivist.close()
    archivist._later("archive_none", "words")
    archivist._later("archive_none", "words")
    assert recorder.texts("archive_none") == ["words"]
    archivist.on_beat(1, pb.HeartbeatReply(latest_version=2, archives=True), None, allowed=True)
    await asyncio.sleep(0)
    assert begun == [1, 1]
    older = Archivist(joining, recorder)
    older.on_beat(1, pb.HeartbeatReply(latest_version=2), None, allowed=True)  # a coordinator that knows of no archives
    assert "gives no whole versions" in recorder.texts("archive_none")[-1]
    assert begun == [1, 1]


async def test_what_goes_wrong_is_told_in_a_sentence_and_does_not_end_the_worker(tmp_path: Path) -> None:
    async def refused(_request: pb.ArchiveRequest) -> pb.ArchiveReply:
        raise Refused("this run gives nobody whole versions")

    recorder, client = Recorder(), SimpleNamespace(archive=refused)
    joining: Any = SimpleNamespace(home=SimpleNamespace(folder=tmp_path), timing=Timing(), client=client)
    archivist = Archivist(joining, recorder)
    await archivist._keep(1, 7, None)
    (text,) = recorder.texts("archive_later")
    assert "version 7" in text
    assert "gives nobody whole versions" in text


def test_sizes_are_looked_at_before_a_byte_is_fetched(frozen_layout: Layout) -> None:
    refs = {
        block: BlockRef(
            digest=Digest("0" * 64), payload_bytes=payload_size(block_tensor_specs(frozen_layout, block), FP32)
        )
        for block in frozen_layout.blocks
    }
    manifest: Any = SimpleNamespace(version=1, blocks=refs, masters={}, momenta=refs)
    check_sizes(manifest, frozen_layout)
    for name, wrong in (
        ("momenta", {**refs, TRUNK: replace(refs[TRUNK], payload_bytes=1 << 50)}),
        ("masters", {column_block(10**6): refs[TRUNK]}),
        ("blocks", {TRUNK: refs[TRUNK]}),
    ):
        with pytest.raises(MalformedMessage):
            check_sizes(cast(Any, SimpleNamespace(**{**vars(manifest), name: wrong})), frozen_layout)
