"""A block is believed only under a manifest that the right key signed for the right run, version and model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.layout import Layout, block_tensor_specs
from protocol.codecs import FP32
from protocol.errors import ConfigError, MalformedMessage, RemoteError, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, Digest, RoundNumber, RunId, Version, WorkerId, digest_of
from protocol.manifest import BlockRef, Manifest, sign_manifest
from protocol.tensor_headers import payload_size
from protocol.tensors import encode_tensors
from protocol.v1 import barnraise_pb2 as pb
from worker import fetch
from worker.allowance import DiskAllowance
from worker.background import Threads
from worker.blocks import BlockCache
from worker.data import SequenceShape
from worker.fetch import Fetcher
from worker.fetched import Run, understand_run
from worker.home import Enrolment
from worker.lease import RunDescription
from worker.train.lease_state import LeaseStates

KEY = PrivateIdentity.from_seed(b"m" * 32)


def description(model_layout: Layout, **changes: Any) -> RunDescription:
    base = RunDescription(
        run_id=RunId("run"),
        name="run",
        model_json=json.dumps(dict(model_layout.config_json)),
        residency=model_layout.residency,
        codec="bf16",
        sequence_length=16,
        dataset_digest=Digest("a" * 64),
        max_block_bytes=1 << 24,
    )
    return dataclasses.replace(base, **changes)


class FakeClient:
    """Serves what a test gives it."""

    def __init__(self, manifest: bytes, signature: bytes, blocks: dict[str, bytes], data: bytes) -> None:
        self.manifest, self.signature, self.blocks, self.data = manifest, signature, blocks, data
        self.downloaded: list[str] = []

    async def get_manifest(self, version: int) -> pb.GetManifestReply:
        return pb.GetManifestReply(manifest_json=self.manifest, signature=self.signature)

    async def patiently(self, step: Any) -> Any:
        return await step()

    async def block(self, digest: str, payload_bytes: int, offset: int) -> AsyncIterator[bytes]:
        self.downloaded.append(digest)
        yield self.blocks[digest][offset:]

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Any) -> bytes:
        return self.data


class World:
    """One honest version and a fetcher for it; tests bend a part of it."""

    def __init__(self, model_layout: Layout, blocks: Any, sequences: Any, cache: Path) -> None:
        from protocol.sequences import encode_sequences

        payloads = {block: encode_tensors(tensors, FP32) for block, tensors in blocks.items()}
        self.manifest = Manifest(
            run_id=RunId("run"),
            version=Version(0),
            parent_version=None,
            round=RoundNumber(0),
            created_at_s=0.0,
            model=dict(model_layout.config_json),
            residency=model_layout.residency,
            blocks={
                block: BlockRef(digest=digest_of(payload), payload_bytes=len(payload))
                for block, payload in payloads.items()
            },
            momenta={},
            val_loss=None,
            tokens_trained=0,
        )
        self.by_digest = {digest_of(payload): payload for payload in payloads.values()}
        self.data = encode_sequences(sequences.astype("uint16"))
        self.run = Run(description=description(model_layout), layout=model_layout)
        self.disk = DiskAllowance(cache, BlockCache(cache / "blocks"), LeaseStates(cache / "progress"), None)
        self.client: FakeClient | None = None
        self.told: list[str] = []
        """Why blocks came whole though there was a shorter way."""

    async def fetch(self, lease: Any, signer: PrivateIdentity = KEY, data: Any = None) -> Any:
        content = self.manifest.to_json()
        blocks = {str(digest): payload for digest, payload in self.by_digest.items()}
        self.client = FakeClient(content, sign_manifest(signer, content), blocks, self.data)
        enrolment = Enrolment(
            worker_id=WorkerId("w"),
            run_id=RunId("run"),
            ca_pem="",
            manifest_public_key_hex=KEY.public_key.hex(),
            manifest_key_vouch_hex="",
            trusted=False,
        )
        fetcher = Fetcher(self.client, self.disk, enrolment, Threads(), data=data, told=self.told.append)  # type: ignore[arg-type]
        return await fetcher.fetch(lease, self.run, lambda _count: None)


@pytest.fixture
def world(small_layout: Layout, blocks_of: Any, sequences: Any, tmp_path: Path) -> World:
    return World(small_layout, blocks_of(small_layout), sequences, tmp_path)


async def test_fetches_what_the_residency_needs_and_only_what_is_missing(world: World, make_lease: Any) -> None:
    fetched = await world.fetch(make_lease())
    assert set(fetched.digests) == set(world.run.layout.needed_blocks((0, 2)))
    assert fetched.sequences.shape == (20, 17)
    assert world.client is not None
    assert len(world.client.downloaded) == len(fetched.digests)
    await world.fetch(make_lease())
    assert world.client.downloaded == []


async def test_memory_of_what_came_is_given_back_on_the_way_and_before_training(
    world: World, make_lease: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(fetch, "give_back_all", lambda: given_back.append(True))
    monkeypatch.setattr(fetch, "GIVE_BACK_EVERY_BYTES", 8)
    await world.fetch(make_lease())
    assert world.client is not None
    assert len(given_back) == len(world.client.downloaded)
    given_back.clear()
    await world.fetch(make_lease())
    assert given_back == []  # nothing came


async def test_sequences_come_from_the_source_that_it_is_given(world: World, make_lease: Any) -> None:
    class Own:
        async def sequences(self, lease: Any, shape: SequenceShape, on_bytes: Any) -> Any:
            return np.full((lease.data.count, shape.tokens), shape.vocab_size - 1)

    world.data = b"nothing that could be read"
    fetched = await world.fetch(make_lease(), data=Own())
    assert fetched.sequences.shape == (20, 17)
    assert (fetched.sequences == world.run.layout.config_json["vocab_size"] - 1).all()


async def test_the_cache_does_not_grow_from_version_to_version(
    world: World, make_lease: Any, blocks_of: Any, tmp_path: Path
) -> None:
    def publish(version: int) -> None:
        """Everything was trained, except for one column that nobody returned."""
        blocks = blocks_of(world.run.layout)
        for block, tensors in blocks.items():
            if block != "column.0":
                for tensor in tensors.values():
                    tensor.add_(float(version))
        payloads = {block: encode_tensors(tensors, FP32) for block, tensors in blocks.items()}
        refs = {
            block: BlockRef(digest=digest_of(payload), payload_bytes=len(payload))
            for block, payload in payloads.items()
        }
        changes: dict[str, Any] = {"version": Version(version), "parent_version": Version(version - 1), "blocks": refs}
        world.manifest = dataclasses.replace(world.manifest, **changes)
        world.by_digest = {digest_of(payload): payload for payload in payloads.values()}

    def on_disk() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "blocks").iterdir())

    first = await world.fetch(make_lease())
    one_model = on_disk()
    for version in range(1, 6):
        publish(version)
        fetched = await world.fetch(make_lease(base_version=Version(version)))
        assert on_disk() == one_model
        assert fetched.digests["column.0"] == first.digests["column.0"]
        assert world.client is not None
        assert len(world.client.downloaded) == len(fetched.digests) - 1, "what nobody trained is not fetched again"


async def test_old_blocks_go_before_new_ones_come(world: World, make_lease: Any, tmp_path: Path) -> None:
    stale = tmp_path / "blocks" / f"{'0' * 64}.part"
    stale.write_bytes(b"half a block of an old version")
    gone: list[bool] = []
    block = FakeClient.block

    def watching(self: FakeClient, *arguments: Any) -> AsyncIterator[bytes]:
        gone.append(not stale.exists())
        return block(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeClient, "block", watching)
        await world.fetch(make_lease())
    assert gone
    assert all(gone)


async def test_another_keys_signature_is_refused(world: World, make_lease: Any) -> None:
    with pytest.raises(Unauthenticated):
        await world.fetch(make_lease(), PrivateIdentity.from_seed(b"x" * 32))


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": RunId("other")},
        {"version": Version(1), "parent_version": Version(0)},
        {"model": {"model_type": "olmoe"}},
    ],
)
async def test_a_manifest_of_something_else_is_refused(world: World, make_lease: Any, change: Any) -> None:
    world.manifest = dataclasses.replace(world.manifest, **change)
    with pytest.raises(MalformedMessage):
        await world.fetch(make_lease())


async def test_a_block_of_the_wrong_size_is_refused_before_it_is_fetched(world: World, make_lease: Any) -> None:
    huge = BlockRef(digest=Digest("0" * 64), payload_bytes=1 << 45)
    blocks = {**world.manifest.blocks, TRUNK: huge}
    world.manifest = dataclasses.replace(world.manifest, blocks=blocks)
    with pytest.raises(MalformedMessage, match="trunk"):
        await world.fetch(make_lease())
    assert world.client is not None
    assert world.client.downloaded == []


async def test_tokens_outside_the_vocabulary_are_refused(world: World, make_lease: Any) -> None:
    world.data = world.data[:-2] + b"\xff\xff"
    with pytest.raises(RemoteError, match="vocabulary"):
        await world.fetch(make_lease())


def test_the_sizes_checked_against_are_this_workers_own(world: World) -> None:
    for block, ref in world.manifest.blocks.items():
        assert ref.payload_bytes == payload_size(block_tensor_specs(world.run.layout, block), FP32)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "exec"}', "[" * 50_000])
def test_a_model_outside_the_closed_configuration_is_refused(frozen_layout: Layout, text: str) -> None:
    with pytest.raises((MalformedMessage, ConfigError)):
        understand_run(description(frozen_layout, model_json=text))


def test_an_unknown_codec_is_refused_before_anything_is_trained(frozen_layout: Layout) -> None:
    with pytest.raises(MalformedMessage, match="codec"):
        understand_run(description(frozen_layout, codec="zip-bomb"))
