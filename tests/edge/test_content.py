"""What is in a message: sizes, compression, numbers, tensors, offsets, names. All over TLS, beside an honest worker."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import struct
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import pytest
import structlog

from coordinator.edge.rpc import Endpoint
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import Throttle
from coordinator.run.folder import RunFolder
from coordinator.run.traffic import Traffic
from protocol.errors import MalformedMessage
from protocol.errors import Refused as Refusing
from protocol.framing import frames_of
from protocol.ids import Digest, LeaseId
from protocol.limits import FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from protocol.v1 import barnraise_pb2 as pb

Code = grpc.StatusCode
Join = Callable[..., Any]
Refused = Callable[[grpc.StatusCode, str], Any]
U64_MAX = 2**64 - 1


# ---- size and form ----------------------------------------------------------------------------------------------


async def test_an_oversized_message_is_refused_before_it_is_read(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    loose = client.dial((("grpc.max_send_message_length", -1),))
    body = bytes(MAX_MESSAGE_BYTES + 1)
    await refused(Code.RESOURCE_EXHAUSTED, "larger than max").of(client.raw("Heartbeat", body, channel=loose))
    await loose.close()


async def test_oversized_metadata_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    metadata = (*client.signer.metadata("/x", b""), ("padding", "x" * MAX_METADATA_BYTES))
    await refused(Code.RESOURCE_EXHAUSTED, "metadata").of(client.raw("Heartbeat", b"", metadata=metadata))


@pytest.mark.parametrize("method", ["Heartbeat", "Enrol", "Upload"])
async def test_a_decompression_bomb_is_not_unpacked(honest: Any, join: Join, refused: Refused, method: str) -> None:
    client = await join()
    squeezing = client.dial((("grpc.max_send_message_length", -1),), compression=grpc.Compression.Gzip)
    bomb = bytes(64 << 20)
    await refused(Code.UNIMPLEMENTED, "ompress").of(client.raw(method, bomb, channel=squeezing))
    await squeezing.close()


@pytest.mark.parametrize(
    "name", ["AcquireLease", "ReturnLease", "Heartbeat", "CommitSubmission", "GetManifest", "Upload", "Download"]
)
async def test_bytes_that_are_no_request_are_refused(honest: Any, join: Join, refused: Refused, name: str) -> None:
    client = await join()
    for body in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x7f"):
        await refused(Code.INVALID_ARGUMENT, "not a").of(client.raw(name, body))
    await client.beat()


async def test_bytes_that_are_no_registration_are_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(enrolled=False)
    for name in ("Enrol", "OpenSession", "AskAudit", "Leave", "RotateKey"):
        await refused(Code.INVALID_ARGUMENT, "not a").of(client.raw(name, b"\xff\xff\xff"))


# ---- numbers ----------------------------------------------------------------------------------------------------


async def test_invalid_numbers_are_refused_or_ignored(
    honest: Any, join: Join, refused: Refused, server: CoordinatorServer, run: RunFolder
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    for value in (float("nan"), float("inf"), float("-inf")):
        for name in ("train_loss_first", "train_loss_last", "train_s"):
            await refused(Code.FAILED_PRECONDITION, "finite").of(client.commit(lease, payload, **{name: value}))
        beat = pb.HeartbeatRequest(lease_id=lease.lease_id, train_loss=value, tokens_per_s=value)
        await client.call("Heartbeat", beat, pb.HeartbeatReply)
        assert all(math.isfinite(number) for number in numbers_of((await server.status()).model_dump()))
        assert (await client.acquire(wait_s=value)).lease.lease_id == lease.lease_id
        capability = pb.Capability(device="cpu", memory_bytes=8 << 30, tokens_per_s=value)
        other = await join(enrolled=False)
        await refused(Code.INVALID_ARGUMENT, "tokens_per_s").of(other.enrol(capability=capability))
    for line in run.events_path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # and so is what the journal keeps


async def test_a_micro_batch_larger_than_the_batch_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    for said in (lease.batch_sequences + 1, 2**32 - 1):
        await refused(Code.FAILED_PRECONDITION, "micro_batch").of(client.commit(lease, payload, micro_batch=said))
    await client.commit(lease, payload, micro_batch=lease.batch_sequences)


@pytest.mark.parametrize("said", ["x" * 161, "cpu\x1b[2J", "cpü", "cpu\n"])
async def test_an_arithmetic_class_is_short_and_printable(honest: Any, join: Join, refused: Refused, said: str) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await refused(Code.FAILED_PRECONDITION, "arithmetic").of(client.commit(lease, payload, arithmetic=said))
    await client.commit(lease, payload, arithmetic="cpu, x, torch 1, fp32, 1 threads")


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from numbers_of(part)
    elif isinstance(value, float):
        yield value


async def test_status_stays_json_whatever_a_heartbeat_says(honest: Any, join: Join, server: CoordinatorServer) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    beat = pb.HeartbeatRequest(lease_id=lease.lease_id, inner_step=2**32 - 1, train_loss=1e308, tokens_per_s=-1e308)
    await client.call("Heartbeat", beat, pb.HeartbeatReply)
    json.loads((await server.status()).model_dump_json(), parse_constant=pytest.fail)


# ---- tensors ----------------------------------------------------------------------------------------------------


def reworded(payload: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The payload with another tensor header of the same length, padded with spaces as the format wants."""
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    return payload[:8] + text.ljust(length) + payload[8 + length :]


