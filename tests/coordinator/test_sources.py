"""`Sources` over real loopback TLS: what is told of blocks, what a share has to be, and what is refused."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge.chunks import ChunkBook
from peering.certificate import PeerCertificate, new_certificate
from protocol import chunks
from protocol.ids import Digest, digest_of
from protocol.manifest import Manifest
from protocol.tickets import Ticket, check_ticket
from protocol.v1 import barnraise_pb2 as pb
from tests.served import RawClient, Refusal
from worker.blocks import BlockCache
from worker.home import Enrolment
from worker.sharing import Sharing

Join = Callable[..., Any]
JUNK = bytes.fromhex(digest_of(b"no block of this run"))


async def asked(client: RawClient, **fields: Any) -> pb.SourcesReply:
    reply: pb.SourcesReply = await client.call("Sources", pb.SourcesRequest(**fields), pb.SourcesReply)
    return reply


async def blocks_of(client: RawClient) -> list[bytes]:
    reply = await client.call("GetManifest", pb.GetManifestRequest(), pb.GetManifestReply)
    return [bytes.fromhex(ref.digest) for ref in Manifest.from_json(reply.manifest_json).blocks.values()]


async def shared(client: RawClient, folder: Path) -> Sharing:
    """A listener that is really there."""
    sharing = Sharing(BlockCache(folder), 10**6, host="127.0.0.1")
    await sharing.start(
        Enrolment(
            worker_id=client.identity.worker_id, run_id=client.run.run_id, trusted=False, manifest_public_key_hex="",
            ca_pem=client.run.authority().cert_pem.decode(), manifest_key_vouch_hex="",
        )
    )  # fmt: skip
    return sharing


async def test_chunks_of_a_large_block_are_told_while_somebody_has_it(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNKED_ABOVE_BYTES", 1000)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    holder, taker = await join(), await join()
    (block, other, *_), sharing = await blocks_of(holder), await shared(holder, tmp_path / "blocks")
    try:
        share = pb.Sharing(port=sharing.port, certificate=sharing._certificate.der)
        await asked(holder, got=[block], whole=True, share=share)
        reply = await asked(taker, wanted=[block, other], unchunked=[block, other, JUNK], room=4)
        (told,) = reply.chunks
        assert (told.digest, told.chunk_bytes) == (block, 1000)
        size = taker.run.artifacts().blocks.stat(Digest(block.hex()))
        with taker.run.artifacts().blocks.open(Digest(block.hex())) as content:
            pieces = [content.read(1000) for _ in range(-(-size // 1000))]
        assert told.digests == b"".join(bytes.fromhex(digest_of(piece)) for piece in pieces)
    finally:
        await sharing.stop()


async def test_chunks_that_a_disk_did_not_give_are_asked_of_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self) -> None:
            self.failures = 1

        def stat(self, _digest: Digest) -> int:
            self.failures -= 1
            if self.failures >= 0:
                raise OSError("the disk")
            return 2500

        def open(self, _digest: Digest) -> io.BytesIO:
            return io.BytesIO(bytes(2500))

    monkeypatch.setattr(chunks, "CHUNKED_ABOVE_BYTES", 1000)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    book: Any = ChunkBook(Failing())  # type: ignore[arg-type]
    digest = Digest(JUNK.hex())
    assert await book.of(digest) is None
    assert len((await book.of(digest)).digests) == 3 * 32


async def test_a_holder_is_named_once_it_was_reached_and_has_told(join: Join, tmp_path: Path) -> None:
    holder, taker = await join(), await join()
    (block, *_), sharing = await blocks_of(holder), await shared(holder, tmp_path / "blocks")
    assert not (await taker.acquire(0.0)).peers
    try:
        request = pb.SourcesRequest(wanted=[block], room=4)
        assert (await asked(taker, wanted=[block], room=4)).sources[0].granted  # nobody shares
        sharing.tell(request)
        request.got.extend([block, JUNK])
        reply: pb.SourcesReply = await holder.call("Sources", request, pb.SourcesReply)
        assert reply.notice == ""
        assert (await taker.acquire(0.0)).peers
        reply = await asked(taker, wanted=[block, JUNK], room=4)
        assert [source.digest for source in reply.sources] == [block]  # what nobody may download is no block
        assert [(one.host, one.port) for one in reply.holders] == [("127.0.0.1", sharing.port)]
        ticket = Ticket(
            public_key=reply.ticket.public_key, run_id=taker.run.run_id, expires_s=reply.ticket.expires_s,
            signature=reply.ticket.signature,
        )  # fmt: skip
        assert ticket.public_key == taker.identity.public_key
        check_ticket(ticket, taker.run.authority().cert_pem, taker.run.run_id, reply.now_s)
        # who says that it is gone, or shares no more, is named no more
        await asked(holder, gone=[block], share=request.share)
        assert not (await asked(taker, wanted=[block], room=4)).holders
        await asked(holder)
        assert (await asked(taker, wanted=[block], room=4)).sources[0].granted
    finally:
        await sharing.stop()


async def test_a_share_that_is_not_what_was_told_is_nobodys_source(join: Join, tmp_path: Path) -> None:
    holder, taker = await join(), await join()
    (block, *_), sharing = await blocks_of(holder), await shared(holder, tmp_path / "blocks")
    other: PeerCertificate = new_certificate()
    try:
        reply = await asked(holder, got=[block], share=pb.Sharing(port=sharing.port, certificate=other.der))
        assert "nobody reaches" in reply.notice
        again = await asked(holder, got=[block], share=pb.Sharing(port=sharing.port, certificate=other.der))
        assert again.notice == reply.notice  # remembered, not dialled at each question
        assert not (await asked(taker, wanted=[block], room=4)).holders
    finally:
        await sharing.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"wanted": [b"short"]},
        {"wanted": [JUNK] * 513},
        {"failed": [JUNK] * 65},
        {"got": [b""]},
        {"share": pb.Sharing(port=0, certificate=b"1")},
        {"share": pb.Sharing(port=70_000, certificate=b"1")},
        {"share": pb.Sharing(port=1, certificate=bytes(2049))},
        {"share": pb.Sharing(port=1)},
    ],
)
async def test_more_than_an_honest_worker_tells_is_refused(join: Join, fields: dict[str, Any]) -> None:
    await Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Sources").of(asked(await join(), **fields))


async def test_times_that_are_no_numbers_count_as_none(join: Join) -> None:
    client = await join()
    reply = await asked(client, wanted=await blocks_of(client), room=4, still_s=float("nan"))
    assert reply.sources


def test_a_certificate_fits_what_is_allowed() -> None:
    assert len(new_certificate().der) < 1024
    assert ssl.DER_cert_to_PEM_cert(new_certificate().der)
