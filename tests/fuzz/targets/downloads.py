"""What a worker downloads for a lease: manifest, blocks and sequences, through its client and fetcher."""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError

from moe.layout import block_tensor_specs
from protocol.archives import ArchiveRecord, sign_record
from protocol.codecs import FP32
from protocol.errors import DigestMismatch, MalformedMessage, Refused, Unauthenticated
from protocol.ids import RoundNumber, RunId, Version, digest_of
from protocol.manifest import BlockRef, Manifest, sign_manifest
from protocol.sequences import decode_sequences, encode_sequences, max_payload_bytes
from protocol.tensor_headers import payload_size
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import InlineBackground, finish
from tests.fuzz.mutate import (
    after_head,
    joined,
    pieces_mutated,
    split,
)
from tests.fuzz.target import Target
from tests.fuzz.targets.protocol import IDENTITY, PAYLOAD, frames, short_frames
from tests.fuzz.targets.worker_world import world
from worker.archivist import Archivist
from worker.fetch import Fetcher, checked_ref
from worker.progress import QuietReporter


def _manifest_reply(data: bytes) -> object:
    there = world()
    there.channel.answers = [data]
    lease = there.lease
    fetcher = Fetcher(there.client, there.home.disk, there.enrolment, InlineBackground())
    manifest = finish(fetcher._manifest(lease, there.run))
    blocks = there.run.layout.needed_blocks(lease.columns)
    return [checked_ref(manifest, block, there.run, lease) for block in blocks]


def _manifests() -> list[bytes]:
    run = world().run
    refs = {
        block: BlockRef(
            digest=digest_of(block.encode()), payload_bytes=payload_size(block_tensor_specs(run.layout, block), FP32)
        )
        for block in run.layout.blocks
    }
    manifest = Manifest(
        run_id=RunId("run"), version=Version(1), parent_version=Version(0), round=RoundNumber(1), created_at_s=1.5,
        model=run.layout.config_json, residency="frozen", blocks=refs, momenta={}, val_loss=3.5, tokens_trained=1000,
    )  # fmt: skip
    return [manifest.to_json()]


def _signed(content: bytes) -> bytes:
    reply = pb.GetManifestReply(manifest_json=content, signature=sign_manifest(IDENTITY, content))
    return reply.SerializeToString()


def _archive_reply(data: bytes) -> object:
    there = world()
    there.channel.answers, there.joining._run = [_signed(_manifests()[0])], there.run
    try:
        reply = pb.ArchiveReply.FromString(data)
    except DecodeError as error:
        raise MalformedMessage("not an ArchiveReply") from error
    return finish(Archivist(there.joining, QuietReporter())._index(reply))


def _records() -> list[bytes]:
    record = ArchiveRecord(
        run_id=RunId("run"), version=Version(1), manifest=digest_of(_manifests()[0]), settings={"name": "a run"},
        goes_on=False, dtype="fp32", data={"digest": "0" * 64},
        companions={"tokenizer.json": BlockRef(digest=digest_of(PAYLOAD), payload_bytes=len(PAYLOAD))},
    )  # fmt: skip
    return [record.to_json()]


def _recorded(content: bytes) -> bytes:
    signature = sign_record(IDENTITY, content)
    return pb.ArchiveReply(version=1, record_json=content, record_signature=signature).SerializeToString()


def _block(data: bytes) -> object:
    """The first byte says how much an earlier download left; the frames of the rest follow."""
    there, ref = world(), BlockRef(digest=digest_of(PAYLOAD), payload_bytes=len(PAYLOAD))
    cache = there.home.disk.blocks
    cache.partial(ref.digest).write_bytes(PAYLOAD[: data[0] if data else 0])
    there.channel.answers, there.channel.frames = [b""], split(data[1:])
    fetcher = Fetcher(there.client, there.home.disk, there.enrolment, InlineBackground())
    with short_frames():
        finish(there.client.patiently(lambda: fetcher._download(ref, there.client, lambda _: None)))
    assert cache.path(ref.digest).read_bytes() == PAYLOAD
    return None


def _blocks() -> list[bytes]:
    return [bytes([head]) + joined(frames(PAYLOAD, head)) for head in (0, 64, 65, 200)]


def _lease_data(data: bytes) -> object:
    there = world()
    there.channel.answers, there.channel.frames = [b""], split(data)
    with short_frames():
        bound = max_payload_bytes(20, 17)
        payload = finish(there.client.download_lease_data("r1.1", bound, lambda _: None))
    return decode_sequences(payload, 20, 17, 256)


def _lease_data_samples() -> list[bytes]:
    tokens_NL = np.arange(20 * 17).reshape(20, 17) % 250
    return [joined(frames(encode_sequences(tokens_NL.astype(kind)))) for kind in (np.uint8, np.uint16, np.uint32)]


TARGETS = (
    Target(
        name="signed-manifest",
        decode=_manifest_reply,
        refusals=(MalformedMessage, Unauthenticated, Refused),
        samples=_manifests,
        seal=_signed,
    ),
    Target(
        name="archive-record",
        decode=_archive_reply,
        refusals=(MalformedMessage, Unauthenticated, Refused),
        samples=_records,
        seal=_recorded,
    ),
    Target(
        name="block-download",
        decode=_block,
        refusals=(MalformedMessage, DigestMismatch, Refused),
        samples=_blocks,
        base_bytes=2 << 20,  # what an earlier download left is hashed a MiB at a time
        mutate=after_head(pieces_mutated),
    ),
    Target(
        name="sequences-download",
        decode=_lease_data,
        refusals=(MalformedMessage, Refused),
        samples=_lease_data_samples,
        mutate=pieces_mutated,
    ),
)
