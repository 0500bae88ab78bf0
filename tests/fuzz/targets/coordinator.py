"""What a coordinator reads from callers: every method, through the very handlers that gRPC is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from coordinator.edge.operator_client import OperatorClient
from coordinator.edge.server import HEALTH_SERVICE
from coordinator.edge.throttle import address_of
from coordinator.work.measured import sizes_of
from moe.layout import submission_specs
from protocol.codecs import FP32
from protocol.errors import RemoteError
from protocol.ids import digest_of
from protocol.limits import PROTOCOL_VERSION
from protocol.local_socket import Json, _object
from protocol.services import COORDINATOR_SERVICE, OPERATOR_SERVICE
from protocol.tensor_headers import payload_size
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import Aborted, finish
from tests.fuzz.mutate import (
    Mutate,
    after_head,
    joined,
    message_mutated,
    message_mutations,
    mutated,
    pieces_mutated,
    split,
)
from tests.fuzz.target import Target
from tests.fuzz.targets import standby
from tests.fuzz.targets.coordinator_world import NOW_S, world
from tests.fuzz.targets.protocol import PAYLOAD, frames, short_frames

PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
BEHIND = pb.Sharing(port=7000, certificate=b"c", peer_id=PEER, through=[f"{PEER}@192.0.2.1:7001"])
SENT_BYTES = 2 << 20
"""The tiny model's trunk is half a MiB, and is read a frame at a time."""


# ---- calls

KINDS: dict[str, type[Message]] = {
    "AcquireLease": pb.AcquireLeaseRequest,
    "ReturnLease": pb.ReturnLeaseRequest,
    "Heartbeat": pb.HeartbeatRequest,
    "CommitSubmission": pb.CommitSubmissionRequest,
    "GetManifest": pb.GetManifestRequest,
    "AnswerMeasure": pb.AnswerMeasureRequest,
    "ListReceipts": pb.ListReceiptsRequest,
    "Sources": pb.SourcesRequest,
    "Archive": pb.ArchiveRequest,
    "CreateInvite": pb.CreateInviteRequest,
    "GetStatus": pb.GetStatusRequest,
    "ListStatus": pb.ListStatusRequest,
    "StopRun": pb.StopRunRequest,
    "ChangeSetting": pb.ChangeSettingRequest,
    "ChangeStanding": pb.ChangeStandingRequest,
    "HoldRun": pb.HoldRunRequest,
    "Announce": pb.AnnounceRequest,
    "ListInvites": pb.ListInvitesRequest,
    "RevokeInvite": pb.RevokeInviteRequest,
    "ListOrders": pb.ListOrdersRequest,
    "Login": pb.LoginRequest,
    "Enrol": pb.EnrolRequest,
    "OpenSession": pb.OpenSessionRequest,
    "AskAudit": pb.AskAuditRequest,
    "Leave": pb.LeaveRequest,
    "RotateKey": pb.RotateKeyRequest,
    "Follow": pb.FollowRequest,
    "Fetch": pb.FetchRequest,
    "Check": health_pb2.HealthCheckRequest,
}
WORKERS = (
    "AcquireLease",
    "ReturnLease",
    "Heartbeat",
    "CommitSubmission",
    "GetManifest",
    "AnswerMeasure",
    "ListReceipts",
    "Sources",
    "Archive",
)
OPERATORS = (
    *("CreateInvite", "GetStatus", "ListStatus", "StopRun", "ChangeSetting", "ChangeStanding"),
    *("HoldRun", "Announce", "ListInvites", "RevokeInvite", "ListOrders", "Login"),
)
STRANGERS = ("Enrol", "OpenSession", "AskAudit", "Leave", "RotateKey", "Follow", "Fetch", "Check")


