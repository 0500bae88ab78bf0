"""Submissions over real loopback TLS: commitments, uploads that break and go on, and a whole run of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import grpc

from coordinator.edge.server import CoordinatorServer
from coordinator.engine.events import RunStopped
from coordinator.run.folder import RunFolder
from protocol.errors import IllegalEvent
from protocol.framing import frames_of
from protocol.ids import LeaseId, digest_of
from protocol.limits import FRAME_BYTES
from protocol.manifest import Manifest
from protocol.v1 import barnraise_pb2 as pb
from tests.served import SERVICE, Refusal

Join = Callable[..., Any]
Code = grpc.StatusCode


async def test_a_whole_run_with_one_worker_ends_in_checkpoints(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    for seed in range(2):
        lease = (await client.acquire()).lease
        payload = submission(run, lease, seed=seed)
        assert (await client.commit(lease, payload)).upload_offset == 0
        assert (await client.upload(lease, payload)).complete
    over = await client.acquire(wait_s=20.0)
    assert over.WhichOneof("outcome") == "over"
    assert [verdict.outcome for verdict in over.verdicts][-1] == pb.Verdict.ACCEPTED
    await asyncio.wait_for(server.finished(), 10.0)
    status = await server.status()
    assert status.over
    assert status.version == 2
    assert [record.version for record in status.history] == [1, 2]
    assert [validation.version for validation in status.validations] == [0, 1, 2]
    assert status.submissions_accepted == 2
    assert status.bytes_up > 2 * len(payload)
    assert sorted(path.name for path in run.checkpoints.iterdir())[-1] == "version-000002"
    latest = await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply)
    assert Manifest.from_json(latest.manifest_json).tokens_trained == 2 * 4 * 32
    first = await client.call("GetManifest", pb.GetManifestRequest(version=0), pb.GetManifestReply)
    assert Manifest.from_json(first.manifest_json).version == 0
    assert run.events_path.read_text().count('"RoundAggregated"') == 2


async def test_an_upload_breaks_and_resumes_where_it_broke(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    half = 512 * 1024

    def first_frame_only() -> Any:
        yield next(frames_of(lambda a, n: payload[a : a + n], len(payload)))

    partial = await client.upload(lease, payload, frames=first_frame_only())
    assert (partial.received_bytes, partial.complete) == (half, False)
    offset = (await client.commit(lease, payload)).upload_offset
    assert offset == half
    beyond = client.upload(lease, payload, offset=offset + 1)
    await Refusal(Code.UNAVAILABLE, "commit again").of(beyond)
    assert (await client.upload(lease, payload, offset=offset)).complete
    assert (await client.upload(lease, payload, offset=0)).complete
    assert (await client.commit(lease, payload)).upload_offset == len(payload)


async def test_a_payload_that_is_not_what_was_committed_starts_anew(
    run: RunFolder, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload, other = submission(run, lease), submission(run, lease, seed=1)
    await client.commit(lease, payload)

    def wrong_bytes() -> Any:
        return frames_of(lambda a, n: other[a : a + n], len(other))

    await Refusal(Code.DATA_LOSS, "digest", final=True).of(client.upload(lease, payload, frames=wrong_bytes()))
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete


async def test_bytes_that_were_damaged_here_are_sent_once_more_from_the_start(
    run: RunFolder, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    half = FRAME_BYTES
    partial = run.artifacts()._upload_path(LeaseId(lease.lease_id), digest_of(payload))
    partial.write_bytes(bytes(half))  # the power went before these bytes were on the disk; their number was
    again = (await client.commit(lease, payload)).upload_offset
    assert again == half
    resumed = client.upload(lease, payload, offset=again)
    await Refusal(Code.UNAVAILABLE, "from the start", final=False).of(resumed)
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete


async def test_commitments_are_checked_before_anything_is_sent(
    run: RunFolder, join: Join, submission: Callable[..., bytes]
) -> None:
    client, other = await join(), await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    never = {"code": Code.FAILED_PRECONDITION, "final": True}
    await Refusal(words="is encoded in fp32", **never).of(client.commit(lease, payload, codec="bf16"))
    await Refusal(words="bytes, got 7", **never).of(client.commit(lease, payload, payload_bytes=7))
    await Refusal(words="finite", **never).of(client.commit(lease, payload, train_s=float("nan")))
    await Refusal(words="not one of this worker's", **never).of(other.commit(lease, payload))
    await Refusal(Code.INVALID_ARGUMENT, "32 bytes", final=False).of(client.commit(lease, payload, digest=b"x"))
    # No frames: one that is on its way when the refusal comes can make gRPC report itself in place of it.
    refused = Refusal(Code.FAILED_PRECONDITION, "commit to this digest", final=False)
    await refused.of(client.upload(lease, payload, frames=[]))


async def test_a_commit_that_can_never_be_taken_is_refused_for_good(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    handed_back = (await client.acquire()).lease
    returned = pb.ReturnLeaseRequest(lease_id=handed_back.lease_id, reason="no")
    await client.call("ReturnLease", returned, pb.ReturnLeaseReply)
    never = {"code": Code.FAILED_PRECONDITION, "final": True}
    work = submission(run, handed_back)
    await Refusal(words="handed back", **never).of(client.commit(handed_back, work))
    not_yet = Refusal(Code.FAILED_PRECONDITION, "commit to this digest", final=False)
    await not_yet.of(client.upload(handed_back, work, frames=[]))
    lease = (await client.acquire()).lease
    await client.commit(lease, submission(run, lease))
    await Refusal(words="now brings", **never).of(client.commit(lease, submission(run, lease, seed=9)))
    opened = server._opened()
    await opened.pump.submit(RunStopped(at_s=opened.run_time(), reason="enough"))
    await asyncio.wait_for(opened.mailboxes.ended.wait(), 20.0)
    await Refusal(words="the run is over (", **never).of(client.commit(handed_back, work))


async def test_an_upload_whose_last_bytes_come_as_the_run_ends_is_refused_for_good(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes], monkeypatch: Any
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    opened = server._opened()

    async def ended_meanwhile(_: Any) -> None:
        opened.mailboxes.ended.set()
        raise IllegalEvent("SubmissionUploaded while the run is over; allowed in: training")

    monkeypatch.setattr(opened.pump, "submit", ended_meanwhile)
    await Refusal(Code.FAILED_PRECONDITION, "the run is over", final=True).of(client.upload(lease, payload))
    monkeypatch.undo()
    opened.mailboxes.ended.clear()
    assert (await client.upload(lease, payload)).complete, "the bytes are here"


async def test_a_non_finite_submission_is_refused_even_without_screening(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease, scale=float("inf"))
    await client.commit(lease, payload)
    await client.upload(lease, payload)
    for _ in range(200):
        reply = await client.commit(lease, payload)
        if reply.HasField("verdict"):
            break
        await asyncio.sleep(0.01)
    assert reply.verdict.outcome == pb.Verdict.REJECTED
    assert "not finite" in reply.verdict.reason
    assert (await server.status()).submissions_rejected == {"malformed": 1}
    assert not list((run.root / "artifacts" / "payloads").glob("??/*"))


async def test_a_newer_upload_takes_over_from_one_whose_connection_hangs(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    never = asyncio.Event()
    method = SERVICE + "Upload"
    digest = hashlib.sha256(payload).digest()
    header = pb.UploadHeader(
        lease_id=lease.lease_id, digest=digest, payload_bytes=len(payload), offset=0
    ).SerializeToString()

    async def hanging() -> Any:
        yield header
        yield next(frames_of(lambda a, n: payload[a : a + n], len(payload)))
        await never.wait()

    metadata = client.signer.metadata(method, header)
    hung = client.channel.stream_unary(method)(hanging(), timeout=20.0, metadata=metadata)
    offset = 0
    async with asyncio.timeout(10):
        while offset == 0:
            offset = (await client.commit(lease, payload)).upload_offset
    assert (await client.upload(lease, payload, offset=offset)).complete
    await Refusal(Code.UNAVAILABLE, "taken over").of(hung)
