"""A block is the same whichever way it came: whole, by a step, by several, or whole after steps that lead nowhere."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.layout import Layout
from protocol.codecs import CODECS, FP32
from protocol.deltas import published
from protocol.errors import MalformedMessage, Refused, Unavailable
from protocol.ids import TRUNK, BlockId, Digest, Version, column_block, digest_of
from protocol.lease import FrozenColumns
from protocol.manifest import BlockRef, DeltaRef, FrozenRefs, Manifest
from protocol.tensors import encode_tensors
from tests.worker.test_fetch import FakeClient, World
from worker.allowance import DiskAllowance
from worker.blocks import BlockCache
from worker.train.lease_state import LeaseStates

BF16 = CODECS["bf16"]
HELD = (0, 2)
TRAINED = (TRUNK, column_block(0), column_block(2))


class Published(World):
    """A run of several versions, each with the steps to it; everything that any of them names is served."""

    def __init__(self, model_layout: Layout, blocks: Any, sequences: Any, cache: Path) -> None:
        super().__init__(model_layout, blocks, sequences, cache)
        self.cache, self.tensors = cache, blocks
        self.manifests = [self.manifest]
        self.codec = BF16
        self.restart()

    def restart(self) -> None:
        """Another process of the same worker."""
        self.disk = DiskAllowance(self.cache, BlockCache(self.cache / "blocks"), LeaseStates(self.cache / "p"), None)

    def keep(self, payload: bytes) -> BlockRef:
        self.by_digest[digest_of(payload)] = payload
        return BlockRef(digest=digest_of(payload), payload_bytes=len(payload))

    def publish(self, trained: tuple[BlockId, ...] = TRAINED) -> Manifest:
        before, number = self.manifests[-1], len(self.manifests)
        refs, deltas = dict(before.blocks), dict(before.deltas)
        for block in trained:
            old = self.tensors[block]
            moved = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in old.items()}
            made = published(old, moved, self.codec)
            assert made.delta is not None
            self.tensors = {**self.tensors, block: made.block}
            delta = self.keep(made.delta)
            refs[block] = self.keep(encode_tensors(made.block, FP32))
            first = DeltaRef(
                base=before.blocks[block].digest,
                digest=delta.digest,
                payload_bytes=delta.payload_bytes,
                codec=self.codec.name,
            )
            deltas[block] = (first, *before.deltas.get(block, ()))[:4]
        parent = before.version
        self.manifest = dataclasses.replace(
            before, version=Version(number), parent_version=parent, blocks=refs, deltas=deltas
        )
        self.manifests.append(self.manifest)
        return self.manifest

    def bend(self, block: BlockId, *steps: DeltaRef) -> None:
        self.manifest = dataclasses.replace(self.manifest, deltas={**self.manifest.deltas, block: steps})

    async def take(self, lease: Any) -> int:
        """Fetch for `lease`, and see that all is as it was published; the bytes that came."""
        fetched = await self.fetch(lease)
        for block, digest in fetched.digests.items():
            assert digest_of((self.cache / "blocks" / digest).read_bytes()) == digest, block
        assert self.client is not None
        return sum(len(self.by_digest[Digest(digest)]) for digest in self.client.downloaded)

    def lease(self, make_lease: Any, **changes: Any) -> Any:
        return make_lease(base_version=self.manifest.version, columns=HELD, **changes)


@pytest.fixture
def world(frozen_layout: Layout, blocks_of: Any, sequences: Any, tmp_path: Path) -> Published:
    torch.manual_seed(0)
    return Published(frozen_layout, blocks_of(frozen_layout), sequences, tmp_path)


def whole_bytes(world: Published, blocks: tuple[BlockId, ...] = TRAINED) -> int:
    return sum(world.manifest.blocks[block].payload_bytes for block in blocks)


def step_bytes(world: Published) -> int:
    return sum(world.manifest.deltas[block][0].payload_bytes for block in TRAINED)


async def test_a_worker_that_has_the_last_version_takes_one_step(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    for _ in range(3):
        world.publish()
        assert await world.take(world.lease(make_lease)) == step_bytes(world) < 0.6 * whole_bytes(world)


async def test_what_nobody_trained_is_not_fetched(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    world.publish((TRUNK,))
    assert await world.take(world.lease(make_lease)) == world.manifest.deltas[TRUNK][0].payload_bytes


async def test_after_missed_rounds_steps_are_taken_while_they_are_fewer_bytes(
    world: Published, make_lease: Any
) -> None:
    await world.take(world.lease(make_lease))
    world.publish()
    world.publish()  # two steps of bf16 are as many bytes as the block
    assert await world.take(world.lease(make_lease)) == whole_bytes(world)


@pytest.mark.parametrize("codec", ["int8", "int4", "two_bit", "ternary"])
async def test_missed_rounds_are_caught_up_with_step_by_step(world: Published, make_lease: Any, codec: str) -> None:
    world.codec = CODECS[codec]
    await world.take(world.lease(make_lease))
    for _ in range(3):
        world.publish()
    expected = 0
    for block in TRAINED:  # each by its own way: a step for a norm of 16 values is longer than the norm
        steps = sum(step.payload_bytes for step in world.manifest.deltas[block][:3])
        expected += min(steps, world.manifest.blocks[block].payload_bytes)
    assert expected < whole_bytes(world) or codec == "int8"
    assert await world.take(world.lease(make_lease)) == expected


async def test_whoever_missed_more_than_the_chain_takes_it_whole(world: Published, make_lease: Any) -> None:
    world.codec = CODECS["two_bit"]
    await world.take(world.lease(make_lease))
    for _ in range(5):
        world.publish()
    assert await world.take(world.lease(make_lease)) == whole_bytes(world)


async def test_it_takes_several_steps_where_some_are_here_already(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    world.publish()
    world.publish()
    for block in TRAINED:  # an earlier process had them and died
        ref = world.manifest.deltas[block][1]
        (world.cache / "blocks" / ref.digest).write_bytes(world.by_digest[ref.digest])
    world.restart()
    assert await world.take(world.lease(make_lease)) == step_bytes(world)


async def test_a_restart_goes_on_with_what_came_of_a_step(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    world.publish()
    came = 0
    block = FakeClient.block

    async def breaking(self: FakeClient, digest: str, payload_bytes: int, offset: int) -> AsyncIterator[bytes]:
        nonlocal came
        async for piece in block(self, digest, payload_bytes, offset):
            came += len(piece) // 2
            yield piece[: len(piece) // 2]
        raise Unavailable("the line broke")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeClient, "block", breaking)
        with pytest.raises(Unavailable):
            await world.fetch(world.lease(make_lease))
    assert came > 0
    offsets: list[int] = []

    async def watching(self: FakeClient, digest: str, payload_bytes: int, offset: int) -> AsyncIterator[bytes]:
        offsets.append(offset)
        async for piece in block(self, digest, payload_bytes, offset):
            yield piece

    world.restart()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeClient, "block", watching)
        await world.take(world.lease(make_lease))
    assert any(offset > 0 for offset in offsets)
    assert len(offsets) == len(TRAINED)


async def test_two_blocks_may_take_the_same_step(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    alike = {name: torch.full_like(tensor, 2.0**-6) for name, tensor in world.tensors[column_block(0)].items()}
    delta = world.keep(encode_tensors(alike, BF16))
    refs, deltas = dict(world.manifest.blocks), dict(world.manifest.deltas)
    for block in (column_block(0), column_block(2)):
        made = {name: world.tensors[block][name] + tensor for name, tensor in alike.items()}
        step = DeltaRef(base=refs[block].digest, digest=delta.digest, payload_bytes=delta.payload_bytes, codec="bf16")
        refs[block], deltas[block] = world.keep(encode_tensors(made, FP32)), (step,)
    changes: dict[str, Any] = {"version": Version(1), "parent_version": Version(0), "blocks": refs, "deltas": deltas}
    world.manifest = dataclasses.replace(world.manifest, **changes)
    assert await world.take(world.lease(make_lease)) == delta.payload_bytes
    assert not world.told


HOSTILE = ["another size", "another digest", "not what was signed", "not a number", "unknown codec", "unknown base",
           "not kept", "a base that is no block"]  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_hostile_step_is_refused_and_the_block_comes_whole(
    world: Published, make_lease: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.take(world.lease(make_lease))
    world.publish()
    step = world.manifest.deltas[TRUNK][0]
    if how == "another size":
        world.bend(TRUNK, dataclasses.replace(step, payload_bytes=step.payload_bytes - 1))
    elif how == "another digest":
        world.bend(TRUNK, dataclasses.replace(step, digest=Digest("0" * 64)))
        world.by_digest[Digest("0" * 64)] = world.by_digest[step.digest]
    elif how in {"not what was signed", "not a number"}:
        payload = bytearray(world.by_digest[step.digest])
        payload[-2:] = b"\xc0\x7f" if how == "not a number" else b"\x01\x02"
        world.bend(TRUNK, dataclasses.replace(step, digest=world.keep(bytes(payload)).digest))
    elif how == "unknown codec":
        world.bend(TRUNK, dataclasses.replace(step, codec="of tomorrow"))
    elif how == "unknown base":
        world.bend(TRUNK, dataclasses.replace(step, base=Digest("1" * 64)))
    elif how == "a base that is no block":
        stray = world.keep(b"\x00" * world.manifest.blocks[TRUNK].payload_bytes)
        (world.cache / "blocks" / stray.digest).write_bytes(world.by_digest[stray.digest])
        world.bend(TRUNK, dataclasses.replace(step, base=stray.digest))
    else:
        del world.by_digest[step.digest]
        block = FakeClient.block

        async def refusing(self: FakeClient, digest: str, payload_bytes: int, offset: int) -> AsyncIterator[bytes]:
            if digest == step.digest:
                raise Refused("not kept here")
            async for piece in block(self, digest, payload_bytes, offset):
                yield piece

        monkeypatch.setattr(FakeClient, "block", refusing)
    fetched = await world.fetch(world.lease(make_lease))
    digest = world.manifest.blocks[TRUNK].digest
    assert fetched.digests[TRUNK] == digest
    assert digest_of((world.cache / "blocks" / digest).read_bytes()) == digest
    assert world.client is not None
    assert digest in world.client.downloaded
    looked_at = how not in {"another size", "unknown codec", "unknown base"}
    assert len(world.told) == looked_at, "a step that was tried in vain is told of, once"
    assert all("trunk comes whole" in reason for reason in world.told)


async def test_what_a_step_starts_from_stays_and_what_it_went_through_goes(world: Published, make_lease: Any) -> None:
    first = world.manifest
    await world.take(world.lease(make_lease))
    second = world.publish()
    await world.take(world.lease(make_lease))
    world.publish()
    await world.take(world.lease(make_lease))
    here = {path.name for path in (world.cache / "blocks").iterdir()}
    assert not here & {first.blocks[block].digest for block in TRAINED}
    assert not here & {step.digest for chain in world.manifest.deltas.values() for step in chain}
    assert {world.manifest.blocks[block].digest for block in TRAINED} <= here
    world.disk.give_way()
    here = {path.name for path in (world.cache / "blocks").iterdir()}
    assert not here & {second.blocks[block].digest for block in TRAINED}, "where room is short it goes, too"


async def test_without_room_for_what_steps_start_from_blocks_come_whole(world: Published, make_lease: Any) -> None:
    await world.take(world.lease(make_lease))
    world.publish()
    used = sum(path.stat().st_size for path in (world.cache / "blocks").iterdir())
    limit = used + 1000
    world.disk = DiskAllowance(world.cache, BlockCache(world.cache / "blocks"), LeaseStates(world.cache / "p"), limit)
    assert await world.take(world.lease(make_lease)) == whole_bytes(world)
    assert sum(path.stat().st_size for path in (world.cache / "blocks").iterdir()) <= limit


# ---- columns that are not held -----------------------------------------------------------------------------------


def freeze(world: Published, codec: str = "bf16") -> FrozenColumns:
    """Columns of the present version, encoded for those who do not hold them."""
    refs = {
        block: world.keep(encode_tensors(tensors, CODECS[codec]))
        for block, tensors in world.tensors.items()
        if block != TRUNK
    }
    frozen = FrozenRefs(version=world.manifest.version, codec=codec, blocks=refs)
    world.manifest = world.manifests[-1] = dataclasses.replace(world.manifest, frozen=frozen)
    return FrozenColumns(version=frozen.version, codec=codec)


async def test_columns_that_are_not_held_come_in_their_own_encoding_and_once(world: Published, make_lease: Any) -> None:
    frozen = freeze(world)
    fetched = await world.fetch(world.lease(make_lease, frozen=frozen))
    assert world.manifest.frozen is not None
    for block, digest in fetched.digests.items():
        held = block in TRAINED
        assert digest == (world.manifest.blocks if held else world.manifest.frozen.blocks)[block].digest
    world.publish()
    assert await world.take(world.lease(make_lease, frozen=frozen)) == step_bytes(world)


async def test_a_lease_whose_version_has_no_such_columns_is_refused(world: Published, make_lease: Any) -> None:
    frozen = freeze(world)
    for wrong in (
        dataclasses.replace(frozen, codec="fp32x"), FrozenColumns(version=Version(0), codec="int4"),
        FrozenColumns(version=Version(7), codec="bf16"),
    ):  # fmt: skip
        with pytest.raises(MalformedMessage, match="not held"):
            await world.fetch(world.lease(make_lease, frozen=wrong))
    world.manifest = dataclasses.replace(world.manifest, frozen=None)
    with pytest.raises(MalformedMessage, match="not held"):
        await world.fetch(world.lease(make_lease, frozen=frozen))


async def test_a_column_that_is_held_from_now_on_comes_whole(world: Published, make_lease: Any) -> None:
    frozen = freeze(world)
    await world.take(world.lease(make_lease, frozen=frozen))
    lease = make_lease(base_version=world.manifest.version, columns=(0, 1), frozen=frozen)
    drawn, given_up = column_block(1), column_block(2)
    assert world.manifest.frozen is not None
    expected = world.manifest.blocks[drawn].payload_bytes + world.manifest.frozen.blocks[given_up].payload_bytes
    assert await world.take(lease) == expected
