"""The service over real loopback TLS: who gets in, what is answered, and what a restart keeps."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from coordinator.engine.phases import LeaseStatus
from coordinator.runfolder import RunFolder
from coordinator.server import CoordinatorServer
from protocol.framing import FrameReader, frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, Digest
from protocol.joinlink import JoinLink
from protocol.manifest import Manifest, verify_manifest
from protocol.sequences import decode_sequences
from protocol.signing import CallSigner
from protocol.tls import fetch_ca, manifest_key_message, verify_vouch
from protocol.v1 import barnraise_pb2 as pb

SERVICE = "/barnraise.protocol.v1.Coordinator/"
Join = Callable[..., Any]
Code = grpc.StatusCode


class Refusal:
    """Expects a gRPC status and a sentence that contains the given words."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        self._code, self._words = code, words

    async def of(self, call: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is self._code, caught.value.details()
        assert self._words in (caught.value.details() or "")


# ---- getting in -------------------------------------------------------------------------------------------------


async def test_join_link_leads_to_the_ca_and_enrolment_vouches_for_the_manifest_key(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    client = await join(enrolled=False)
    link = client.link
    ca_pem = await asyncio.to_thread(fetch_ca, link.host, link.port, link.fingerprint, 5.0)
    assert ca_pem.strip() == run.authority().cert_pem.strip()
    reply = await client.enrol()
    assert reply.worker_id == client.identity.worker_id
    verify_vouch(ca_pem, manifest_key_message(reply.run_id, reply.manifest_public_key), reply.manifest_key_vouch)


async def test_an_invite_binds_to_its_first_key_which_may_ask_again(
    run: RunFolder, server: CoordinatorServer, join: Join
) -> None:
    client = await join(enrolled=False)
    first = await client.enrol()
    again = await client.enrol()
    assert (again.worker_id, again.run_id, again.trusted) == (first.worker_id, first.run_id, first.trusted)
    thief = type(client)(client.link, run)
    await Refusal(Code.FAILED_PRECONDITION, "used by another key").of(thief.enrol())
    await Refusal(Code.UNAUTHENTICATED, "not one of this run's").of(thief.enrol(invite="A" * 22))
    await thief.close()


async def test_a_machine_too_small_keeps_its_invite(join: Join) -> None:
    client = await join(enrolled=False)
    small = pb.Capability(device="cpu", memory_bytes=1 << 20)
    await Refusal(Code.FAILED_PRECONDITION, "offer more memory").of(client.enrol(capability=small))
    await client.enrol()


async def test_another_protocol_version_is_told_who_must_update(join: Join) -> None:
    client = await join(enrolled=False)
    await Refusal(Code.FAILED_PRECONDITION, "update the coordinator's").of(client.enrol(protocol_version=99))


async def test_a_key_that_is_not_enrolled_gets_no_session(join: Join) -> None:
    client = await join(enrolled=False)
    await Refusal(Code.UNAUTHENTICATED, "join with an invite").of(client.open())


async def test_session_describes_the_run(run: RunFolder, join: Join) -> None:
    client = await join()
    description = (await client.open()).run
    assert description.run_id == run.run_id
    assert description.sequence_length == 32
    assert description.dataset_digest == run.dataset().digest
    assert description.max_block_bytes > 0


# ---- signatures, counters, sessions -----------------------------------------------------------------------------


async def test_a_replayed_counter_is_refused(join: Join) -> None:
    client = await join()
    request = pb.HeartbeatRequest()
    metadata = client.signer.metadata(SERVICE + "Heartbeat", request.SerializeToString())
    await client.call("Heartbeat", request, pb.HeartbeatReply, metadata=metadata)
    again = client.call("Heartbeat", request, pb.HeartbeatReply, metadata=metadata)
    await Refusal(Code.UNAUTHENTICATED, "was used before").of(again)


async def test_a_forged_signature_is_refused_and_spends_no_counter(join: Join) -> None:
    client = await join()
    victim = client.signer
    session_id = dict(victim.metadata(SERVICE + "Heartbeat", b""))["barnraise-session-bin"]
    client.signer = CallSigner(PrivateIdentity.generate(), session_id, audience=client.audience)
    await Refusal(Code.UNAUTHENTICATED, "signature").of(
        client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)
    )
    client.signer = CallSigner(client.identity, session_id, audience=client.audience)
    await client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)


async def test_a_signature_for_another_body_method_or_coordinator_is_refused(join: Join) -> None:
    client = await join()
    for method, body in (("Heartbeat", b"\x12\x00"), ("GetManifest", b"")):
        metadata = client.signer.metadata(SERVICE + method, body)
        call = client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply, metadata=metadata)
        await Refusal(Code.UNAUTHENTICATED, "signature").of(call)
    client.signer = CallSigner(client.identity, secrets.token_bytes(16), audience=b"another")
    await Refusal(Code.UNAUTHENTICATED, "not open").of(
        client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)
    )