def _one_of(names: Sequence[str]) -> Mutate:
    """The first byte says which method; the rest is its request."""

    def mutate(random: Random, samples: Sequence[bytes]) -> bytes:
        sample = random.choice(samples)
        kind = KINDS[names[sample[0] % len(names)]]
        if random.random() < 0.5:
            return sample[:1] + message_mutated(random, kind, sample[1:])
        return after_head(mutated)(random, [sample])

    return mutate


def _headed(names: Sequence[str], requests: dict[str, list[Message]]) -> list[bytes]:
    return [
        bytes([number]) + request.SerializeToString() for number, name in enumerate(names) for request in requests[name]
    ]


def _worker_call(data: bytes) -> object:
    """In Maria's session, who has a lease; every other time in Jan's, who has committed to a submission."""
    there, head = world(), data[0] if data else 0
    method = f"/{COORDINATOR_SERVICE}/{WORKERS[head % len(WORKERS)]}"
    return there.call(method, there.jan if len(data) % 2 else there.maria, [data[1:]])


def _worker_calls() -> list[bytes]:
    there = world()
    lease = there.pump.engine.state.leases[there.marias].lease
    size = payload_size(submission_specs(there.run.layout, lease.columns), FP32)
    commits: list[Message] = [
        pb.CommitSubmissionRequest(
            lease_id=lease_id, digest=bytes(32), payload_bytes=size, codec="fp32", inner_steps_done=2, tokens=128,
            train_loss_first=5.0, train_loss_last=4.0, train_s=1.0, micro_batch=1,
        )
        for lease_id in (there.marias, there.jans)
    ]  # fmt: skip
    settings = there.run.settings
    before, after = sizes_of(there.item, there.run.dataset, settings.sequence_length, settings.heldout_limit)
    requests: dict[str, list[Message]] = {
        "AcquireLease": [pb.AcquireLeaseRequest(wait_s=30.0)],
        "ReturnLease": [pb.ReturnLeaseRequest(lease_id=lease, reason="enough") for lease in (there.marias, there.jans)],
        "Heartbeat": [pb.HeartbeatRequest(lease_id=there.marias, inner_step=1, train_loss=5.0, tokens_per_s=900.0)],
        "CommitSubmission": commits,
        "GetManifest": [pb.GetManifestRequest(version=0), pb.GetManifestRequest()],
        "AnswerMeasure": [
            pb.AnswerMeasureRequest(item_id=there.item.command_id, before=[5.0] * before, after=[4.0] * after),
            pb.AnswerMeasureRequest(item_id=there.item.command_id, error="no memory"),
            pb.AnswerMeasureRequest(item_id="measure:r9.9"),
        ],
        "ListReceipts": [pb.ListReceiptsRequest(), pb.ListReceiptsRequest(after=2**63)],
        "Sources": [
            pb.SourcesRequest(whole=True, wanted=[bytes(32)], got=[b"g" * 32], room=4, still_s=2.0),
            pb.SourcesRequest(node=PEER, relay=pb.RelayOffer(peer_id=PEER, port=7001), share=BEHIND),
            pb.SourcesRequest(taking=[bytes(32)], gone=[b"g" * 32], failed=[b"f" * 32], share=pb.Sharing(port=7000)),
        ],
        "Archive": [pb.ArchiveRequest(), pb.ArchiveRequest(held_version=1, held_manifest=bytes(32))],
    }
    return _headed(WORKERS, requests)


def _operator_call(data: bytes) -> object:
    there, head = world(), data[0] if data else 0
    try:
        return there.call(f"/{OPERATOR_SERVICE}/{OPERATORS[head % len(OPERATORS)]}", there.operator, [data[1:]])
    finally:
        with there.run.registry._write() as connection:
            connection.execute("DELETE FROM invites WHERE trusted = 1 OR expires_at_s != ?", (NOW_S + 60,))
            connection.execute("UPDATE invites SET revoked = 0")


