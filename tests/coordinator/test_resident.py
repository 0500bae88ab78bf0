"""The resident model: whatever was asked of it before, it holds exactly what it is asked for now."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from coordinator.run.folder import RunFolder
from coordinator.work.resident import MappedVersion, ResidentModel
from moe.full import full_model
from protocol.codecs import GRANULE, codec_named
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, column_block
from protocol.specs import TensorSpec
from protocol.tensors import encode_tensors, encoded_tensors
from tests.coordinator.work_bench import Bench, constant, contribution

Tensors = dict[str, torch.Tensor]
Pair = tuple[MappedVersion, MappedVersion]


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


@pytest.fixture
def bases(bench: Bench) -> Pair:
    """The run's first version and one in which the trunk and column 1 differ."""
    event = bench.aggregate((contribution(1, bench.submit((1,), constant(0.25)), (1,)),))
    first = MappedVersion.of(bench.versions, bench.base_manifest)
    return first, MappedVersion.of(bench.versions, event.manifest, [first])


def gradient(bench: Bench, *columns: int) -> dict[BlockId, Tensors]:
    generator = torch.Generator().manual_seed(1)
    return {
        block: {spec.name: torch.randn(spec.shape, generator=generator) for spec in bench.layout.block_specs(block)}
        for block in bench.layout.shard_blocks(columns)
    }


def assert_holds(bench: Bench, model: torch.nn.Module, expected: Mapping[BlockId, Tensors]) -> None:
    fresh = dict(full_model(bench.layout, expected).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, fresh[name]), name


def test_every_order_of_asking_ends_in_what_was_asked_for(bench: Bench, bases: Pair) -> None:
    taken = gradient(bench, 1, 3)
    new = {TRUNK: gradient(bench)[TRUNK]}
    resident = ResidentModel(bench.layout, "cpu")

    def less(base: MappedVersion, share: float) -> dict[BlockId, Tensors]:
        return dict(base.blocks) | {
            block: {name: torch.sub(base.blocks[block][name], one, alpha=share) for name, one in tensors.items()}
            for block, tensors in taken.items()
        }

    for base, other in itertools.product(bases, bases):
        for share in (0.25, 1.0):
            assert_holds(bench, resident.less(base, taken, share), less(base, share))
        assert_holds(bench, resident.at(other), other.blocks)
        assert_holds(bench, resident.replaced(base, new.items()), dict(base.blocks) | new)
        assert_holds(bench, resident.less(other, taken, 0.5), less(other, 0.5))
        assert_holds(bench, resident.less(other, {}, 0.0), other.blocks)


def test_measuring_copies_nothing_but_what_is_measured(
    bench: Bench, bases: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part and all of a submission of whole models are two models; between them, and before the next, none is made
    that nobody looks at."""
    base, _ = bases
    resident = ResidentModel(bench.layout, "cpu")
    resident.at(base)
    copied: list[BlockId] = []
    monkeypatch.setattr("coordinator.work.resident.load_blocks", lambda _model, _cut, blocks: copied.extend(blocks))
    for _ in range(2):
        taken = gradient(bench, *range(bench.layout.columns))
        for share in (0.3, 1.0):
            resident.less(base, taken, share)
    assert copied == []


def test_what_breaks_off_half_way_is_not_taken_for_whole(bench: Bench, bases: Pair) -> None:
    base, resident = bases[0], ResidentModel(bench.layout, "cpu")
    resident.at(base)

    def breaks_off() -> Iterator[tuple[BlockId, Tensors]]:
        yield TRUNK, gradient(bench)[TRUNK]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        resident.replaced(base, breaks_off())
    assert_holds(bench, resident.at(base), base.blocks)
    bad = gradient(bench, 2)
    bad[column_block(2)].popitem()
    bad[column_block(2)]["no.such.name"] = torch.zeros(1)
    with pytest.raises(KeyError):
        resident.less(base, bad, 1.0)
    assert_holds(bench, resident.at(base), base.blocks)


def test_versions_share_the_blocks_that_they_have_in_common(bench: Bench, bases: Pair) -> None:
    first, second = bases
    before = first.norm_l2(column_block(0))
    third = MappedVersion.of(bench.versions, second.manifest, bases)
    name = next(iter(first.blocks[column_block(0)]))
    assert second.blocks[column_block(0)][name] is first.blocks[column_block(0)][name]
    assert second.blocks[column_block(1)][name] is not first.blocks[column_block(1)][name]
    assert third.norm_l2(column_block(0)) == before


def test_a_version_is_mapped_and_writing_to_it_stays_in_this_process(bench: Bench) -> None:
    base = MappedVersion.of(bench.versions, bench.base_manifest)
    tensor = next(iter(base.blocks[TRUNK].values()))
    kept = tensor.clone()
    tensor.add_(1.0)
    again = MappedVersion.of(bench.versions, bench.base_manifest)
    assert torch.equal(next(iter(again.blocks[TRUNK].values())), kept)


def test_a_version_that_the_disk_changed_is_refused(bench: Bench) -> None:
    digest = bench.versions.manifest(bench.base_manifest).blocks[TRUNK].digest
    with Path(bench.store.blocks.place(digest)).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(LocalError, match="no longer has the digest"):
        MappedVersion.of(bench.versions, bench.base_manifest)


def test_pieces_are_decoded_as_they_are_taken() -> None:
    spec = TensorSpec("w", (3, GRANULE - 7))
    tensor = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0))
    codec = codec_named("bf16")
    payload = memoryview(bytearray(encode_tensors({"w": tensor}, codec)))
    piece = encoded_tensors(payload, [spec], codec)["w"]
    assert torch.equal(piece.whole(), tensor.bfloat16().float())
    assert torch.equal(piece.span(GRANULE, 2 * GRANULE), piece.whole().view(-1)[GRANULE : 2 * GRANULE])