async def test_an_unsigned_call_and_a_call_without_session_are_refused(join: Join) -> None:
    client = await join()
    unsigned = client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply, metadata=())
    await Refusal(Code.UNAUTHENTICATED, "not signed").of(unsigned)
    client.signer = CallSigner(client.identity, audience=client.audience)
    no_session = client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)
    await Refusal(Code.UNAUTHENTICATED, "OpenSession").of(no_session)


async def test_a_new_session_replaces_the_old_and_ends_its_long_poll(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    await client.commit(lease, submission(run, lease))  # nothing more to lease until its bytes are here
    old_signer = client.signer
    poll = asyncio.ensure_future(client.acquire(wait_s=20.0))
    while server.status().workers[0].state == "uploading" and not waiting(server):
        await asyncio.sleep(0)
    await client.open()
    await Refusal(Code.UNAUTHENTICATED, "ended").of(poll)
    client.signer = old_signer
    await Refusal(Code.UNAUTHENTICATED, "not open").of(
        client.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)
    )


def waiting(server: CoordinatorServer) -> bool:
    assert server._run is not None
    return any(worker.waiting_since_s for worker in server._run.pump.engine.state.workers.values())


async def test_a_long_poll_is_capped_and_says_why(
    run: RunFolder, join: Join, submission: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.service.MAX_WAIT_S", 0.05)
    client = await join()
    lease = (await client.acquire()).lease
    await client.commit(lease, submission(run, lease))
    reply = await client.acquire(wait_s=1e9)
    assert reply.WhichOneof("outcome") == "wait"
    assert reply.wait.reason


async def test_a_worker_is_not_the_operator(join: Join) -> None:
    client = await join()
    call = client.call(
        "GetStatus", pb.GetStatusRequest(), pb.GetStatusReply, service="/barnraise.protocol.v1.Operator/"
    )
    await Refusal(Code.UNAUTHENTICATED, "operator").of(call)


async def test_health_is_served(join: Join) -> None:
    client = await join(enrolled=False)
    for service in ("", "barnraise.protocol.v1.Coordinator"):
        body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        reply = await client.channel.unary_unary("/grpc.health.v1.Health/Check")(body, timeout=5.0)
        assert health_pb2.HealthCheckResponse.FromString(reply).status == health_pb2.HealthCheckResponse.SERVING


async def test_bytes_that_are_no_request_are_the_callers_fault(join: Join) -> None:
    client = await join()
    method, body = SERVICE + "Heartbeat", b"\xff\xff\xff"
    call = client.channel.unary_unary(method)(body, timeout=5.0, metadata=client.signer.metadata(method, body))
    await Refusal(Code.INVALID_ARGUMENT, "HeartbeatRequest").of(call)


# ---- leases, data, blocks ---------------------------------------------------------------------------------------


async def test_lease_data_is_exactly_what_the_lease_names_and_only_for_its_worker(run: RunFolder, join: Join) -> None:
    client, other = await join(), await join()
    lease = (await client.acquire()).lease
    frames = await client.download(pb.DownloadRequest(lease_data=lease.lease_id))
    payload = b"".join(frame[16:] for frame in frames)
    dataset = run.dataset()
    rows = decode_sequences(payload, lease.data.count, 33, dataset.vocab_size)
    expected = dataset.sequences(lease.data.seed, lease.data.start, lease.data.count, 32)
    assert (rows == expected).all()
    await Refusal(Code.FAILED_PRECONDITION, "not one of this worker's").of(
        other.download(pb.DownloadRequest(lease_data=lease.lease_id))
    )


async def test_every_block_of_the_signed_manifest_downloads_and_resumes(run: RunFolder, join: Join) -> None:
    client = await join()
    reply = await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply)
    verify_manifest(run.manifest_identity().public_key, reply.manifest_json, reply.signature)
    manifest = Manifest.from_json(reply.manifest_json)
    assert set(manifest.blocks) == set(run.layout().blocks)
    ref = manifest.blocks[TRUNK]
    request = pb.DownloadRequest(block_digest=bytes.fromhex(ref.digest))
    reader, first = FrameReader(ref.payload_bytes, ref.digest), bytearray()
    for frame in await client.download(request):
        first += reader.feed(frame)
    reader.finish()
    request.offset = 1000
    resumed = FrameReader(ref.payload_bytes, ref.digest, 1000)
    resumed.skip(bytes(first[:1000]))
    for frame in await client.download(request):
        resumed.feed(frame)
    resumed.finish()
    request.offset = ref.payload_bytes + 1
    await Refusal(Code.INVALID_ARGUMENT, "byte").of(client.download(request))
    unknown = pb.DownloadRequest(block_digest=b"\0" * 32)
    await Refusal(Code.FAILED_PRECONDITION, "not kept").of(client.download(unknown))


