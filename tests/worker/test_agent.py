"""A worker against a real coordinator over loopback TLS: the whole way, broken lines, restarts, leaving."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import worker.client
import worker.train.training
from moe.rungs import Schedule
from protocol.arithmetic import arithmetic_class
from protocol.errors import Unavailable
from protocol.framing import frames_of
from protocol.limits import FRAME_BYTES
from protocol.receipt_files import checked_receipts
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import Gate
from worker.belongings import RECEIPTS_FILE
from worker.client import CoordinatorClient
from worker.messages import EXIT_OK, EXIT_REFUSED
from worker.pauses import Pauses
from worker.sentences import finished
from worker.train.trainer import train_shard


async def finish(task: asyncio.Task[Any]) -> Any:
    async with asyncio.timeout(30):
        return await task


async def test_joins_trains_and_ends_with_the_run(swarm: Any) -> None:
    _, recorder, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    assert "accepted" in recorder.texts("submission_accepted")[0]
    assert recorder.steps == [1, 2]
    assert not list((swarm.root / "home").rglob("submission.json"))
    (receipts,) = (swarm.root / "home").rglob(RECEIPTS_FILE)
    found = checked_receipts(receipts.read_bytes())
    assert found.fingerprint == swarm.folder.authority().fingerprint
    assert ([one.round for one in found.receipts], found.wrong) == ([1], ())


@pytest.mark.parametrize("by_layers", [False, True])
async def test_how_it_cut_its_batches_is_told(swarm: Any, monkeypatch: pytest.MonkeyPatch, by_layers: bool) -> None:
    monkeypatch.setattr(worker.train.training, "schedule_that_fits", lambda *_: Schedule(1, by_layers=by_layers))
    _, _, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    leases = swarm.server._run.pump.engine.state.leases.values()
    assert [record.micro_batch for record in leases if record.verdict] == [1]


@pytest.mark.parametrize("recut", [False, True])
async def test_in_which_arithmetic_it_computed_is_told(
    swarm: Any, monkeypatch: pytest.MonkeyPatch, recut: bool
) -> None:
    """One whose batches were cut otherwise half way has no class: nobody could compute that again."""

    def train(*given: Any, **how: Any) -> Any:
        return dataclasses.replace(train_shard(*given, **how), recut=recut)

    monkeypatch.setattr(worker.train.training, "train_shard", train)
    _, _, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    leases = swarm.server._run.pump.engine.state.leases.values()
    (said,) = [record.arithmetic for record in leases if record.verdict]
    assert said == "" if recut else arithmetic_class(said) is not None


async def test_a_second_start_is_enrolled_already(swarm: Any, gate: Gate) -> None:
    agent, recorder, task = swarm.agent(batch_hook=gate)
    await recorder.saw("fetched")
    agent.leave("SIGTERM received")
    await finish(task)
    gate.opened.set()
    _, second, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    assert second.texts("enrolled") == []


async def test_a_used_invite_is_refused_with_the_reason(swarm: Any) -> None:
    _, recorder, _ = swarm.agent("first")
    await recorder.saw("enrolled")
    _, _, task = swarm.agent("second")
    ended = await finish(task)
    assert ended.exit_code == EXIT_REFUSED
    assert "invite" in ended.reason


async def test_training_goes_on_across_a_coordinator_restart(swarm: Any, gate: Gate) -> None:
    _, recorder, task = swarm.agent(batch_hook=gate)
    first = await recorder.saw("lease_granted")
    await asyncio.to_thread(gate.reached.wait, 20)
    await swarm.stop()
    await swarm.start()
    assert await recorder.saw("lease_granted", 2) == first
    gate.opened.set()
    assert (await finish(task)).exit_code == EXIT_OK
    assert len(recorder.texts("session_opened")) == 2
    assert len(recorder.texts("fetched")) == 1, "the shard was there already"
    assert len(recorder.texts("submission_accepted")) == 1


async def test_unsent_work_is_sent_by_the_next_process(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_line(*_: Any) -> Any:
        raise Unavailable("no line")

    with monkeypatch.context() as patch:
        patch.setattr(CoordinatorClient, "upload", no_line)
        agent, recorder, task = swarm.agent()
        await recorder.saw("upload_broken")
        agent.leave("SIGTERM received")
        ended = await finish(task)
        assert "finished work is kept on this disk" in finished(ended, "h:1")
    _, recorder, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    assert recorder.texts("trained") == []
    assert len(recorder.texts("uploaded")) == 1
    assert len(recorder.texts("submission_accepted")) == 1


@pytest.mark.parametrize("how", ["ends early", "cannot be read"])
async def test_a_broken_upload_resumes_at_its_offset(swarm: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    offsets: list[int] = []

    def breaking(read: Any, size: int, offset: int, _frame_bytes: Any) -> Iterator[bytes]:
        offsets.append(offset)
        for frame in frames_of(read, size, offset):
            yield frame
            if len(offsets) == 1:
                if how == "cannot be read":
                    raise OSError("the disk went away")
                return

    monkeypatch.setattr(worker.client, "frames_of", breaking)
    _, recorder, task = swarm.agent(pauses=Pauses(upload_s=0.01))
    assert (await finish(task)).exit_code == EXIT_OK
    assert len(offsets) == 2
    if how == "ends early":
        assert offsets == [0, FRAME_BYTES]
    assert len(recorder.texts("submission_accepted")) == 1


async def test_leaving_hands_the_lease_back_even_in_mid_step(swarm: Any, gate: Gate) -> None:
    agent, _, task = swarm.agent(batch_hook=gate)
    await asyncio.to_thread(gate.reached.wait, 20)
    agent.leave("SIGTERM received")
    async with asyncio.timeout(2):
        ended = await task
    assert ended.exit_code == EXIT_OK
    assert not agent.wait_for_thread(0.0), "the step was still going on"
    assert ended.reason == "the lease is handed back"


async def test_leaving_while_the_coordinator_is_away_takes_no_longer(swarm: Any, gate: Gate) -> None:
    agent, _, task = swarm.agent(batch_hook=gate)
    await asyncio.to_thread(gate.reached.wait, 20)
    await swarm.stop()
    agent.leave("SIGTERM received")
    async with asyncio.timeout(2):
        assert (await task).exit_code == EXIT_OK


async def test_a_damaged_block_is_refused_and_told(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CoordinatorClient._frames

    async def flipped(self: Any, request: Any, size: int) -> AsyncIterator[bytes]:
        async for frame in real(self, request, size):
            yield frame[:-1] + bytes([frame[-1] ^ 1]) if request.WhichOneof("resource") == "block_digest" else frame

    monkeypatch.setattr(CoordinatorClient, "_frames", flipped)
    _, recorder, _ = swarm.agent()
    assert "not what the run has signed" in await recorder.saw("note")
    assert "digest" in dict(recorder.details)["note"]
    kept = [path for path in (swarm.root / "home").rglob("blocks/*") if path.suffix != ".part"]
    assert kept == [], "nothing of it became a block"


async def test_a_broken_download_resumes(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CoordinatorClient.block
    asked: list[tuple[str, int]] = []

    async def breaking(self: Any, digest: Any, size: int, offset: int) -> AsyncIterator[bytes | memoryview]:
        asked.append((digest, offset))
        is_first = len(asked) == 1
        async for piece in real(self, digest, size, offset):
            if is_first:
                yield piece[: 16 * 1024]
                raise Unavailable("the line broke")
            yield piece

    monkeypatch.setattr(CoordinatorClient, "block", breaking)
    _, recorder, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    broken = asked[0][0]
    assert [offset for digest, offset in asked if digest == broken] == [0, 16 * 1024]
    assert "cannot be reached" in recorder.texts("unavailable")[0]
    assert dict(recorder.details)["unavailable"] == "the line broke"


async def test_the_coordinators_reason_to_wait_is_shown(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CoordinatorClient.acquire_lease
    asked: list[float] = []

    async def waiting_once(self: Any, wait_s: float) -> Any:
        asked.append(wait_s)
        if len(asked) == 1:
            return pb.AcquireLeaseReply(wait=pb.Wait(reason="column 5: 2 of 3\nreplicas", retry_after_s=0.01))
        return await real(self, wait_s)

    monkeypatch.setattr(CoordinatorClient, "acquire_lease", waiting_once)
    _, recorder, task = swarm.agent()
    assert (await finish(task)).exit_code == EXIT_OK
    assert recorder.texts("waiting")[0] == "waiting: column 5: 2 of 3 replicas"
    assert asked[0] > 0, "a long poll"


async def test_a_cancelled_lease_stops_at_the_next_heartbeat(swarm: Any, gate: Gate, monkeypatch: Any) -> None:
    real = CoordinatorClient.heartbeat
    cancelled: list[str] = []

    async def cancelling(self: Any, request: pb.HeartbeatRequest, timeout_s: float) -> pb.HeartbeatReply:
        reply = await real(self, request, timeout_s)
        if request.lease_id and gate.reached.is_set() and not cancelled:
            cancelled.append(request.lease_id)
            reply.cancelled.add(lease_id=request.lease_id, reason="the round closed without it")
        return reply

    monkeypatch.setattr(CoordinatorClient, "heartbeat", cancelling)
    _, recorder, task = swarm.agent(batch_hook=gate)
    assert "the round closed without it" in await recorder.saw("note")
    await recorder.saw("lease_granted", 2)
    gate.opened.set()
    assert (await finish(task)).exit_code == EXIT_OK
    assert len(recorder.texts("trained")) == 1, "the stopped training left nothing behind"


async def test_training_goes_on_past_the_deadline_that_was_told_until_the_coordinator_says_otherwise(
    swarm: Any, gate: Gate
) -> None:
    """A coordinator that was away moves deadlines: only it knows them."""
    agent, recorder, task = swarm.agent(batch_hook=gate)
    await recorder.saw("lease_granted")
    await asyncio.to_thread(gate.reached.wait, 20)
    agent._on_deadline(agent._session.lease_id)
    gate.opened.set()
    assert (await finish(task)).exit_code == EXIT_OK
    assert recorder.texts("note") == []
    assert "accepted" in recorder.texts("submission_accepted")[0]


async def test_a_hostile_lease_ends_the_worker_and_says_why(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CoordinatorClient.acquire_lease

    async def absurd(self: Any, wait_s: float) -> Any:
        reply = await real(self, wait_s)
        if reply.HasField("lease"):
            reply.lease.inner_steps = 2**31
        return reply

    monkeypatch.setattr(CoordinatorClient, "acquire_lease", absurd)
    _, _, task = swarm.agent()
    ended = await finish(task)
    assert ended.exit_code == EXIT_REFUSED
    assert "inner_steps" in ended.reason