def _operator_calls() -> list[bytes]:
    there = world()
    return _headed(
        OPERATORS,
        {
            "CreateInvite": [pb.CreateInviteRequest(trusted=True, expires_in_s=3600.0, count=2)],
            "GetStatus": [pb.GetStatusRequest()],
            "ListStatus": [
                pb.ListStatusRequest(),
                pb.ListStatusRequest(kind=pb.ListStatusRequest.ROUNDS, after="1", most=3, states=["idle"]),
            ],
            "StopRun": [pb.StopRunRequest(reason="enough")],
            "ChangeSetting": [pb.ChangeSettingRequest(key="quorum", value="2")],
            "ChangeStanding": [
                pb.ChangeStandingRequest(act=pb.ChangeStandingRequest.BAN, owner="nobody here", why="enough"),
                pb.ChangeStandingRequest(act=pb.ChangeStandingRequest.PARDON, worker="nobody"),
                pb.ChangeStandingRequest(act=pb.ChangeStandingRequest.ROLLBACK, invite="0" * 16),
            ],
            "HoldRun": [
                pb.HoldRunRequest(kind=pb.HoldRunRequest.DRAIN, why="enough"),
                pb.HoldRunRequest(kind=pb.HoldRunRequest.RESUME),
            ],
            "Announce": [pb.AnnounceRequest(text="hello"), pb.AnnounceRequest()],
            "ListInvites": [pb.ListInvitesRequest()],
            "RevokeInvite": [pb.RevokeInviteRequest(invite="0" * 16), pb.RevokeInviteRequest(invite=there.invite)],
            "ListOrders": [pb.ListOrdersRequest()],
            "Login": [pb.LoginRequest()],
        },
    )


def _stranger_call(data: bytes) -> object:
    there, head = world(), data[0] if data else 0
    name = STRANGERS[head % len(STRANGERS)]
    if name in standby.METHODS:
        return standby.call(there, name, [data[1:]])
    service = HEALTH_SERVICE if name == "Check" else COORDINATOR_SERVICE
    return there.call(f"/{service}/{name}", there.stranger, [data[1:]], keyed=True)


def _stranger_calls() -> list[bytes]:
    there = world()
    capability = pb.Capability(device="cpu", device_name="x", memory_bytes=8 << 30, tokens_per_s=9.0, software="s")
    who: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "public_key": there.stranger.public_key,
        "capability": capability,
    }
    return _headed(
        STRANGERS,
        {
            "Enrol": [pb.EnrolRequest(**who, invite=there.invite, name="a stranger")],
            "OpenSession": [pb.OpenSessionRequest(**who, nonce=bytes([number]) * 16) for number in range(50)],
            "AskAudit": [
                pb.AskAuditRequest(public_key=there.stranger.public_key, lease_id=lease) for lease in ("", "r1.1")
            ],
            "Leave": [
                pb.LeaveRequest(
                    public_key=there.stranger.public_key, nonce=bytes([number]) * 16, forget=number % 2 == 0
                )
                for number in range(50, 100)
            ],
            "RotateKey": [
                pb.RotateKeyRequest(
                    public_key=there.stranger.public_key,
                    nonce=bytes([number]) * 16,
                    new_public_key=bytes(32),
                    new_signature=bytes(64),
                )
                for number in range(100, 110)
            ],
            "Follow": [*standby.follows(there, range(110, 120))],
            "Fetch": [*standby.fetches(there, range(120, 130))],
            "Check": [health_pb2.HealthCheckRequest(service=service) for service in ("", COORDINATOR_SERVICE, "x")],
        },
    )


# ---- transfers


def _upload(data: bytes) -> object:
    """A header and its frames, where an earlier stream has brought 64 bytes."""
    there = world()
    store, digest = there.run.store, digest_of(PAYLOAD)
    store.drop_payload(digest)
    upload = store.open_upload(there.jans, digest, 0)
    upload.write(PAYLOAD[:64])
    upload.close()
    with short_frames():
        return there.call(f"/{COORDINATOR_SERVICE}/Upload", there.jan, split(data))