async def test_the_same_lease_is_given_again_until_it_is_returned(join: Join, server: CoordinatorServer) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    assert (await client.acquire()).lease.lease_id == lease.lease_id
    returned = pb.ReturnLeaseRequest(lease_id=lease.lease_id, reason="leaving\x1b[31m")
    await client.call("ReturnLease", returned, pb.ReturnLeaseReply)
    await client.call("ReturnLease", returned, pb.ReturnLeaseReply)
    assert server.status().leases_returned == 1
    beat = pb.HeartbeatRequest(lease_id=lease.lease_id)
    reply = await client.call("Heartbeat", beat, pb.HeartbeatReply)
    assert [cancelled.lease_id for cancelled in reply.cancelled] == [lease.lease_id]
    assert "\x1b" not in reply.cancelled[0].reason


# ---- submissions ------------------------------------------------------------------------------------------------


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
    status = server.status()
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

    partial = await client.upload(lease, payload, frames=first_frame_only)
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

    await Refusal(Code.DATA_LOSS, "digest").of(client.upload(lease, payload, frames=wrong_bytes))
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete


async def test_commitments_are_checked_before_anything_is_sent(
    run: RunFolder, join: Join, submission: Callable[..., bytes]
) -> None:
    client, other = await join(), await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await Refusal(Code.INVALID_ARGUMENT, "encoded in fp32").of(client.commit(lease, payload, codec="bf16"))
    await Refusal(Code.INVALID_ARGUMENT, "bytes, got 7").of(client.commit(lease, payload, payload_bytes=7))
    await Refusal(Code.INVALID_ARGUMENT, "32 bytes").of(client.commit(lease, payload, digest=b"x"))
    await Refusal(Code.INVALID_ARGUMENT, "finite").of(client.commit(lease, payload, train_s=float("nan")))
    await Refusal(Code.FAILED_PRECONDITION, "not one of this worker's").of(other.commit(lease, payload))
    await Refusal(Code.FAILED_PRECONDITION, "commit to this digest").of(client.upload(lease, payload))


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
    assert server.status().submissions_rejected == {"malformed": 1}
    assert not list((run.root / "artifacts" / "payloads").glob("??/*"))


# ---- restart ----------------------------------------------------------------------------------------------------


async def test_a_restart_in_mid_upload_goes_on_with_the_same_lease_at_the_same_byte(
    run: RunFolder, submission: Callable[..., bytes], client_type: Any
) -> None:
    first = CoordinatorServer(run)
    port = await first.start()
    (link,) = await first.create_invites()
    client = client_type(JoinLink.parse(link), run)
    await client.enrol()
    await client.open()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)

    def two_frames() -> Any:
        from itertools import islice

        return islice(frames_of(lambda a, n: payload[a : a + n], len(payload)), 2)

    sent = await client.upload(lease, payload, frames=two_frames)
    assert not sent.complete
    bytes_up = first.status().bytes_up
    await first.stop(0.0)
    await client.close()

    second = CoordinatorServer(run)
    assert await second.start() == port
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()  # no new enrolment: membership is durable
    assert second.status().bytes_up >= bytes_up
    assert second._run is not None
    record = second._run.pump.engine.state.leases[lease.lease_id]
    assert record.status is LeaseStatus.COMMITTED
    offset = (await client.commit(lease, payload)).upload_offset
    assert offset == sent.received_bytes
    assert (await client.upload(lease, payload, offset=offset)).complete
    following = await client.acquire(wait_s=20.0)
    assert following.lease.round == lease.round + 1
    assert following.lease.base_version == 1
    await client.close()
    await second.stop(0.0)


async def test_a_restart_in_mid_lease_gives_the_same_lease(run: RunFolder, client_type: Any) -> None:
    first = CoordinatorServer(run)
    await first.start()
    (link,) = await first.create_invites()
    client = client_type(JoinLink.parse(link), run)
    await client.enrol()
    await client.open()
    lease = (await client.acquire()).lease
    await first.stop(0.0)
    await client.close()
    second = CoordinatorServer(run)
    await second.start()
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()
    again = (await client.acquire()).lease
    again.ttl_s = lease.ttl_s = 0.0
    assert again == lease
    await client.close()
    await second.stop(0.0)


async def test_bytes_that_were_whole_when_the_process_died_need_not_be_sent_again(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    run.artifacts().payloads.put(payload)  # what a crash between the rename and its event leaves
    assert (await client.commit(lease, payload)).upload_offset == len(payload)
    digest = Digest(hashlib.sha256(payload).hexdigest())
    assert server._run is not None
    assert server._run.pump.engine.state.leases[lease.lease_id].digest == digest
    assert (await client.acquire(wait_s=20.0)).lease.round == lease.round + 1


async def test_a_crash_loses_nothing_that_was_answered(
    run: RunFolder,
    server: CoordinatorServer,
    join: Join,
    submission: Callable[..., bytes],
    client_type: Any,
    tmp_path: Path,
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    shutil.copytree(run.root, tmp_path / "crashed")  # what a power cut leaves: nothing was closed or snapshot
    (tmp_path / "crashed" / "endpoint.json").unlink()
    survivor = CoordinatorServer(RunFolder.open(tmp_path / "crashed"))
    await survivor.start()
    (link,) = await survivor.create_invites()
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete
    assert (await client.acquire(wait_s=20.0)).lease.round == lease.round + 1
    await client.close()
    await survivor.stop(0.0)


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
