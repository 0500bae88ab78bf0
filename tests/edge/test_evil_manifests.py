"""The worker's edge: a coordinator whose manifests, blocks or sequences are not what they must be."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, RunId, Version
from protocol.manifest import BlockRef, Manifest, sign_manifest
from protocol.sequences import HEADER
from protocol.v1 import barnraise_pb2 as pb
from tests.edge.evil_coordinator import Bend, EvilCoordinator, Meeting, field


def resigned(change: Callable[[Manifest], Manifest], signer: PrivateIdentity | None = None) -> Any:
    def bend(evil: EvilCoordinator) -> Bend:
        def reply(_: Any) -> pb.GetManifestReply:
            content = change(evil.manifest).to_json()
            return pb.GetManifestReply(manifest_json=content, signature=sign_manifest(signer or evil.signer, content))

        return reply

    return bend


def with_trunk(**changes: Any) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        ref: BlockRef = dataclasses.replace(manifest.blocks[TRUNK], **changes)
        return dataclasses.replace(manifest, blocks={**manifest.blocks, TRUNK: ref})

    return change


def without_trunk(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, blocks={block: ref for block, ref in manifest.blocks.items() if block != TRUNK}
    )


EVIL_KEY = PrivateIdentity.generate()
WRONG: dict[str, tuple[Callable[[EvilCoordinator], Bend], str]] = {
    "another signer": (resigned(lambda manifest: manifest, EVIL_KEY), "signature"),
    "signature of zeros": (lambda _: field(signature=bytes(64)), "signature"),
    "no signature": (lambda _: field(signature=b""), "signature"),
    "run": (resigned(lambda m: dataclasses.replace(m, run_id=RunId("another"))), "expected run, version"),
    "version": (
        resigned(lambda m: dataclasses.replace(m, version=Version(1), parent_version=Version(0))),
        "expected run, version",
    ),
    "residency": (resigned(lambda m: dataclasses.replace(m, residency="absent")), "expected run, version"),
    "model": (resigned(lambda m: dataclasses.replace(m, model={**m.model, "vocab_size": 8})), "another model"),
    "larger": (resigned(with_trunk(payload_bytes=2**50)), "block trunk: expected"),
    "smaller": (resigned(with_trunk(payload_bytes=1)), "block trunk: expected"),
    "digest that is a path": (resigned(with_trunk(digest="../../../evil")), "64 hexadecimal digits"),
    "no blocks": (resigned(lambda m: dataclasses.replace(m, blocks={})), "must name blocks"),
    "no trunk": (resigned(without_trunk), "lacks block trunk"),
}


@pytest.mark.parametrize(("bend", "words"), WRONG.values(), ids=WRONG)
async def test_a_manifest_that_does_not_hold_is_refused(meeting: Meeting, bend: Any, words: str) -> None:
    meeting.evil.bent["GetManifest"] = bend(meeting.evil)
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert words in str(meeting.told)
    assert "Download" not in meeting.evil.asked


async def test_an_older_version_than_leased_is_no_substitute(meeting: Meeting) -> None:
    meeting.evil.bent["AcquireLease"] = field(lease__base_version=7)
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "expected run, version" in str(meeting.told)


async def test_a_block_that_is_not_what_was_signed_is_never_used(meeting: Meeting) -> None:
    evil = meeting.evil

    async def other_bytes(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        honest = evil.content(request)
        content = honest if request.lease_data else bytes(len(honest))
        for frame in frames_of(lambda start, length: content[start : start + length], len(content)):
            yield frame

    evil.stream = other_bytes
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "has digest" in str(meeting.told)
    assert meeting.kept_bytes == 0


async def test_a_block_above_the_runs_own_bound_is_not_fetched(meeting: Meeting) -> None:
    meeting.evil.bent["OpenSession"] = field(run__max_block_bytes=1)
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "(at most 1)" in str(meeting.told)
    assert "Download" not in meeting.evil.asked


SEQUENCES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda good: b"\xff" * len(good), "the magic"),
    "vocabulary": (lambda good: good[: HEADER.size] + b"\xff" * (len(good) - HEADER.size), "outside the vocabulary"),
    "count": (lambda good: good[:8] + bytes([0, 0, 0, 3]) + good[12:], "x 33 tokens, got"),
    "short": (lambda good: good[:-1], "bytes, got"),
    "less than a header": (lambda good: good[:3], "of the header"),
    "width of a token": (lambda good: good[:4] + b"\x03" + good[5:], "a token has"),
}


@pytest.mark.parametrize(("bend", "words"), SEQUENCES.values(), ids=SEQUENCES)
async def test_invalid_sequences_are_never_trained_on(
    meeting: Meeting, bend: Callable[[bytes], bytes], words: str
) -> None:
    evil = meeting.evil
    honest = evil.content
    evil.content = lambda r: bend(honest(r)) if r.lease_data else honest(r)  # type: ignore[method-assign, assignment]
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert words in str(meeting.told)
    assert "CommitSubmission" not in evil.asked