def _uploads() -> list[bytes]:
    there = world()
    samples = []
    for offset in (0, 64, 30):
        header = pb.UploadHeader(
            lease_id=there.jans, digest=bytes.fromhex(digest_of(PAYLOAD)), payload_bytes=len(PAYLOAD), offset=offset
        )
        samples.append(joined([header.SerializeToString(), *frames(PAYLOAD, offset)]))
    return samples


def _upload_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """A third of the time the header by its fields."""
    if random.random() < 0.67:
        return pieces_mutated(random, samples)
    header, *rest = split(random.choice(samples))
    return joined([message_mutated(random, pb.UploadHeader, header), *rest])


def _download(data: bytes) -> object:
    there = world()
    return there.call(f"/{COORDINATOR_SERVICE}/Download", there.maria, [data])


def _downloads() -> list[bytes]:
    there = world()
    manifest = there.run.versions.manifest(there.run.versions.manifest_digest(0))
    column = min(manifest.blocks.values(), key=lambda ref: ref.payload_bytes)
    found = [
        pb.DownloadRequest(block_digest=bytes.fromhex(column.digest), offset=offset)
        for offset in (0, column.payload_bytes - 100, column.payload_bytes)
    ]
    found += [pb.DownloadRequest(lease_data=there.marias, offset=offset) for offset in (0, 100)]
    found += [pb.DownloadRequest(measure_data=there.item.command_id, offset=offset) for offset in (0, 100)]
    found += [pb.DownloadRequest(measure_payload=there.item.command_id)]
    return [request.SerializeToString() for request in found]


# ---- the operator's command, and gRPC's name of a caller


def _status_reply(data: bytes) -> object:
    client = OperatorClient(world().run_folder)

    async def answer(_: Json) -> Json:
        return _object(data, "the answer")

    client._ask = answer  # type: ignore[method-assign,assignment]
    return finish(client.summary())


def _status_replies() -> list[bytes]:
    text = world().summary().model_dump_json()
    return [json.dumps({"status_json": text}).encode(), b'{"status_json": "{}"}']


def _status_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    if random.random() < 0.3:
        return mutated(random, samples)
    text = json.loads(samples[0])["status_json"]
    return json.dumps({"status_json": mutated(random, [text.encode()]).decode("utf-8", "replace")}).encode()


def _peer(data: bytes) -> object:
    return address_of(data.decode("utf-8", "replace"))


def _call_target(name: str, names: Sequence[str], decode: Any, samples: Any) -> Target:
    return Target(
        name=name,
        decode=decode,
        refusals=(Aborted,),
        samples=samples,
        mutate=_one_of(names),
        base_bytes=SENT_BYTES,
    )


TARGETS = (
    _call_target("worker-calls", WORKERS, _worker_call, _worker_calls),
    _call_target("stranger-calls", STRANGERS, _stranger_call, _stranger_calls),
    _call_target("operator-calls", OPERATORS, _operator_call, _operator_calls),
    Target(
        name="upload-call",
        decode=_upload,
        refusals=(Aborted,),
        samples=_uploads,
        mutate=_upload_mutated,
        base_bytes=SENT_BYTES,
    ),
    Target(
        name="download-call",
        decode=_download,
        refusals=(Aborted,),
        samples=_downloads,
        mutate=message_mutations(pb.DownloadRequest),
        base_bytes=SENT_BYTES,
    ),
    Target(
        name="status-reply",
        decode=_status_reply,
        refusals=(RemoteError,),
        samples=_status_replies,
        mutate=_status_mutated,
    ),
    Target(
        name="peer-name",
        decode=_peer,
        refusals=(),
        samples=lambda: [b"ipv4:192.0.2.7:50000", b"ipv6:%5B2001:db8::1%5D:50000", b"ipv6:%5B::ffff:192.0.2.7%5D:1"],
    ),
)
