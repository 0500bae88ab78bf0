"""A holder that lies in one chunk of a large block costs that chunk; what is told of chunks is bounded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import chunks
from protocol.chunks import CHUNK_BYTES, CHUNKED_ABOVE_BYTES, Chunks, believable, chunk_digests, has_chunks
from protocol.errors import DigestMismatch, Unavailable
from protocol.ids import Digest, digest_of
from protocol.manifest import BlockRef
from protocol.tickets import Ticket
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.test_swarm import HOLDERS, NAMES, Desk
from worker.ports import BlockSource
from worker.swarm import BlockSwarm
from worker.timing import Timing

SMALL = 64


class TellingDesk(Desk):
    """It tells of chunks as well, those of `told`."""

    def __init__(self, told: pb.BlockChunks) -> None:
        super().__init__(HOLDERS[:2])
        self.told = told

    async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
        reply = await super().sources(request)
        if request.unchunked:
            reply.chunks.append(self.told)
        return reply


class Holder:
    """Gives `content` in pieces, and counts them."""

    def __init__(self, name: Digest, content: bytes, piece_bytes: int) -> None:
        self.name, self.content, self.piece_bytes = name, content, piece_bytes
        self.ticket: Ticket | None = None
        self.given_bytes = 0

    async def close(self) -> None: ...

    async def block(self, _digest: Digest, _size: int, offset: int) -> AsyncGenerator[bytes, None]:
        while offset < len(self.content):
            piece = self.content[offset : offset + self.piece_bytes]
            offset += len(piece)
            self.given_bytes += len(piece)
            yield piece


class Kept:
    """Keeps what came over tries, as the block cache does."""

    def __init__(self, ref: BlockRef, here: bytes) -> None:
        self.ref, self.here, self.wasted_bytes = ref, here, 0

    async def take(self, source: BlockSource) -> None:
        async for piece in source.block(self.ref.digest, self.ref.payload_bytes, len(self.here)):
            self.here += piece
        if len(self.here) < self.ref.payload_bytes:
            raise Unavailable("broke off")
        if digest_of(self.here) != self.ref.digest:
            self.wasted_bytes, self.here = len(self.here), b""
            raise DigestMismatch("another block")


async def brought(desk: Desk, lines: list[Holder], ref: BlockRef, here: bytes) -> Kept:
    swarm = BlockSwarm(
        desk,  # type: ignore[arg-type]  # as much of one as is asked
        lambda holder: lines[HOLDERS.index(holder)],
        Timing(sleep=lambda _s: asyncio.sleep(0)),
        near="127.0.0.1",
    )
    kept = Kept(ref, here)
    async with asyncio.timeout(5):
        await swarm.bring(ref, kept.take)
        if swarm._asking is not None:
            await swarm._asking
    assert not swarm._chunks
    assert not swarm._sizes
    return kept


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNKED_ABOVE_BYTES", 2 * SMALL)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    monkeypatch.setattr(chunks, "LEAST_CHUNK_BYTES", SMALL)


def told_of(content: bytes) -> pb.BlockChunks:
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        at += count
        return content[at - count : at]

    found = chunk_digests(read, len(content))
    digest = bytes.fromhex(digest_of(content))
    return pb.BlockChunks(digest=digest, chunk_bytes=found.chunk_bytes, digests=found.digests)


@pytest.mark.usefixtures("small_chunks")
@given(
    size=st.integers(2 * SMALL + 1, 12 * SMALL),
    wrong_at=st.integers(0),
    here_bytes=st.integers(0),
    piece_bytes=st.integers(1, 3 * SMALL),
)
def test_a_lie_in_one_chunk_costs_that_chunk(size: int, wrong_at: int, here_bytes: int, piece_bytes: int) -> None:
    content = random.Random(size).randbytes(size)
    wrong_at, here = wrong_at % size, content[: here_bytes % size]
    lie = bytearray(content)
    lie[wrong_at] ^= 1
    lines = [Holder(NAMES[0], bytes(lie), piece_bytes), Holder(NAMES[1], content, piece_bytes)]
    ref, desk = BlockRef(digest=digest_of(content), payload_bytes=size), TellingDesk(told_of(content))
    kept = asyncio.run(brought(desk, lines, ref, here))
    assert (kept.here, kept.wasted_bytes) == (content, 0)
    lied = wrong_at >= len(here) - len(here) % SMALL
    assert desk.avoided == ({NAMES[0]} if lied else set())
    needed = size - len(here)
    given_bytes = sum(line.given_bytes for line in lines)
    # the chunk in the middle of which it began, the chunk that was a lie, and what was on its way behind that
    assert given_bytes <= needed + len(here) % SMALL + (SMALL + piece_bytes if lied else 0)


@pytest.mark.usefixtures("small_chunks")
async def test_a_list_that_is_wrong_leaves_the_block_to_the_coordinator() -> None:
    content = random.Random(1).randbytes(5 * SMALL)
    told = told_of(content)
    told.digests = bytes(len(told.digests))
    desk = TellingDesk(told)
    desk.content = content
    lines = [Holder(name, content, SMALL) for name in NAMES[:2]]
    kept = await brought(desk, lines, BlockRef(digest=digest_of(content), payload_bytes=len(content)), b"")
    assert kept.here == content
    assert desk.given == 1
    assert sum(line.given_bytes for line in lines) == 2 * SMALL


def test_a_list_counts_only_where_it_is_as_long_as_the_block() -> None:
    size = CHUNKED_ABOVE_BYTES + 1
    assert has_chunks(size)
    assert not has_chunks(CHUNKED_ABOVE_BYTES)
    assert not has_chunks(1 << 40)
    assert believable(CHUNK_BYTES, bytes(96), size) == Chunks(chunk_bytes=CHUNK_BYTES, digests=bytes(96))
    for chunk_bytes, count in ((CHUNK_BYTES, 95), (CHUNK_BYTES, 128), (0, 96), (1, 32 * size), (1 << 30, 32)):
        assert believable(chunk_bytes, bytes(min(count, 1 << 20)), size) is None
    assert believable(1 << 20, bytes(32 * 4096), 4096 << 20) is None, "more chunks than a block has"