def another_shape(header: dict[str, Any]) -> None:
    entry = next(entry for entry in header.values() if len(entry["shape"]) == 2)
    entry["shape"] = [entry["shape"][0] * entry["shape"][1]]


def another_dtype(header: dict[str, Any]) -> None:
    next(iter(header.values()))["dtype"] = "I32"


def another_place(header: dict[str, Any]) -> None:
    first = next(iter(header.values()))
    first["data_offsets"] = [0, 9]


@pytest.mark.parametrize(
    ("change", "reason"),
    [(another_shape, "shape"), (another_dtype, "dtype"), (another_place, "canonical")],
    ids=["shape", "dtype", "order"],
)
async def test_tensors_of_another_shape_or_dtype_are_rejected_with_the_reason(
    honest: Any, join: Join, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    verdict = await judged(client, lease, reworded(client.submission(lease), change))
    assert verdict.outcome == pb.Verdict.REJECTED
    assert reason in verdict.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_tensors_that_are_not_finite_are_rejected(honest: Any, join: Join, value: float) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    verdict = await judged(client, lease, payload[:-4] + struct.pack("<f", value))
    assert verdict.outcome == pb.Verdict.REJECTED
    assert "not finite" in verdict.reason


async def judged(client: Any, lease: pb.Lease, payload: bytes) -> pb.Verdict:
    await client.commit(lease, payload)
    assert (await client.upload(lease, payload)).complete
    async with asyncio.timeout(10):
        while not (reply := await client.commit(lease, payload)).HasField("verdict"):
            await asyncio.sleep(0.01)
    return reply.verdict


async def test_bytes_that_are_not_what_was_committed_are_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload, other = client.submission(lease), client.submission(lease, seed=1)
    await client.commit(lease, payload)
    frames = frames_of(lambda start, length: other[start : start + length], len(other))
    await refused(Code.DATA_LOSS, "digest").of(client.upload(lease, payload, frames=frames))
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete


# ---- offsets and frames -----------------------------------------------------------------------------------------


def framed(offset: int, payload: bytes, *, magic: bytes = b"BNR1", length: int | None = None) -> bytes:
    return struct.pack(">4sIQ", magic, len(payload) if length is None else length, offset) + payload


async def test_offsets_outside_of_the_payload_are_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    for offset in (1, len(payload), len(payload) + 1, 2**63, U64_MAX):
        # inside the payload, but past what is here: an older stream may have cut it, so asking again is right
        code = Code.UNAVAILABLE if offset <= len(payload) else Code.INVALID_ARGUMENT
        await refused(code, "byte").of(client.upload(lease, payload, offset=offset))
        if offset > len(payload):
            beyond = client.download(lease_data=lease.lease_id, offset=offset)
            await refused(Code.INVALID_ARGUMENT, "byte").of(beyond)
    for size in (0, len(payload) - 1, U64_MAX):
        await refused(Code.FAILED_PRECONDITION, "bytes, got").of(client.commit(lease, payload, payload_bytes=size))
        wrong = client.upload(lease, payload, payload_bytes=size, frames=[])
        await refused(Code.FAILED_PRECONDITION, "commit to this digest and size").of(wrong)
    assert (await client.upload(lease, payload)).complete


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(b"", "less than its header", id="no header"),
        pytest.param(framed(0, b""), "claims 0 bytes", id="empty"),
        pytest.param(framed(0, bytes(FRAME_BYTES + 1)), "allowed are 1 to", id="too long"),
        pytest.param(framed(0, bytes(8), magic=b"EVIL"), "EVIL", id="magic"),
        pytest.param(framed(0, bytes(8), length=9), "claims 9 bytes", id="another length"),
        pytest.param(framed(0, bytes(8), length=2**32 - 1), "claims 4294967295 bytes", id="huge length"),
        pytest.param(framed(8, bytes(8)), "expected byte 0", id="later"),
        pytest.param(framed(U64_MAX, bytes(8)), "expected byte 0", id="huge offset"),
    ],
)
async def test_a_bad_frame_is_refused(honest: Any, join: Join, refused: Refused, bad: bytes, words: str) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    await refused(Code.INVALID_ARGUMENT, words).of(client.upload(lease, payload, frames=[bad]))
    assert (await client.upload(lease, payload)).complete


