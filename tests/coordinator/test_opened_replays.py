"""What an audit finds of work whose encodings kept something: honest work is near, no lie hides in what was left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from aggregation.replayed import LARGEST_DISTANCE, ReplayDistance
from coordinator.engine.commands import CompareSubmissions, ReplayLease
from coordinator.store.artifacts import ArtifactStore
from coordinator.work.replaying import compared, replayed
from moe.layout import Layout, layout, submission_specs
from moe.presets import preset
from protocol.codecs import CODECS, FP32, codec_named
from protocol.ids import BlockId, Digest, LeaseId, WorkerId
from protocol.submission import Blocks, decode_submission, encode_submission
from protocol.tensors import encode_tensors
from tests.coordinator.work_bench import lease
from tests.protocol.test_made_up_codec import EightBits
from worker.train.residuals import Coded, coded

TOLERANCE = 0.02
STATEFUL = sorted({"eight_bits", *(name for name, codec in CODECS.items() if codec.has_state)})


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "eight_bits", EightBits())


class Audit:
    """One lease, whose worker's encodings have gone on for a few rounds."""

    def __init__(self, folder: Path, codec: str) -> None:
        self.layout: Layout = layout(preset("tiny"), "frozen")
        self.blobs = ArtifactStore(folder).payloads
        self.codec = codec
        self.lease = self._lease()
        self.bytes: dict[Digest, bytes] = {}
        for seed in range(3):
            self.made = self.encoded(self.gradient(seed))
            self.lease = self._lease(residuals=self.made.left)
        self.truth = self.gradient(99)

    def _lease(self, **changes: Any) -> Any:
        return dataclasses.replace(lease(1, (0, 1)), codec=self.codec, **changes)

    def gradient(self, seed: int) -> dict[BlockId, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        found: dict[BlockId, dict[str, torch.Tensor]] = {block: {} for block in self.lease.blocks}
        for spec in submission_specs(self.layout, self.lease.columns):
            block, _, name = spec.name.partition("/")
            found[BlockId(block)][name] = torch.randn(spec.shape, generator=generator)
        return found

    def encoded(self, gradient: Blocks) -> Coded:
        made = coded(self.lease, gradient, self.bytes.get)
        self.bytes |= made.residuals or {}
        return made

    def found(self, payload: bytes, began: tuple[Digest, ...], left: tuple[Digest, ...]) -> ReplayDistance:
        """By the coordinator's own replay."""
        for digest in {*began, *left} - {Digest("")}:
            self.blobs.put(self.bytes[digest])
        command = ReplayLease(
            command_id="replay:r1.1", lease=self.lease, digest=self.blobs.put(payload), codec=self.codec,
            micro_batch=0, residuals_in=began, residuals_out=left,
        )  # fmt: skip
        nothing: Any = None
        distance, _ = replayed(
            command, lambda *_: (self.truth, ""), layout=self.layout, payloads=self.blobs, base={}, sequences_NL=nothing
        )
        return distance

    def kept(self, blocks: Blocks) -> tuple[Digest, ...]:
        contents = [encode_tensors(dict(blocks[block]), FP32) for block in self.lease.blocks]
        digests = tuple(self.blobs.put(content) for content in contents)
        self.bytes |= dict(zip(digests, contents, strict=True))
        return digests


def plus(left: Blocks, right: Blocks, share: float = 1.0) -> dict[BlockId, dict[str, torch.Tensor]]:
    return {
        block: {name: one + share * right[block][name] for name, one in tensors.items()}
        for block, tensors in left.items()
    }


@pytest.fixture(params=STATEFUL)
def audit(request: pytest.FixtureRequest, tmp_path: Path) -> Audit:
    return Audit(tmp_path, request.param)


def test_honest_work_is_near_and_without_what_was_kept_it_would_not_be(audit: Audit) -> None:
    made = audit.encoded(audit.truth)
    assert made.began == audit.lease.residuals
    assert audit.found(made.payload, made.began, made.left).largest < 1e-3
    none = (Digest(""),) * len(audit.lease.blocks)
    if codec_named(audit.codec).name != "eight_bits":  # which loses next to nothing
        assert audit.found(made.payload, none, made.left).trunk > 10 * TOLERANCE


def test_work_that_was_not_done_is_as_far_as_ever(audit: Audit) -> None:
    lie = audit.encoded(audit.gradient(5))
    assert audit.found(lie.payload, lie.began, lie.left).trunk > 1.0


def test_a_lie_whose_opposite_is_left_is_no_encoding(audit: Audit) -> None:
    """What was sent + what is left = what was computed; only that nobody would have encoded it so."""
    honest = audit.encoded(audit.truth)
    lie = audit.gradient(5)
    payload = encode_submission(lie, codec_named(audit.codec))
    specs, codec = submission_specs(audit.layout, audit.lease.columns), codec_named(audit.codec)
    sent = decode_submission(payload, specs, codec, audit.lease.blocks)
    began = {
        block: decode_submission(
            encode_submission({block: audit.truth[block]}, FP32), [s for s in specs if s.name.startswith(f"{block}/")],
            FP32, (block,),
        )[block]
        for block in audit.lease.blocks
    }  # fmt: skip
    left = audit.kept(plus(began, sent, -1.0))
    none = (Digest(""),) * len(audit.lease.blocks)
    assert audit.found(payload, none, left).trunk > 10 * TOLERANCE
    assert audit.found(honest.payload, honest.began, honest.left).largest < TOLERANCE


def test_what_is_no_residual_is_as_far_as_can_be(audit: Audit) -> None:
    made = audit.encoded(audit.truth)
    garbage = audit.blobs.put(b"garbage")
    audit.bytes[garbage] = b"garbage"
    found = audit.found(made.payload, made.began, (garbage, *made.left[1:]))
    assert found == ReplayDistance(trunk=LARGEST_DISTANCE, columns=LARGEST_DISTANCE)


def test_an_auditor_that_sends_it_plain_comes_to_the_same(audit: Audit) -> None:
    made = audit.encoded(audit.truth)
    for digest in {*made.began, *made.left}:
        audit.blobs.put(audit.bytes[digest])
    again = dataclasses.replace(audit.lease, lease_id=LeaseId("r1.9"), worker=WorkerId("t"), codec="bf16", residuals=())
    command = CompareSubmissions(
        command_id="compare:r1.9", lease=audit.lease, digest=audit.blobs.put(made.payload), codec=audit.codec,
        again=again, again_digest=audit.blobs.put(encode_submission(audit.truth, codec_named("bf16"))),
        again_codec="bf16", residuals_in=made.began, residuals_out=made.left,
    )  # fmt: skip
    assert compared(command, layout=audit.layout, payloads=audit.blobs).largest < 0.005
