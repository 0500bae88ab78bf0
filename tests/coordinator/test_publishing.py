"""What is published is what everybody has; what that rounds away is kept by the coordinator, and comes later."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.engine.commands import RebuildVersion, ReplayLease
from coordinator.engine.down_config import WHOLE, DownConfig
from coordinator.engine.events import LeaseReplayed, RoundAggregated, VersionRebuilt
from coordinator.run.folder import RunFolder
from coordinator.work.publishing import MOST_STEPS
from moe.layout import block_tensor_specs
from protocol.codecs import codec_named
from protocol.deltas import stepped
from protocol.errors import LocalError
from protocol.ids import TRUNK, Digest, RoundNumber, Version, column_block
from protocol.lease import AS_PUBLISHED, FrozenColumns
from protocol.manifest import Manifest
from protocol.specs import TensorSpec
from protocol.submission import Blocks
from tests.coordinator.work_bench import Bench, attempt, constant, contribution, lease
from tests.live_tensors import LiveTensors

FROZEN = "int4"
"""As the run at the bench was begun with."""
DOWN = DownConfig(codec="bf16", frozen_codec=FROZEN, frozen_every=3)
HELD = (0, 1)


@pytest.fixture
def bench(run: RunFolder) -> Bench:
    return Bench(run)


def uneven(seed: int) -> Any:
    stream = torch.Generator().manual_seed(seed)
    return lambda _, shape: torch.randn(shape, generator=stream) * 0.01


def step(bench: Bench, parent: Digest, number: int, down: DownConfig = DOWN, **changes: Any) -> RoundAggregated:
    sent = (contribution(number, bench.submit(HELD, uneven(number)), HELD),)
    return bench.aggregate(
        sent, round=RoundNumber(number), parent_version=Version(number - 1), parent_manifest=parent,
        version=Version(number), down=down, **changes,
    )  # fmt: skip


def rounds(bench: Bench, count: int, down: DownConfig = DOWN) -> list[Manifest]:
    """That many versions, the first one before them."""
    parent, made = bench.base_manifest, [bench.versions.manifest(bench.base_manifest)]
    for number in range(1, count + 1):
        parent = step(bench, parent, number, down).manifest
        made.append(bench.versions.manifest(parent))
    return made


def test_whoever_has_a_version_and_the_step_has_the_next_one(bench: Bench) -> None:
    manifests = rounds(bench, 3)
    for before, after in itertools.pairwise(manifests):
        for block in (TRUNK, column_block(0)):
            first = after.deltas[block][0]
            assert first.base == before.blocks[block].digest
            base = bench.versions.load_block(block, before.blocks[block])
            delta = bench.store.blocks.read(first.digest)
            assert len(delta) == first.payload_bytes
            made = stepped(base, delta, block_tensor_specs(bench.layout, block), codec_named(first.codec))
            assert bench.versions.put_block(made) == after.blocks[block]
    assert column_block(5) not in manifests[-1].deltas, "nobody returned it"


def test_a_chain_leads_back_as_far_as_it_is_shorter_than_the_block(bench: Bench) -> None:
    manifests = rounds(bench, 6)
    for block, chain in manifests[-1].deltas.items():
        whole = manifests[-1].blocks[block].payload_bytes
        assert 1 <= len(chain) <= MOST_STEPS
        assert sum(one.payload_bytes for one in chain) < whole
        reached = [manifest.blocks[block].digest for manifest in manifests[::-1][1 : len(chain) + 1]]
        assert [one.base for one in chain] == reached


def test_the_master_goes_on_from_what_was_rounded_away(bench: Bench) -> None:
    rounded = rounds(bench, 6)[-1]
    masters = {block: bench.versions.load_block(block, ref) for block, ref in rounded.masters.items()}
    published = bench.versions.load_blocks(rounded)
    whole = rounds(bench, 6, WHOLE)[-1]
    assert set(masters) == {TRUNK, column_block(0), column_block(1)}
    for block, master in masters.items():
        there, exact = published[block], bench.versions.load_block(block, whole.blocks[block])
        for name, tensor in master.items():
            # the submissions are the same, so the masters are those of a run that rounds nothing ...
            assert torch.equal(tensor, exact[name])
            # ... and what is published is a step's rounding away from it, not that of six
            assert float((there[name] - tensor).abs().max()) <= 2.0**-8 * 0.06
    assert not whole.masters
    assert not whole.deltas
    assert whole.frozen is None


def test_a_run_without_masters_goes_on_from_what_is_published(bench: Bench) -> None:
    old = rounds(bench, 1, WHOLE)[-1]
    digest = bench.versions.manifest_digest(1)
    assert digest is not None
    made = bench.versions.manifest(step(bench, digest, 2).manifest)
    assert made.deltas[TRUNK][0].base == old.blocks[TRUNK].digest
    assert len(made.deltas[TRUNK]) == 1


def test_another_process_goes_on_with_the_same_bits(bench: Bench, run: RunFolder) -> None:
    manifests = rounds(bench, 2)
    again = Bench(run)  # died between publishing and the next step
    digest = again.versions.manifest_digest(1)
    assert digest is not None
    there = again.versions.manifest(step(again, digest, 2).manifest)
    assert dataclasses.replace(there, created_at_s=0.0) == dataclasses.replace(manifests[2], created_at_s=0.0)


@pytest.mark.parametrize("lost", ["delta", "master", "frozen"])
def test_a_version_of_which_something_is_gone_is_made_again(bench: Bench, lost: str) -> None:
    made = step(bench, bench.base_manifest, 1).manifest
    manifest = bench.versions.manifest(made)
    assert manifest.frozen is not None
    digest = {
        "delta": manifest.deltas[TRUNK][0].digest,
        "master": manifest.masters[TRUNK].digest,
        "frozen": manifest.frozen.blocks[column_block(0)].digest,
    }[lost]
    bench.store.blocks.drop(digest)
    if lost == "frozen":  # of version 0: nobody can make it again
        assert bench.versions.find(1, "whatever made it") is None
        return
    step(bench, bench.base_manifest, 1)
    assert bench.store.blocks.has(digest)


def test_a_step_that_cannot_be_written_publishes_the_block_whole(bench: Bench) -> None:
    huge = contribution(1, bench.submit((0,), constant(3e38)), (0,))
    manifest = bench.versions.manifest(bench.aggregate((huge,), down=DOWN).manifest)
    assert TRUNK not in manifest.deltas
    assert TRUNK not in manifest.masters
    for block in (TRUNK, column_block(0)):
        for tensor in bench.versions.load_block(block, manifest.blocks[block]).values():
            assert torch.isfinite(tensor).all()


def test_what_is_tried_is_what_would_be_published(bench: Bench) -> None:
    sent = (contribution(1, bench.submit(HELD, uneven(1)), HELD),)
    event = bench.aggregate(sent, down=DOWN)
    command = attempt(bench, sent, rule="mean", outer_momentum=0.0, down=DOWN)
    changed = dict(bench.executor._aggregator.candidate(command, bench.base, [sent[0].lease_id]))
    tried = {**bench.base, **changed}
    for block, tensors in bench.blocks_of(event).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, tried[block][name])


@pytest.mark.parametrize("is_tried", [False, True])
def test_one_block_is_in_memory_at_a_time(bench: Bench, is_tried: bool) -> None:
    """Its new values, its momentum, and what is published of it; not the last one's beside them."""
    columns = tuple(range(bench.layout.columns))
    sent = (contribution(1, bench.submit(columns, uneven(1)), columns),)
    command = attempt(bench, sent, rule="mean", outer_momentum=0.9, down=DOWN)
    largest = max(sum(tensor.nbytes for tensor in tensors.values()) for tensors in bench.base.values())
    with LiveTensors() as live:
        if is_tried:
            for _, tensors in bench.executor._aggregator.candidate(command, bench.base, [sent[0].lease_id]):
                del tensors
        else:
            bench.executor._aggregator.run(command, bench.base, created_at_s=0.0)
    assert live.peak_bytes < 3.6 * largest


