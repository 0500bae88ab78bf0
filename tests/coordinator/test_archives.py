"""Whole versions over the wire: to whom they are given, that they stay until they have come, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from protocol.archives import ArchiveIndex, ArchiveRecord
from protocol.ids import digest_of
from protocol.manifest import BlockRef, Manifest
from protocol.v1 import barnraise_pb2 as pb
from tests.coordinator.conftest import ENGINE
from tests.served import RawClient, Refusal, clients_of, make_run

Join = Callable[..., Any]


@pytest.fixture
async def trained(tmp_path: Path, text_folder: Path) -> AsyncIterator[tuple[CoordinatorServer, Join, RawClient]]:
    """A run with momentum, at version 1, and the worker that trained it."""
    run = RunFolder.open(make_run(tmp_path / "run", text_folder, {**ENGINE, "outer_momentum": 0.9, "max_rounds": 3}))
    server = CoordinatorServer(run)
    await server.start()
    try:
        async with clients_of(run, server) as join:
            client = await join()
            await round_of(client, server, 1)
            yield server, join, client
    finally:
        await server.stop(0.0)


async def round_of(client: RawClient, server: CoordinatorServer, version: int) -> None:
    reply = await client.acquire()
    payload = client.submission(reply.lease)
    await client.commit(reply.lease, payload)
    await client.upload(reply.lease, payload)
    async with asyncio.timeout(20.0):
        while (await client.beat()).latest_version < version:
            await asyncio.sleep(0.02)


async def asked(client: RawClient, **fields: Any) -> pb.ArchiveReply:
    reply: pb.ArchiveReply = await client.call("Archive", pb.ArchiveRequest(**fields), pb.ArchiveReply)
    return reply


async def manifest_of(client: RawClient, version: int) -> tuple[Manifest, pb.GetManifestReply]:
    reply = await client.call("GetManifest", pb.GetManifestRequest(version=version), pb.GetManifestReply)
    return Manifest.from_json(reply.manifest_json), reply


async def got(client: RawClient, ref: BlockRef) -> int:
    frames = await client.download(block_digest=bytes.fromhex(ref.digest))
    return sum(map(len, frames))


async def test_momentum_and_companions_are_for_those_that_archive_and_no_more_of_them_than_is_set(trained: Any) -> None:
    server, join, first = trained
    manifest, signed = await manifest_of(first, 1)
    momentum = next(iter(manifest.momenta.values()))
    await Refusal(grpc.StatusCode.FAILED_PRECONDITION, "nobody's to download").of(got(first, momentum))
    reply = await asked(first)
    index = ArchiveIndex(
        ca_pem=server._run.authority.cert_pem,
        manifest_key=server._run.manifest_identity.public_key,
        vouch=bytes(64),
        manifest_json=signed.manifest_json,
        manifest_signature=signed.signature,
        record_json=reply.record_json,
        record_signature=reply.record_signature,
    )
    assert index.record.version == reply.version == 1
    assert await got(first, momentum) >= momentum.payload_bytes
    for companion in ArchiveRecord.from_json(reply.record_json).companions.values():
        assert await got(first, companion) >= companion.payload_bytes
    second, third = await join(), await join()
    await Refusal(grpc.StatusCode.FAILED_PRECONDITION, "nobody's to download").of(got(second, momentum))
    assert not (await asked(second)).notice
    assert "2 workers keep whole versions already" in (await asked(third)).notice
    await Refusal(grpc.StatusCode.FAILED_PRECONDITION, "nobody's to download").of(got(third, momentum))
    await Refusal(grpc.StatusCode.INVALID_ARGUMENT, "32 bytes").of(asked(first, held_manifest=b"short"))


async def test_a_version_stays_until_it_has_come_and_is_told_while_its_keeper_is_here(trained: Any) -> None:
    server, _, client = trained
    _, signed = await manifest_of(client, 1)
    digest = bytes.fromhex(digest_of(signed.manifest_json))
    versions = server._run.versions
    await asked(client)
    versions.keep_from(2)
    assert versions.kept() == [0, 1]
    await asked(client, held_version=1, held_manifest=digest)
    told = (await server.status()).elsewhere
    assert told.told == "version 1: all of it, by 1 worker that archives"
    assert told.nowhere_else == 0
    await round_of(client, server, 2)
    assert (await server.status()).elsewhere.told.endswith("; all of version 1, by workers that archive")
    versions.keep_from(2)
    assert versions.kept() == [0, 2]
    await asked(client, held_version=2, held_manifest=bytes(32))  # of another run's, or none
    assert (await server.status()).elsewhere.nowhere_else > 0
