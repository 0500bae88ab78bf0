"""Calls over real loopback TLS: signatures, counters, sessions, long polls, and what is no call at all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from protocol.identity import PrivateIdentity
from protocol.signing import CallSigner
from protocol.v1 import barnraise_pb2 as pb
from tests.served import SERVICE, Refusal

Join = Callable[..., Any]
Code = grpc.StatusCode


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
    while (await server.status()).workers[0].state == "uploading" and not waiting(server):
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
    monkeypatch.setattr("coordinator.edge.service.MAX_WAIT_S", 0.05)
    client = await join()
    lease = (await client.acquire()).lease
    await client.commit(lease, submission(run, lease))
    reply = await client.acquire(wait_s=1e9)
    assert reply.WhichOneof("outcome") == "wait"
    assert reply.wait.reason


async def test_a_worker_is_not_the_operator(join: Join) -> None:
    client = await join()
    method = "/barnraise.protocol.v1.Operator/GetStatus"
    call = client.call(method, pb.GetStatusRequest(), pb.GetStatusReply)
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