def coded(tensor: torch.Tensor) -> torch.Tensor:
    """As whoever does not hold it computes with it."""
    codec = codec_named(FROZEN)
    return codec.decode(codec.encode(tensor).parts, TensorSpec("any", tuple(tensor.shape)))


# ---- columns that are not held -----------------------------------------------------------------------------------


def test_frozen_columns_are_encoded_every_so_many_versions(bench: Bench) -> None:
    manifests = rounds(bench, 7)
    of = [manifest.frozen.version for manifest in manifests if manifest.frozen is not None]
    assert of == [0, 0, 0, 3, 3, 3, 6, 6]
    for manifest in manifests:
        assert manifest.frozen is not None
        assert set(manifest.frozen.blocks) == set(manifest.blocks) - {TRUNK}
    other = dataclasses.replace(DOWN, frozen_codec="fp32")
    digest = bench.versions.manifest_digest(7)
    assert digest is not None
    event = step(bench, digest, 8, other)
    assert event.frozen == AS_PUBLISHED
    event = step(bench, event.manifest, 9)
    assert event.frozen == FrozenColumns(version=Version(9), codec=FROZEN)


def test_what_stands_in_is_what_the_lease_names(bench: Bench) -> None:
    manifest = rounds(bench, 4)[-1]
    frozen = FrozenColumns(version=Version(3), codec=FROZEN)
    one = dataclasses.replace(lease(1, HELD), base_version=Version(4), frozen=frozen)
    found = bench.versions.stand_ins(manifest, one)
    assert set(found) == set(manifest.blocks) - set(one.blocks)
    third = bench.versions.manifest_digest(3)
    assert third is not None
    whole = bench.versions.load_blocks(bench.versions.manifest(third))
    for block, tensors in found.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, coded(whole[block][name]))
            assert tensors.encoded(name).codec.name == FROZEN, "in the bytes that workers have"
    assert bench.versions.stand_ins(manifest, dataclasses.replace(one, frozen=AS_PUBLISHED)) == {}
    with pytest.raises(LocalError, match="frozen"):
        bench.versions.stand_ins(manifest, dataclasses.replace(one, frozen=dataclasses.replace(frozen, codec="fp32")))


