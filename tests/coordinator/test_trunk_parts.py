"""What is sent of a `lora` or frozen trunk, as the coordinator reads it: products, measured and aggregated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from aggregation.blockwise import BlockContribution, aggregate_block
from coordinator.edge.residuals import residual_bytes
from coordinator.engine.commands import CompareSubmissions, Contribution
from coordinator.engine.events import LeaseReplayed
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import LeaseRecord
from coordinator.run.folder import RunFolder
from coordinator.work.resident import MappedVersion, ResidentModel
from moe.factors import fixed_factor
from moe.layout import submission_specs
from moe.trunk import trunk_sort
from protocol.codecs import codec_named
from protocol.ids import TRUNK, BlockId, Digest, Version, column_block
from protocol.lease import TrunkPart
from protocol.tensors import encode_tensors
from tests.coordinator.work_bench import Bench, contribution, lease

LORA = TrunkPart(mode="lora", rank=3, seed=9)
FROZEN = TrunkPart(mode="frozen")
COLUMNS = (0, 2)
Blocks = dict[BlockId, dict[str, torch.Tensor]]


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def leased(number: int, part: TrunkPart) -> GrantedLease:
    plain = lease(number, COLUMNS)
    recipe = dataclasses.replace(plain.recipe, trunk=part.mode, lora_rank=part.rank or 16)
    return dataclasses.replace(plain, recipe=recipe, lora_seed=part.seed)


def sent(bench: Bench, part: TrunkPart, seed: int) -> tuple[Digest, Blocks]:
    """A submission of random values, and what it stands for, block by block."""
    generator = torch.Generator().manual_seed(seed)
    specs = submission_specs(bench.layout, COLUMNS, part)
    flat = {spec.name: 0.01 * torch.randn(spec.shape, generator=generator) for spec in specs}
    sort, whole = trunk_sort(bench.layout.config_json, part), dict[BlockId, dict[str, torch.Tensor]]()
    assert sort is not None
    for key, own in flat.items():
        tensor = own
        block, _, name = key.partition("/")
        if block == TRUNK and name in sort.factored:
            width = {spec.name: spec.shape for spec in bench.layout.trunk}[name][1]
            fixed = fixed_factor(part, name, width, device=torch.device("cpu"), dtype=torch.float32)
            tensor = tensor @ fixed
        whole.setdefault(BlockId(block), {})[name] = tensor
    return bench.store.payloads.put(encode_tensors(flat, codec_named("fp32"))), whole


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors.values()))


def test_norms_are_those_of_the_products(bench: Bench) -> None:
    digest, whole = sent(bench, LORA, 1)
    event = bench.measure(digest, COLUMNS, lease=leased(1, LORA), gain=True)
    assert event.malformed == ""
    for one in event.norms:
        assert one.norm_l2 == pytest.approx(norm(whole[one.block]), rel=1e-5), one.block
    digest, whole = sent(bench, FROZEN, 1)
    event = bench.measure(digest, COLUMNS, lease=leased(1, FROZEN), gain=True)
    assert [one.block for one in event.norms] == [column_block(0), column_block(2)]


def test_a_submission_of_another_size_or_with_a_value_that_is_none_is_malformed(bench: Bench) -> None:
    digest, _ = sent(bench, dataclasses.replace(LORA, rank=4), 1)
    assert "bytes, expected" in bench.measure(digest, COLUMNS, lease=leased(1, LORA)).malformed
    digest, _ = sent(bench, FROZEN, 1)
    assert "bytes, expected" in bench.measure(digest, COLUMNS, lease=leased(1, LORA)).malformed
    specs = submission_specs(bench.layout, COLUMNS, LORA)
    for bad in (math.nan, math.inf, 3e38):  # the last is finite, and its product is not
        flat = {spec.name: torch.full(spec.shape, bad if "q_proj" in spec.name else 0.0) for spec in specs}
        digest = bench.store.payloads.put(encode_tensors(flat, codec_named("fp32")))
        assert "not finite" in bench.measure(digest, COLUMNS, lease=leased(1, LORA)).malformed


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["mean", "median", "krum"])
def test_products_are_aggregated_and_what_is_not_sent_stays(bench: Bench, rule: str, momentum: float) -> None:
    made = [sent(bench, LORA, seed) for seed in (1, 2, 3)]
    given = tuple(contribution(n, digest, COLUMNS, trunk=LORA) for n, (digest, _) in enumerate(made))
    event = bench.aggregate(given, rule=rule, outer_momentum=momentum)
    after, base = bench.blocks_of(event)[TRUNK], bench.base[TRUNK]
    dense = [BlockContribution(tensors=whole[TRUNK], weight=1.0) for _, whole in made]
    expected = aggregate_block(dense, rule, seed=7)
    for name, tensor in base.items():
        if name in expected:
            wanted = tensor - (1.0 + momentum) * expected[name]
            torch.testing.assert_close(after[name], wanted, rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert torch.equal(after[name], tensor), name
    assert "model.layers.0.self_attn.q_proj.weight" in expected
    manifest = bench.versions.manifest(event.manifest)
    if momentum:
        kept = bench.versions.load_block(TRUNK, manifest.momenta[TRUNK])
        assert not kept["model.embed_tokens.weight"].any()
        again = tuple(dataclasses.replace(one, base_version=Version(1)) for one in given)
        later = bench.aggregate(
            again, rule=rule, outer_momentum=momentum, command_id="aggregate:r2", parent_version=1,
            parent_manifest=event.manifest, version=2, round=2,
        )  # fmt: skip
        assert torch.equal(
            bench.blocks_of(later)[TRUNK]["model.embed_tokens.weight"], base["model.embed_tokens.weight"]
        )


def test_a_frozen_trunk_is_the_same_block_in_the_next_version(bench: Bench) -> None:
    digest, whole = sent(bench, FROZEN, 1)
    given: tuple[Contribution, ...] = (contribution(1, digest, COLUMNS, trunk=FROZEN, include_trunk=False),)
    event = bench.aggregate(given)
    before, after = bench.versions.manifest(bench.base_manifest), bench.versions.manifest(event.manifest)
    assert after.blocks[TRUNK] == before.blocks[TRUNK]
    moved = bench.blocks_of(event)[column_block(0)]
    for name, tensor in bench.base[column_block(0)].items():
        torch.testing.assert_close(moved[name], tensor - whole[column_block(0)][name])


def test_the_resident_model_has_the_base_where_a_submission_has_nothing(bench: Bench) -> None:
    digest, _ = sent(bench, LORA, 1)
    event = bench.aggregate((contribution(1, digest, COLUMNS, trunk=LORA),))
    first = MappedVersion.of(bench.versions, bench.base_manifest)
    second = MappedVersion.of(bench.versions, event.manifest, [first])
    resident = ResidentModel(bench.layout, "cpu")
    resident.at(second)
    name = "model.norm.weight"
    taken: Any = {TRUNK: {name: torch.ones(first.blocks[TRUNK][name].shape)}}
    model = resident.less(first, taken, 0.5)
    held = dict(model.named_parameters())
    for other, tensor in first.blocks[TRUNK].items():
        expected = tensor - 0.5 if other == name else tensor
        assert torch.equal(held[other].detach(), expected), other


def test_a_residual_has_the_size_of_what_is_sent(bench: Bench) -> None:
    digests = tuple(map(Digest, "abc"))
    record = LeaseRecord(lease=leased(1, LORA), residuals_in=(Digest(""),) * 3, residuals_out=digests)
    sizes = [residual_bytes(bench.layout, record, digest) for digest in digests]
    specs = [bench.layout.sent_specs(block, LORA) for block in record.lease.blocks]
    for size, of_block in zip(sizes, specs, strict=True):
        assert 0 < size - sum(spec.payload_bytes for spec in of_block) < 8192
    assert sizes[0] < bench.layout.block_bytes(TRUNK)
    frozen = LeaseRecord(lease=leased(1, FROZEN), residuals_in=(Digest(""),) * 2, residuals_out=digests[:2])
    assert [residual_bytes(bench.layout, frozen, digest) for digest in digests[:2]] == sizes[1:]


def test_an_auditors_factors_are_held_against_what_was_sent(bench: Bench) -> None:
    mine, _ = sent(bench, LORA, 1)
    other, _ = sent(bench, LORA, 2)
    for again, near in ((mine, True), (other, False)):
        event = bench.executor.execute(
            CompareSubmissions(
                command_id="compare:r1.2",
                lease=leased(1, LORA),
                digest=mine,
                codec="fp32",
                again=leased(2, LORA),
                again_digest=again,
                again_codec="fp32",
            )
        )
        assert isinstance(event, LeaseReplayed)
        assert (event.trunk == 0.0) is near
