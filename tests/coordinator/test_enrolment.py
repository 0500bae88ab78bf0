"""Who gets in, over real loopback TLS: join links, invites, enrolment and the first session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from protocol.tls import fetch_ca, manifest_key_message, verify_vouch
from protocol.v1 import barnraise_pb2 as pb
from tests.served import Refusal

Join = Callable[..., Any]
Code = grpc.StatusCode


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