def test_a_replay_computes_with_the_same_values(bench: Bench) -> None:
    manifests = rounds(bench, 2)
    seen: list[Blocks] = []

    def replay(
        leased: Any, base: Blocks, sequences_NL: np.ndarray[Any, Any], micro_batch: int, arithmetic: str
    ) -> tuple[Blocks, str]:
        seen.append(base)
        zeros = {block: {n: torch.zeros_like(t) for n, t in base[block].items()} for block in leased.blocks}
        return zeros, arithmetic

    bench.executor.replay = replay
    frozen = FrozenColumns(version=Version(0), codec=FROZEN)
    one = dataclasses.replace(lease(1, HELD), base_version=Version(2), frozen=frozen)
    command = ReplayLease(
        command_id="replay:r1.1", lease=one, digest=bench.submit(HELD, constant(1.0)), codec="fp32", micro_batch=0
    )
    assert isinstance(bench.executor.execute(command), LeaseReplayed)
    published = bench.versions.load_blocks(manifests[2])
    for block, tensors in seen[0].items():
        for name, tensor in tensors.items():
            held = block in one.blocks
            wanted = published[block][name] if held else coded(bench.base[block][name])
            assert torch.equal(tensor, wanted), (block, name)


# ---- rebuilt, served, swept --------------------------------------------------------------------------------------


def test_a_version_made_again_is_whole_exact_and_frozen_anew(bench: Bench) -> None:
    manifests = rounds(bench, 2)
    present = bench.versions.manifest_digest(2)
    assert present is not None
    sent = (contribution(5, bench.submit(HELD, uneven(5)), HELD),)
    again = attempt(bench, sent, rule="mean", outer_momentum=0.0, down=DOWN)
    command = RebuildVersion(
        command_id="rebuild:r3", round=RoundNumber(3), version=Version(3), parent_version=Version(2),
        parent_manifest=present, from_version=Version(0), from_manifest=bench.base_manifest, steps=(again,),
    )  # fmt: skip
    event = bench.executor.execute(command)
    assert isinstance(event, VersionRebuilt)
    assert event.frozen == FrozenColumns(version=Version(3), codec=FROZEN)
    made = bench.versions.manifest(event.manifest)
    exact = bench.versions.manifest(bench.aggregate(sent, down=WHOLE).manifest)
    assert made.blocks == exact.blocks
    assert not made.masters
    assert not made.deltas, "nobody has what lies in between"
    assert made.blocks != manifests[2].blocks


def test_workers_get_blocks_steps_and_frozen_columns_and_nothing_else(bench: Bench) -> None:
    made = step(bench, bench.base_manifest, 1, outer_momentum=0.5)
    manifest = bench.versions.manifest(made.manifest)
    assert manifest.frozen is not None
    served = [
        *(ref.digest for ref in manifest.blocks.values()),
        *(ref.digest for ref in manifest.frozen.blocks.values()),
        *(one.digest for chain in manifest.deltas.values() for one in chain),
    ]
    assert all(bench.versions.is_served(digest) for digest in served)
    kept_back = [ref.digest for ref in (*manifest.masters.values(), *manifest.momenta.values())]
    assert kept_back
    assert not any(bench.versions.is_served(digest) for digest in (*kept_back, made.manifest, Digest("0" * 64)))


def test_what_a_chain_needs_outlives_the_versions_it_came_with(bench: Bench) -> None:
    manifest = rounds(bench, 5)[-1]
    bench.versions.keep_from(Version(5))
    assert bench.versions.kept() == [0, 5]
    for digest in bench.versions.named_by(bench.versions.manifest_digest(5) or Digest("")):
        assert bench.store.blocks.has(digest)
    assert all(bench.store.blocks.has(one.digest) for one in manifest.deltas[TRUNK])
    assert not bench.store.blocks.has(manifest.deltas[TRUNK][0].base), "whole blocks of before are swept"
