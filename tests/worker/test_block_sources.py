"""What every `BlockSource` promises, and that a fetcher needs nothing else: whose bytes they are is no matter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.errors import DigestMismatch, RemoteError, Unavailable
from protocol.ids import Digest, Version, digest_of
from protocol.manifest import BlockRef, Manifest
from worker.blocks import PartialBlock
from worker.client import CoordinatorClient
from worker.files import DISK
from worker.ports import BlockSource


class Neighbour:
    """Another worker, say, with the blocks that it has fetched itself."""

    def __init__(self, blocks: dict[Digest, bytes]) -> None:
        self._blocks = blocks

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncIterator[bytes]:
        if digest not in self._blocks:
            raise RemoteError("not here")
        content = self._blocks[digest]
        for start in range(offset, payload_bytes, 1000):
            yield content[start : start + 1000]


@pytest.fixture
async def ref(client: CoordinatorClient) -> BlockRef:
    manifest = Manifest.from_json((await client.get_manifest(Version(0))).manifest_json)
    return max(manifest.blocks.values(), key=lambda one: one.payload_bytes)


async def content_of(source: BlockSource, ref: BlockRef, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in source.block(ref.digest, ref.payload_bytes, offset)])


@pytest.fixture(params=["coordinator", "neighbour"])
async def source(request: pytest.FixtureRequest, client: CoordinatorClient, ref: BlockRef) -> Any:
    if request.param == "coordinator":
        return client
    return Neighbour({ref.digest: await content_of(client, ref)})


async def test_a_source_gives_a_block_from_wherever_it_is_asked(source: BlockSource, ref: BlockRef) -> None:
    whole = await content_of(source, ref)
    assert len(whole) == ref.payload_bytes
    assert digest_of(whole) == ref.digest
    for offset in (1, ref.payload_bytes // 2, ref.payload_bytes - 1):
        assert await content_of(source, ref, offset) == whole[offset:]


async def test_a_source_without_the_block_says_so_and_not_that_it_may_come(source: BlockSource, ref: BlockRef) -> None:
    strange = BlockRef(digest=Digest("0" * 64), payload_bytes=ref.payload_bytes)
    with pytest.raises(RemoteError) as caught:
        await content_of(source, strange)
    assert not isinstance(caught.value, Unavailable)


async def test_a_source_may_be_left_in_the_middle_and_asked_again(source: BlockSource, ref: BlockRef) -> None:
    pieces = source.block(ref.digest, ref.payload_bytes, 0)
    first = bytes(await anext(pieces))
    await pieces.aclose()
    assert first + await content_of(source, ref, len(first)) == await content_of(source, ref)


async def test_nobody_is_believed(source: BlockSource, ref: BlockRef, tmp_path: Any) -> None:
    path = tmp_path / "block.part"
    partial = PartialBlock(path, DISK, ref.digest, ref.payload_bytes)
    async for piece in source.block(ref.digest, ref.payload_bytes, 0):
        partial.add(bytes(len(piece)))
    with pytest.raises(DigestMismatch):
        partial.finish()
    assert not path.exists()
