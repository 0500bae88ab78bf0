"""What a lease names, over real loopback TLS: its data, its blocks, and the lease itself asked for again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from protocol.framing import FrameReader
from protocol.ids import TRUNK
from protocol.manifest import Manifest, verify_manifest
from protocol.sequences import decode_sequences
from protocol.v1 import barnraise_pb2 as pb
from tests.served import Refusal

Join = Callable[..., Any]
Code = grpc.StatusCode


async def test_lease_data_is_exactly_what_the_lease_names_and_only_for_its_worker(run: RunFolder, join: Join) -> None:
    client, other = await join(), await join()
    lease = (await client.acquire()).lease
    frames = await client.download(lease_data=lease.lease_id)
    payload = b"".join(frame[16:] for frame in frames)
    dataset = run.dataset()
    rows = decode_sequences(payload, lease.data.count, 33, dataset.vocab_size)
    expected = dataset.sequences(lease.data.seed, lease.data.start, lease.data.count, 32)
    assert (rows == expected).all()
    await Refusal(Code.FAILED_PRECONDITION, "not one of this worker's").of(other.download(lease_data=lease.lease_id))


async def test_every_block_of_the_signed_manifest_downloads_and_resumes(run: RunFolder, join: Join) -> None:
    client = await join()
    reply = await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply)
    verify_manifest(run.manifest_identity().public_key, reply.manifest_json, reply.signature)
    manifest = Manifest.from_json(reply.manifest_json)
    assert set(manifest.blocks) == set(run.layout().blocks)
    ref = manifest.blocks[TRUNK]
    block = bytes.fromhex(ref.digest)
    reader, first = FrameReader(ref.payload_bytes, ref.digest), bytearray()
    for frame in await client.download(block_digest=block):
        first += reader.feed(frame)
    reader.finish()
    resumed = FrameReader(ref.payload_bytes, ref.digest, 1000)
    resumed.skip(bytes(first[:1000]))
    for frame in await client.download(block_digest=block, offset=1000):
        resumed.feed(frame)
    resumed.finish()
    beyond = client.download(block_digest=block, offset=ref.payload_bytes + 1)
    await Refusal(Code.INVALID_ARGUMENT, "byte").of(beyond)
    await Refusal(Code.FAILED_PRECONDITION, "not kept").of(client.download(block_digest=b"\0" * 32))


async def test_the_same_lease_is_given_again_until_it_is_returned(join: Join, server: CoordinatorServer) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    assert (await client.acquire()).lease.lease_id == lease.lease_id
    returned = pb.ReturnLeaseRequest(lease_id=lease.lease_id, reason="leaving\x1b[31m")
    await client.call("ReturnLease", returned, pb.ReturnLeaseReply)
    await client.call("ReturnLease", returned, pb.ReturnLeaseReply)
    assert (await server.status()).leases_returned == 1
    beat = pb.HeartbeatRequest(lease_id=lease.lease_id)
    reply = await client.call("Heartbeat", beat, pb.HeartbeatReply)
    assert [cancelled.lease_id for cancelled in reply.cancelled] == [lease.lease_id]
    assert "\x1b" not in reply.cancelled[0].reason
    both = pb.HeartbeatRequest(lease_id="r9.9", sending_lease_id=lease.lease_id)
    reply = await client.call("Heartbeat", both, pb.HeartbeatReply)
    assert [cancelled.lease_id for cancelled in reply.cancelled] == ["r9.9", lease.lease_id]
