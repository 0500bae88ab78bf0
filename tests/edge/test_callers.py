"""Who is calling: replayed, forged, stale and foreign calls, invites, versions, and other people's leases."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from coordinator.edge.operator_calls import OPERATOR_CALLS
from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from protocol.identity import PrivateIdentity
from protocol.limits import PROTOCOL_VERSION
from protocol.signing import COUNTER_KEY, COUNTER_WINDOW, REQUEST_KEY, SESSION_KEY, CallSigner
from protocol.v1 import barnraise_pb2 as pb
from protocol.versions import OLDEST_VERSION

SERVICE = "/barnraise.protocol.v1.Coordinator/"
OPERATOR = "/barnraise.protocol.v1.Operator/"
Code = grpc.StatusCode
Join = Callable[..., Any]
Refused = Callable[[grpc.StatusCode, str], Any]


# ---- calls ------------------------------------------------------------------------------------------------------


async def test_a_replayed_call_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    metadata = client.signer.metadata(SERVICE + "Heartbeat", b"")
    await client.raw("Heartbeat", b"", metadata=metadata)
    await refused(Code.UNAUTHENTICATED, "was used before").of(client.raw("Heartbeat", b"", metadata=metadata))


async def test_a_replay_from_before_the_window_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    skipped = client.signer.metadata(SERVICE + "Heartbeat", b"")  # signed and never sent, so never used either
    for _ in range(COUNTER_WINDOW):
        last = client.signer.metadata(SERVICE + "Heartbeat", b"")
    await client.raw("Heartbeat", b"", metadata=last)
    await refused(Code.UNAUTHENTICATED, "behind").of(client.raw("Heartbeat", b"", metadata=skipped))
    await client.beat()


async def test_a_replayed_opening_of_a_session_does_not_end_the_running_one(
    honest: Any, join: Join, refused: Refused
) -> None:
    client = await join(enrolled=False)
    await client.enrol()
    body = client.opening().SerializeToString()
    metadata = CallSigner(client.identity, audience=client.audience).metadata(SERVICE + "OpenSession", body)
    reply = pb.OpenSessionReply.FromString(await client.raw("OpenSession", body, metadata=metadata))
    client.signer = CallSigner(client.identity, reply.session_id, audience=client.audience)
    again = client.raw("OpenSession", body, metadata=metadata)
    await refused(Code.UNAUTHENTICATED, "with a new nonce").of(again)
    other = await join(enrolled=False)
    await other.enrol()
    await refused(Code.UNAUTHENTICATED, "nonce of 16 random bytes").of(other.open(nonce=b"short"))
    await client.beat()


async def test_a_forged_call_is_refused_and_costs_its_victim_nothing(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    session_id = dict(client.signer.metadata("", b""))["barnraise-session-bin"]
    forger = CallSigner(PrivateIdentity.generate(), session_id, audience=client.audience)
    for _ in range(3):
        metadata = forger.metadata(SERVICE + "Heartbeat", b"")
        await refused(Code.UNAUTHENTICATED, "signature").of(client.raw("Heartbeat", b"", metadata=metadata))
    client.signer = CallSigner(client.identity, session_id, audience=client.audience)
    await client.raw("Heartbeat", b"")  # counter 1, which the forger named too and could not spend
    honest_session = dict(honest.signer.metadata("", b""))["barnraise-session-bin"]
    impostor = CallSigner(client.identity, honest_session, audience=client.audience)
    metadata = impostor.metadata(SERVICE + "Heartbeat", b"")
    await refused(Code.UNAUTHENTICATED, "signature").of(client.raw("Heartbeat", b"", metadata=metadata))


async def test_a_signature_for_another_body_or_method_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    for method, body in (("Heartbeat", b"\x12\x00"), ("GetManifest", b"")):
        metadata = client.signer.metadata(SERVICE + method, body)
        await refused(Code.UNAUTHENTICATED, "signature").of(client.raw("Heartbeat", b"", metadata=metadata))


@pytest.mark.parametrize("part", [COUNTER_KEY, REQUEST_KEY, SESSION_KEY])
async def test_a_signature_holds_for_one_counter_request_and_session(
    honest: Any, join: Join, refused: Refused, part: str
) -> None:
    client = await join()
    signed = dict(client.signer.metadata(SERVICE + "Heartbeat", b""))
    await client.open()
    later = dict(client.signer.metadata(SERVICE + "Heartbeat", b""))
    if part != SESSION_KEY:
        signed = dict(later)
        later = {**later, COUNTER_KEY: (99).to_bytes(8, "big"), REQUEST_KEY: secrets.token_bytes(16)}
    changed = tuple({**signed, part: later[part]}.items())
    await refused(Code.UNAUTHENTICATED, "signature").of(client.raw("Heartbeat", b"", metadata=changed))
    await client.beat()


async def test_a_foreign_call_signed_for_another_coordinator_is_refused(
    honest: Any, join: Join, refused: Refused
) -> None:
    client = await join(enrolled=False)
    client.signer = CallSigner(client.identity, audience=b"another coordinator's fingerprint")
    await refused(Code.UNAUTHENTICATED, "signature").of(client.enrol())
    client.signer = CallSigner(client.identity, audience=client.audience)
    await client.enrol()


async def test_a_stale_call_of_an_earlier_session_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    earlier = client.signer
    await client.open()
    metadata = earlier.metadata(SERVICE + "Heartbeat", b"")
    await refused(Code.UNAUTHENTICATED, "open another").of(client.raw("Heartbeat", b"", metadata=metadata))
    await client.beat()
    unknown = CallSigner(client.identity, secrets.token_bytes(16), audience=client.audience)
    metadata = unknown.metadata(SERVICE + "Heartbeat", b"")
    await refused(Code.UNAUTHENTICATED, "open another").of(client.raw("Heartbeat", b"", metadata=metadata))


async def test_an_unsigned_call_is_refused_on_every_method(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    names = "Enrol OpenSession AcquireLease ReturnLease Heartbeat CommitSubmission GetManifest Upload Download AskAudit"
    names += " ListReceipts Leave RotateKey"
    for name in names.split():
        await refused(Code.UNAUTHENTICATED, "not signed").of(client.raw(name, b"", metadata=()))
    for name in OPERATOR_CALLS:
        await refused(Code.UNAUTHENTICATED, "not signed").of(client.raw(OPERATOR + name, b"", metadata=()))


async def test_a_signature_of_the_wrong_form_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    signed = client.signer.metadata(SERVICE + "Heartbeat", b"")
    twice = (*signed, (COUNTER_KEY, bytes(8)))
    await refused(Code.UNAUTHENTICATED, "twice").of(client.raw("Heartbeat", b"", metadata=twice))
    long = tuple({**dict(signed), COUNTER_KEY: bytes(9)}.items())
    await refused(Code.UNAUTHENTICATED, "has 9 bytes, expected 8").of(client.raw("Heartbeat", b"", metadata=long))
    await refused(Code.UNAUTHENTICATED, "outside of any session").of(client.enrol())
    client.signer = CallSigner(client.identity, audience=client.audience)
    await refused(Code.UNAUTHENTICATED, "call OpenSession first").of(client.beat())


async def test_a_worker_cannot_give_the_operators_orders(honest: Any, join: Join, refused: Refused) -> None:
    client = await join()
    for name in OPERATOR_CALLS:
        await refused(Code.UNAUTHENTICATED, "for the operator only").of(client.raw(OPERATOR + name, b""))


async def test_the_operators_key_is_no_worker_and_its_sessions_are_bounded(
    honest: Any, join: Join, refused: Refused, run: RunFolder, server: CoordinatorServer
) -> None:
    operator = await join(enrolled=False)
    operator.identity = run.operator_identity()
    for _ in range(70):
        await operator.open()
    assert server._run is not None
    assert len(server._run.sessions) <= 64 + 1  # and the honest worker's
    await refused(Code.UNAUTHENTICATED, "for workers only").of(operator.acquire())


async def test_a_key_of_the_wrong_size_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(enrolled=False)
    for key in (b"", bytes(31), bytes(33), bytes(4096)):
        await refused(Code.UNAUTHENTICATED, "bytes, expected 32").of(client.enrol(public_key=key))
        await refused(Code.UNAUTHENTICATED, "bytes, expected 32").of(client.open(public_key=key))


# ---- getting in -------------------------------------------------------------------------------------------------


async def test_a_reused_invite_is_refused_to_another_key(
    honest: Any, join: Join, refused: Refused, run: RunFolder
) -> None:
    client = await join()
    thief = type(client)(client.link, run)
    await refused(Code.FAILED_PRECONDITION, "ask for another").of(thief.enrol())
    client.signer = CallSigner(client.identity, audience=client.audience)
    assert (await client.enrol()).worker_id == client.identity.worker_id
    await refused(Code.UNAUTHENTICATED, "join with an invite first").of(thief.open())
    await thief.channel.close()


async def test_an_expired_or_unknown_invite_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    late = await join(enrolled=False, life_s=1e-6)
    await refused(Code.FAILED_PRECONDITION, "ask the operator for a new join link").of(late.enrol())
    await refused(Code.UNAUTHENTICATED, "ask the operator").of(late.enrol(invite=secrets.token_urlsafe(16)))
    await refused(Code.UNAUTHENTICATED, "ask the operator").of(late.enrol(invite=""))


@pytest.mark.parametrize("version", [0, OLDEST_VERSION - 1, PROTOCOL_VERSION + 1, 2**32 - 1])
async def test_another_protocol_version_is_told_who_must_update(
    honest: Any, join: Join, refused: Refused, version: int
) -> None:
    client = await join(enrolled=False)
    whose = "worker's" if version < PROTOCOL_VERSION else "coordinator's"
    await refused(Code.FAILED_PRECONDITION, f"update the {whose}").of(client.enrol(protocol_version=version))
    await client.enrol()
    await refused(Code.FAILED_PRECONDITION, f"update the {whose}").of(client.open(protocol_version=version))


@pytest.mark.parametrize("version", range(OLDEST_VERSION, PROTOCOL_VERSION + 1))
async def test_the_version_before_is_taken_and_stands_in_the_session(join: Join, version: int) -> None:
    client = await join(enrolled=False)
    await client.enrol(protocol_version=version)
    opening = client.opening(protocol_version=version)
    method, body = f"{SERVICE}OpenSession", opening.SerializeToString()
    signed = client.signer.metadata(method, body)
    newer = client.opening(protocol_version=OLDEST_VERSION + PROTOCOL_VERSION - version, nonce=opening.nonce)
    with pytest.raises(grpc.aio.AioRpcError) as failed:  # the signature is over the version, too
        await client.raw("OpenSession", newer.SerializeToString(), metadata=signed)
    assert failed.value.code() is Code.UNAUTHENTICATED
    reply = pb.OpenSessionReply.FromString(await client.raw("OpenSession", body, metadata=signed))
    assert reply.protocol_version == version


# ---- leases -----------------------------------------------------------------------------------------------------


async def test_an_unknown_or_anothers_lease_is_refused(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    theirs = (await honest.acquire()).lease
    payload = honest.submission(theirs)
    unknown = pb.Lease(lease_id="r9.9", inner_steps=2)
    for lease in (theirs, unknown):
        not_ours = refused(Code.FAILED_PRECONDITION, "not one of this worker's")
        await not_ours.of(client.commit(lease, payload))
        await not_ours.of(client.upload(lease, payload))
        await not_ours.of(client.download(lease_data=lease.lease_id))
        request = pb.ReturnLeaseRequest(lease_id=lease.lease_id, reason="mine now")
        await not_ours.of(client.call("ReturnLease", request, pb.ReturnLeaseReply))


async def test_a_new_session_takes_over_the_long_poll_of_the_old(honest: Any, join: Join, refused: Refused) -> None:
    client = await join(columns=1)
    lease = (await client.acquire()).lease
    await client.commit(lease, client.submission(lease))  # nothing more to lease until its bytes are here
    poll = asyncio.ensure_future(client.acquire(wait_s=20.0))
    await client.beat()
    await client.open()
    async with asyncio.timeout(5):
        await refused(Code.UNAUTHENTICATED, "open another").of(poll)