async def test_bytes_beyond_the_payload_and_dribbled_frames_are_refused(
    honest: Any, join: Join, refused: Refused
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    dribble = [framed(place, payload[place : place + 1]) for place in range(2)]
    await refused(Code.INVALID_ARGUMENT, "follows a short one").of(client.upload(lease, payload, frames=dribble))
    offset, frames = (await client.commit(lease, payload)).upload_offset, []
    while len(payload) - offset >= FRAME_BYTES:
        frames.append(framed(offset, payload[offset : offset + FRAME_BYTES]))
        offset += FRAME_BYTES
    frames.append(framed(offset, payload[offset:] + b"more"))
    await refused(Code.INVALID_ARGUMENT, "of a payload of").of(client.upload(lease, payload, frames=frames, offset=1))


async def test_a_truncated_upload_counts_for_nothing_and_goes_on_where_it_broke(
    honest: Any, join: Join, server: CoordinatorServer
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    await client.commit(lease, payload)
    whole = list(frames_of(lambda start, length: payload[start : start + length], len(payload)))
    reply = await client.upload(lease, payload, frames=whole[:1])
    assert (reply.complete, reply.received_bytes) == (False, FRAME_BYTES)
    assert (await client.commit(lease, payload)).upload_offset == FRAME_BYTES
    assert (await server.status()).submissions_accepted == 0
    assert (await client.upload(lease, payload, frames=whole[1:], offset=FRAME_BYTES)).complete


# ---- names ------------------------------------------------------------------------------------------------------

PATHS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "r1.1/../../x",
    "..",
    ".",
    "r1.1\0",
    "C:\\x",
    "x" * 5000,
    "%2e%2e/x",
    "~",
)


@pytest.mark.parametrize("path", PATHS)
async def test_no_name_becomes_a_path(
    honest: Any, join: Join, refused: Refused, files_of: Callable[[], Iterator[str]], path: str
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    before = set(files_of())
    unknown = refused(Code.FAILED_PRECONDITION, "not one of this worker's")
    named = pb.Lease(lease_id=path, inner_steps=1)
    await unknown.of(client.download(lease_data=path))
    await unknown.of(client.commit(named, payload))
    await unknown.of(client.upload(named, payload))
    await unknown.of(client.call("ReturnLease", pb.ReturnLeaseRequest(lease_id=path), pb.ReturnLeaseReply))
    await client.call("Heartbeat", pb.HeartbeatRequest(lease_id=path), pb.HeartbeatReply)
    await refused(Code.INVALID_ARGUMENT, "32 bytes").of(client.download(block_digest=path.encode()))
    await refused(Code.FAILED_PRECONDITION, "not kept").of(client.download(block_digest=secrets.token_bytes(32)))
    await refused(Code.FAILED_PRECONDITION, "encoded in").of(client.commit(lease, payload, codec=path))
    other = await join(enrolled=False)
    await refused(Code.UNAUTHENTICATED, "not one of this run's").of(other.enrol(invite=path))
    if len(path) <= 64 and path.isprintable():
        await other.enrol(name=path)  # a name for people, which names no file
    else:
        await refused(Code.INVALID_ARGUMENT, "printable characters").of(other.enrol(name=path))
    assert {name for name in set(files_of()) - before if "registry" not in name and "journal" not in name} == set()


@pytest.mark.parametrize("path", [*PATHS, "a" * 64 + "/../../x", "A" * 64])
def test_no_name_is_a_path_of_the_store(run: RunFolder, path: str) -> None:
    """Behind what the calls refuse: the store itself makes no path of an invalid digest or lease id."""
    store, digest = run.artifacts(), Digest("a" * 64)
    with pytest.raises(MalformedMessage, match="digest"):
        store.blocks.stat(Digest(path))
    if path != "A" * 64:
        with pytest.raises(MalformedMessage, match="lease id"):
            store.open_upload(LeaseId(path), digest, 0)


CONTROL = ("\x1b[31mred", "two\nlines", "\x9b2J", "left\u202eright", "a\0b", "\x7f", "bell\x07", "line\u2028two")


@pytest.mark.parametrize("text", CONTROL)
async def test_control_characters_reach_no_terminal_and_no_log(
    honest: Any, join: Join, refused: Refused, server: CoordinatorServer, text: str
) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    payload = client.submission(lease)
    other = await join(enrolled=False)
    with structlog.testing.capture_logs() as lines:
        await refused(Code.INVALID_ARGUMENT, "printable").of(other.enrol(name=text))
        for attempt in (client.commit(lease, payload, codec=text), client.download(lease_data=text)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attempt
            assert printable(caught.value.details())
        await client.call(
            "ReturnLease", pb.ReturnLeaseRequest(lease_id=lease.lease_id, reason=text), pb.ReturnLeaseReply
        )
        quoting = Endpoint("s", cast(Any, None), Traffic(), Throttle())  # an error that quotes without `repr`
        quoting._log_refusal("m", Refusing(text), "192.0.2.7")
    assert {"call_refused", "lease_returned"} <= {line["event"] for line in lines}
    assert all(printable(value) for line in lines for value in line.values() if isinstance(value, str))
    assert printable((await server.status()).model_dump_json().encode().decode("unicode_escape"))


def printable(text: str | None) -> bool:
    return all(character.isprintable() for character in text or "")
