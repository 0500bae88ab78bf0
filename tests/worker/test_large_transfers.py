"""Blocks of real sizes, both ways between real processes over loopback TLS, with the line cut in the middle of each."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from coordinator.run.folder import RunFolder
from coordinator.store.registry import Registry
from moe import presets
from protocol.joinlink import JoinLink
from protocol.limits import FRAME_BYTES
from protocol.manifest import BlockRef
from protocol.v1 import barnraise_pb2 as pb
from simulator.faults import Fault, FaultKind, FaultPlan, FaultSite
from simulator.processes.launcher import ProcessGroup
from tests.machines.proxy import FaultyLink
from tests.served import make_run, submission_for, write_text
from tests.worker.large_transfers import Moved, move, serve
from worker.files import file_digest

CUT = Fault(kind=FaultKind.DROP, at=FaultSite())
PATIENCE_S = 900.0
STREAMED_BYTES = 160 << 20
"""What a process may take while blocks of any size pass through it: frames and buffers, no block."""


@pytest.fixture
def processes() -> Iterator[ProcessGroup]:
    group = ProcessGroup()
    yield group
    group.stop(grace_s=0.0)


def wide_run(folder: Path, layers: int, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose trunk has 67 MB a layer, and experts next to nothing."""
    shape = dataclasses.replace(
        presets._SHAPES["tiny"], hidden_size=2048, heads=16, layers=layers, experts=2, top_k=1, expert_size=8
    )
    monkeypatch.setitem(presets._SHAPES, "tiny", shape)
    text = folder / "text"
    text.mkdir()
    return RunFolder.open(make_run(folder / "run", write_text(text), {"max_rounds": 1, "validate_every": 0}))


class Line:
    """The worker's way to the coordinator, and what both processes say."""

    def __init__(self, link: FaultyLink, worker: Connection, coordinator: Connection) -> None:
        self._link, self._worker, self._coordinator = link, worker, coordinator
        self.coordinator_growth_bytes: dict[str, int] = {}

    async def until_moved(self) -> Moved:
        """Cuts the line whenever the worker is halfway."""
        while not isinstance(said := await self._said(self._worker), Moved):
            self._link.strike(CUT)
            self.coordinator_growth_bytes[said] = await self._growth_bytes()
            self._worker.send("go on")
        self._worker.send("bye")
        return said

    async def _growth_bytes(self) -> int:
        self._coordinator.send("memory")
        return int(await self._said(self._coordinator))

    @staticmethod
    async def _said(pipe: Connection) -> Any:
        assert await asyncio.to_thread(pipe.poll, PATIENCE_S), "nothing was said for so long"
        return pipe.recv()


@pytest.mark.parametrize(
    "layers",
    [1, pytest.param(6, marks=pytest.mark.soak), pytest.param(15, marks=pytest.mark.soak)],
    ids=["64 MB", "400 MB", "1 GB"],
)
async def test_blocks_of_real_sizes_move_both_ways_though_the_line_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: ProcessGroup, layers: int
) -> None:
    run = wide_run(tmp_path, layers, monkeypatch)
    block = _trunk_of(run)
    assert block.payload_bytes > layers * 64_000_000
    payload = tmp_path / "payload"
    payload.write_bytes(submission_for(run, pb.Lease(columns=[0, 1])))
    ours, theirs = processes.pipe()
    processes.start("coordinator", tmp_path / "coordinator.log", serve, run.root, theirs)
    port = await Line._said(ours)
    link = FaultyLink(0, lambda: port, FaultPlan(()), time.monotonic)
    await link.start()
    try:
        worker, end = processes.pipe()
        target, ca_pem = tmp_path / "block", run.authority().cert_pem
        processes.start(
            "worker", tmp_path / "worker.log", move, _invited(run, link.port), ca_pem, block, target, payload, end
        )
        line = Line(link, worker, ours)
        moved = await line.until_moved()
    finally:
        await link.stop()
    assert file_digest(target) == block.digest
    assert block.payload_bytes <= moved.down_bytes < block.payload_bytes + FRAME_BYTES, (
        "frames came again after the cut"
    )
    size = payload.stat().st_size
    assert moved.up_offsets[0] == 0
    assert all(0 < offset < size for offset in moved.up_offsets[1:])
    assert len(moved.up_offsets) >= 2
    assert size <= moved.up_bytes < 1.7 * size, "most of what was sent before the cut was sent again"
    growth = {**line.coordinator_growth_bytes, "worker": moved.peak_growth_bytes}
    print(f"{block.payload_bytes} bytes down, {size} up; memory grew by {growth}")
    assert max(growth.values()) < STREAMED_BYTES, growth


def _trunk_of(run: RunFolder) -> BlockRef:
    blocks = list((run.root / "artifacts" / "blocks").glob("??/*"))
    largest = max(blocks, key=lambda path: path.stat().st_size)
    return BlockRef(digest=file_digest(largest), payload_bytes=largest.stat().st_size)


def _invited(run: RunFolder, port: int) -> str:
    registry = Registry.open(run.registry_path)
    invite = registry.create_invite(trusted=False, expires_at_s=time.time() + 3600.0)
    registry.close()
    return str(JoinLink(host="127.0.0.1", port=port, fingerprint=run.authority().fingerprint, invite=invite))
