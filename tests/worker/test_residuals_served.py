"""A run whose codec feeds its errors back, over loopback TLS: the worker is started again, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.edge.residuals import MOST_ASKED, Openings, check_residuals
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.transfers import Transfers
from coordinator.engine.openings import asked_of
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.state import EngineState
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.needed import needed_by
from coordinator.run.pump import load_engine
from coordinator.settings import RunSettings
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from moe.layout import block_tensor_specs
from protocol import file_frames, framing
from protocol.codecs import CODECS, FP32
from protocol.errors import FinalRefusal, Unavailable
from protocol.framing import FrameReader
from protocol.ids import BlockId, Digest, LeaseId, Version, WorkerId
from protocol.lease import Lease
from protocol.specs import submission_name
from protocol.tensors import decode_tensors
from protocol.v1 import barnraise_pb2 as pb
from tests.coordinator.engine.test_openings import audited, deliver
from tests.protocol.test_made_up_codec import EightBits
from tests.worker.conftest import Swarm, served
from tests.worker.leases import changed_lease, lease_message, read_lease
from worker.messages import EXIT_OK
from worker.train.replay import replay_lease
from worker.train.trainer import LeaseResult

Flat = dict[str, torch.Tensor]
FRAME = 32 * 1024
"""Bytes: a residual here has several."""


@pytest.fixture
def settings(corpus: Path) -> Callable[..., RunSettings]:
    """Every submission counts as it is: one worker, the mean, no clipping, no screening."""

    def make(**engine: Any) -> RunSettings:
        table = {
            "max_rounds": 4, "gather_s": 0.0, "heartbeat_interval_s": 0.1, "heartbeat_misses": 100.0, "rule": "mean",
            "clip_to_median": False, "screening": {"enabled": False}, "region": {"enabled": False},
            "down": {"codec": "fp32", "frozen_codec": "fp32", "frozen_every": 1},
            "inner": {"inner_steps": 2, "batch_sequences": 2, "schedule": "constant"},
        }  # fmt: skip
        small: dict[str, Any] = {"heldout_limit": 4, "screening_sequences": 4, "sequence_length": 32, "port": 0}
        return RunSettings(preset="tiny", data=str(corpus), codec="eight_bits", **small, engine={**table, **engine})

    return make


@pytest.fixture
async def feeding_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., RunSettings]
) -> AsyncIterator[Swarm]:
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())
    async with served(Swarm(await asyncio.to_thread(init_run, tmp_path / "run", settings()), tmp_path)) as made:
        yield made


def state_of(run: RunFolder) -> EngineState:
    journal = Journal.open(run.journal_path, writable=False)
    try:
        return load_engine(journal, run.draw_secret(), only_read=True)[0].state
    finally:
        journal.close()


def weights(run: RunFolder, version: int) -> Flat:
    versions = Versions(run.root / "versions", run.artifacts().blocks, run.layout())
    digest = versions.manifest_digest(Version(version))
    assert digest is not None
    blocks = versions.load_blocks(versions.manifest(digest))
    return {submission_name(block, name): one for block, tensors in blocks.items() for name, one in tensors.items()}


async def test_a_worker_that_starts_again_goes_on_with_what_it_had_lost(feeding_back: Swarm) -> None:
    """First weights, less all that was computed, are the last weights less what the worker still has to send."""
    swarm, run = feeding_back, feeding_back.folder
    first = weights(run, 0)
    leases: dict[LeaseId, Lease] = {}
    computed: dict[LeaseId, Flat] = {}

    def note(lease: Lease, result: LeaseResult) -> LeaseResult:
        leases[lease.lease_id] = lease
        computed[lease.lease_id] = {
            submission_name(block, name): one.clone()
            for block, tensors in result.pseudo_gradient.items()
            for name, one in tensors.items()
        }
        return result

    agent, recorder, task = swarm.agent(trainer_hook=note)
    await recorder.saw("uploaded", 2)
    agent.leave("to be started again")
    await asyncio.wait_for(task, 30)
    await asyncio.to_thread(agent.wait_for_thread, 10.0)
    _, recorder, task = swarm.agent(trainer_hook=note)
    assert (await asyncio.wait_for(task, 60)).exit_code == EXIT_OK
    await swarm.stop()

    state = state_of(run)
    counted = [one for one in state.leases.values() if one.status is LeaseStatus.ACCEPTED]
    assert (state.version, len(counted)) == (4, 4)
    assert [one.residual_age for one in counted] == [0, 1, 2, 3]
    assert all(one.codec == "eight_bits" for one in counted)
    for before, after in itertools.pairwise(counted):
        assert after.lease.residuals == leases[after.lease.lease_id].residuals == before.residuals_out
        assert after.residuals_in == before.residuals_out
    (worker,) = state.workers.values()
    outbox, left = next((swarm.root / "home").rglob("outbox")), Flat()
    for block, digest in worker.residuals.items():
        specs = block_tensor_specs(run.layout(), block)
        found = decode_tensors((outbox / f"{digest}.residual").read_bytes(), specs, FP32)
        left |= {submission_name(block, name): one for name, one in found.items()}
    last = weights(run, 4)
    for name, weight in first.items():
        wanted = weight - sum(computed[one.lease.lease_id][name] for one in counted)
        assert torch.allclose(last[name] - left[name], wanted, rtol=0.0, atol=1e-6), name
    assert any(float(one.abs().max()) > 1e-5 for one in left.values()), "it was no trifle"


def breaking_openings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[LeaseId, Digest], int]]:
    """The lease, the digest and the first byte of each stream of a residual, none of which brings a second frame."""
    offsets: list[tuple[tuple[LeaseId, Digest], int]] = []
    receive, open_ = Transfers._receive, Transfers._open

    async def opening(self: Transfers, session: Any, header: pb.UploadHeader, *rest: Any) -> pb.UploadReply:
        offsets.append(((LeaseId(header.lease_id), Digest(header.digest.hex())), header.offset))
        return await open_(self, session, header, *rest)

    async def receiving(
        self: Transfers, session: Any, lease_id: LeaseId, reader: FrameReader, upload: Any, frames: Any, patience: Any
    ) -> None:
        if not any(digest == reader.digest for (_, digest), _ in offsets):
            return await receive(self, session, lease_id, reader, upload, frames, patience)
        upload.write(reader.feed(await anext(frames)))
        if not reader.complete:
            raise Unavailable("the line is cut")
        return None

    monkeypatch.setattr(Transfers, "_open", opening)
    monkeypatch.setattr(Transfers, "_receive", receiving)
    return offsets


async def test_an_audit_opens_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., RunSettings]
) -> None:
    """Each of a newcomer's leases is computed again, by the coordinator, and counts only then. Every line that brings a
    residual breaks at the second frame that it brings, more often than a worker is asked in vain.
    """
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())
    for module in (framing, file_frames):
        monkeypatch.setattr(module, "FRAME_BYTES", FRAME)
    offsets = breaking_openings(monkeypatch)
    run = await asyncio.to_thread(init_run, tmp_path / "run", settings(audits={"budget": 9.0}))
    swarm = Swarm(run, tmp_path)
    server = swarm.server = CoordinatorServer(run, replay=replay_lease(run.layout(), threads=1))
    await server.start()
    (swarm.link,) = await server.create_invites()
    try:
        _, recorder, task = swarm.agent()
        assert (await asyncio.wait_for(task, 60)).exit_code == EXIT_OK
    finally:
        await swarm.stop()
    state = state_of(run)
    (worker,) = state.workers.values()
    assert (state.version, worker.audits_passed, worker.accepted) == (4, 4, 4)
    results = [result for record in state.leases.values() for result in record.audits]
    assert len(results) == 4
    assert max(max(one.trunk, one.columns) for one in results) < 1e-3
    opened = {
        (record.lease.lease_id, digest)
        for record in state.leases.values()
        for digest in {*record.residuals_in, *record.residuals_out} - {""}
    }
    assert len(recorder.texts("opened")) == len(opened)
    assert {key for key, _ in offsets} == opened
    for key in opened:
        sizes = [offset for one, offset in offsets if one == key]
        assert sizes == [FRAME * count for count in range(len(sizes))], "each goes on where the one before broke"
    assert max(offset for _, offset in offsets) > MOST_ASKED * FRAME
    kept = {path.name for path in (run.root / "artifacts").rglob("*")}
    assert not kept & {digest for record in state.leases.values() for digest in record.residuals_out}


def commit_of(lease: Lease, **changes: Any) -> pb.CommitSubmissionRequest:
    blocks = len(lease.blocks)
    honest = {
        "residuals_in": [""] * blocks,
        "residuals_out": ["a" * 64] * blocks,
        "residuals_back": ["b" * 64] * blocks,
    }
    return pb.CommitSubmissionRequest(codec=lease.codec, **{**honest, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"residuals_in": []}, "residuals_in names 3 blocks"),
        ({"residuals_out": ["a" * 64] * 4}, "residuals_out names 3 blocks"),
        ({"residuals_out": ["a" * 64, "", "a" * 64]}, "residuals_out holds something else"),
        ({"residuals_back": ["A" * 64] * 3}, "residuals_back holds something else"),
        ({"residuals_in": ["", "../../x", ""]}, "residuals_in holds something else"),
        ({"residuals_in": ["d" * 64, "", ""]}, "names other residuals"),
        ({"residuals_in": ["c" * 64, "", "c" * 64]}, "names other residuals"),
    ],
)
def test_a_commit_that_says_something_else_than_the_lease_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: Any, words: str
) -> None:
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())
    named = (Digest("c" * 64), Digest("d" * 64), Digest(""))
    lease = changed_lease(read_lease(lease_message()), codec="eight_bits", residuals=named)
    check_residuals(lease, commit_of(lease))
    check_residuals(lease, commit_of(lease, residuals_in=[named[0], "", ""]))
    with pytest.raises(FinalRefusal, match=words):
        check_residuals(lease, commit_of(lease, **changes))


def test_a_codec_that_keeps_nothing_takes_no_residuals() -> None:
    lease = read_lease(lease_message())
    check_residuals(lease, pb.CommitSubmissionRequest(codec="fp32"))
    with pytest.raises(FinalRefusal, match="residuals_in names 0 blocks in fp32, got 3"):
        check_residuals(lease, commit_of(lease))
    assert lease.blocks[0] == BlockId("trunk")


def test_a_worker_is_asked_again_as_long_as_more_has_come() -> None:
    """Three times where nothing comes of it, of each residual; every byte that came is worth another."""
    state = asked_for_two("a")
    here: dict[Digest, int] = {}
    openings, worker = Openings(lambda _, digest: here.get(digest, 0)), WorkerId("a")
    first, second = (digest for _, digest in openings.wanted(state, worker))
    for _ in range(MOST_ASKED):
        assert [one.offset for one in openings.ask(worker, openings.wanted(state, worker))] == [0, 0]
    assert openings.wanted(state, worker) == []
    for come in (10, 20, 30, 40, 50):
        here[first] = come
        ((_, digest),) = wanted = openings.wanted(state, worker)
        assert digest == first
        (asked,) = openings.ask(worker, wanted)
        assert (asked.digest, asked.offset) == (first, come)
    for _ in range(MOST_ASKED - 1):
        openings.ask(worker, openings.wanted(state, worker))
    here[second] = 0
    assert openings.wanted(state, worker) == []
    here[first] = 49
    assert openings.wanted(state, worker) == [], "fewer than there were"


def asked_for_two(name: str) -> EngineState:
    s = audited(name, "b")
    deliver(s, name)
    state = s.engine.state
    assert len(asked_of(state, WorkerId(name))) == 2
    assert {digest for _, digest in needed_by(state).openings} == {
        digest for _, digest in asked_of(state, WorkerId(name))
    }
    return state
