"""A submission is written a tensor at a time: the bytes that encoding it whole would give, and never much in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.burden import Burden, sent_bytes
from moe.layout import Layout, submission_specs
from protocol.codecs import CODECS, FP32, codec_named
from protocol.ids import BlockId, Digest
from protocol.lease import Lease
from protocol.recipe import Recipe
from protocol.specs import submission_name
from protocol.submission import encode_submission
from protocol.tensors import encode_tensors
from tests.live_tensors import LiveTensors
from tests.worker.test_residuals import gradient_of, lease_of
from worker.outbox import Outbox
from worker.train.residuals import coded, write_submission


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_submission_is_what_encoding_it_whole_gives(frozen_layout: Layout, tmp_path: Path, codec: str) -> None:
    """Three in a row, each beginning with what the one before it left; and what is left are the codec's states."""
    states: dict[str, torch.Tensor] = {}
    outbox, lease, specs = Outbox(tmp_path), lease_of(codec), submission_specs(frozen_layout, lease_of(codec).columns)
    for seed in range(3):
        gradient = gradient_of(frozen_layout, lease, seed)
        made = write_submission(lease, gradient, specs, outbox)
        whole = encode_submission(gradient, codec_named(codec), states)
        assert (tmp_path / f"{made.digest}.safetensors").read_bytes() == whole
        assert made.payload_bytes == len(whole)
        assert made.digest == made_in_memory(lease, gradient, outbox.residual)
        for block, digest in zip(lease.blocks, made.left, strict=False):
            own = {name: states[submission_name(block, name)] for name in gradient[block]}
            assert outbox.residual(digest) == encode_tensors(own, FP32)
        assert bool(made.left) == CODECS[codec].has_state
        lease = lease_of(codec, *made.left)


def made_in_memory(lease: Lease, gradient: Any, kept: Callable[[Digest], bytes | None]) -> Digest:
    from protocol.ids import digest_of

    return digest_of(coded(lease, gradient, kept).payload)


class Made(Mapping[str, torch.Tensor]):
    """Tensors that are made when they are asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.times = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.times += 1
        return torch.full(self.shapes[name], 0.125 + len(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@pytest.mark.parametrize("codec", ["bf16", "int4", "ternary"])
def test_no_more_than_a_tensor_of_each_kind_is_in_memory(frozen_layout: Layout, tmp_path: Path, codec: str) -> None:
    """With the residuals of before: what is planned for the largest tensor, and what a codec takes for spans of it."""
    lease, outbox = lease_of(codec), Outbox(tmp_path)
    wide = {
        spec.name: (1 << 17, *spec.shape[1:2]) if spec.name in two_of_a_block(frozen_layout) else spec.shape
        for spec in submission_specs(frozen_layout, lease.columns)
    }
    specs = [type(spec)(spec.name, wide[spec.name]) for spec in submission_specs(frozen_layout, lease.columns)]
    gradient: dict[BlockId, Made] = {block: Made(of_block(wide, block)) for block in lease.blocks}
    for _ in range(2):
        with LiveTensors() as live:
            made = write_submission(lease, gradient, specs, outbox)
        lease = lease_of(codec, *made.left)
    load_of = Burden(layout=frozen_layout, recipe=Recipe(), sequence_length=1, codec=codec)
    largest = max(spec.elements for spec in specs)
    planned = sent_bytes(load_of, largest)
    assert live.peak_bytes <= planned + SPANS_BYTES, "whatever else is sent beside that tensor"
    assert live.peak_bytes > 0.8 * planned
    assert {one.times / len(one) for one in gradient.values()} <= {2.0, 4.0}, "made anew for each use"


SPANS_BYTES = 4 << 20
"""What a codec makes while it encodes, of two granules at a time."""


def two_of_a_block(layout: Layout) -> list[str]:
    """The one after the other."""
    large = sorted(submission_specs(layout, (0,)), key=lambda spec: spec.elements)[-2:]
    assert len({spec.name.partition("/")[0] for spec in large}) == 1
    return [spec.name for spec in large]


def of_block(shapes: Mapping[str, tuple[int, ...]], block: BlockId) -> dict[str, tuple[int, ...]]:
    prefix = submission_name(block, "")
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
