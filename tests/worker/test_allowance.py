"""The disk that a volunteer gives, and what makes room on one that is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.layout import Layout
from protocol.errors import ConfigError
from protocol.ids import Digest, LeaseId, digest_of
from worker.allowance import RECORDS_BYTES, DiskAllowance, lease_bytes
from worker.blocks import BlockCache
from worker.train.lease_state import LeaseKeeper, LeaseStates, computation_of
from worker.train.local_state import LocalState


class Disk:
    """A run's folder with three blocks of 1000 bytes, of which the lease needs one."""

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.folder = folder
        self.blocks = BlockCache(folder / "blocks")
        self.states = LeaseStates(folder / "progress")
        self.allowance = DiskAllowance(folder, self.blocks, self.states, max_bytes)
        self.digests = [self.put(bytes([number]) * 1000) for number in range(3)]
        self.blocks.expect({self.digests[0]}, self.digests)

    def put(self, content: bytes) -> Digest:
        digest = digest_of(content)
        self.blocks.partial(digest).write_bytes(content)
        self.blocks.adopt(digest)
        return digest

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def state(step: int = 1) -> LocalState:
    return LocalState(step=step, micro_batch=1, train_s=1.0, tensors={"parameter.0": torch.zeros(250)})


def test_old_blocks_make_room_for_what_comes(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 3500)
    assert disk.allowance.make_room(500)
    assert disk.used_bytes() == 3000, "nothing goes while there is room"
    assert disk.allowance.make_room(1200)
    assert disk.used_bytes() == 2000
    assert disk.allowance.make_room(2500)
    assert disk.used_bytes() == 1000
    assert not disk.allowance.make_room(2501), "what the lease needs stays, whatever comes"
    assert disk.used_bytes() == 1000


def test_everything_in_the_runs_folder_counts(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 3500)
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "finished").write_bytes(b"f" * 2000)
    assert disk.allowance.make_room(0)
    assert disk.used_bytes() <= 3500


def test_without_a_cap_all_that_may_serve_again_stays(tmp_path: Path) -> None:
    disk = Disk(tmp_path, None)
    assert disk.allowance.make_room(1 << 20)
    assert disk.used_bytes() == 3000


def test_a_full_disk_takes_all_that_the_lease_can_do_without(tmp_path: Path) -> None:
    disk = Disk(tmp_path, None)
    assert disk.allowance.give_way()
    assert [disk.blocks.path(digest).exists() for digest in disk.digests] == [True, False, False]
    assert not disk.allowance.give_way(), "told, so that whoever waits for room does not try for ever"


def keeper_of(disk: Disk, submission_bytes: int, told: list[str], **changes: Any) -> LeaseKeeper:
    return LeaseKeeper(
        disk.states,
        "r1.1:a",
        every_s=0.0,
        told=told.append,
        room_for=lambda size: disk.allowance.has_room_for_progress(size, submission_bytes),
        **changes,
    )


def test_progress_leaves_room_for_the_finished_work(tmp_path: Path) -> None:
    disk, told = Disk(tmp_path, 8000), list[str]()
    keeper = keeper_of(disk, 2000, told)
    for step in range(1, 4):
        keeper.save(state(step))
        assert disk.used_bytes() + 2000 <= 8000
    assert told == []
    loaded = disk.states.load("r1.1:a")
    assert loaded is not None
    assert loaded.step == 3


def test_progress_that_would_not_is_not_kept_and_the_lease_goes_on(tmp_path: Path) -> None:
    disk, told = Disk(tmp_path, 4500), list[str]()
    keeper = keeper_of(disk, 2000, told)
    keeper.save(state(1))
    keeper.save(state(2))
    (sentence,) = told
    assert "--disk leaves no room" in sentence
    assert disk.states.used_bytes == 0


def test_progress_on_a_full_disk_is_tried_again_once_something_gave_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, told = Disk(tmp_path, None), list[str]()
    from worker.train import lease_state

    write = lease_state._write

    def full_until_a_block_went(path: Path, one: LocalState) -> None:
        if disk.blocks.used_bytes > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, one)

    monkeypatch.setattr(lease_state, "_write", full_until_a_block_went)
    keeper_of(disk, 0, told, give_way=disk.allowance.give_way).save(state())
    assert told == []
    assert disk.states.load("r1.1:a") is not None


def test_progress_of_another_lease_goes_when_the_next_one_begins(tmp_path: Path, make_lease: Any) -> None:
    lease = make_lease()
    states = LeaseStates(tmp_path)
    computation = computation_of(lease, {}, "cpu")
    states.save(computation, state())
    states.keep_only(lease.lease_id)
    assert states.load(computation) is not None
    states.keep_only(LeaseId("another"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".progress.tmp").write_bytes(b"torn")
    states.keep_only(lease.lease_id)
    assert list(tmp_path.iterdir()) == []


def allowed(folder: Path, max_bytes: int | None) -> DiskAllowance:
    return DiskAllowance(folder, BlockCache(folder / "blocks"), LeaseStates(folder / "progress"), max_bytes)


def test_a_cap_under_what_one_lease_needs_is_refused_with_the_figure(small_layout: Layout, tmp_path: Path) -> None:
    fewest = small_layout.top_k if small_layout.residency == "absent" else 1
    least = sum(lease_bytes(small_layout, "bf16", fewest)) + RECORDS_BYTES
    most = sum(lease_bytes(small_layout, "bf16", 4)) + RECORDS_BYTES
    assert least < most
    assert allowed(tmp_path, None).columns_that_fit(small_layout, "bf16", 4) == 4
    assert allowed(tmp_path, most).columns_that_fit(small_layout, "bf16", 4) == 4
    assert allowed(tmp_path, most - 1).columns_that_fit(small_layout, "bf16", 4) == 3
    assert allowed(tmp_path, least).columns_that_fit(small_layout, "bf16", 4) == fewest
    frozen = sum(lease_bytes(small_layout, "bf16", fewest, "int4")) + RECORDS_BYTES
    assert frozen < least if small_layout.residency == "frozen" else frozen == least
    assert allowed(tmp_path, frozen).columns_that_fit(small_layout, "bf16", 4, "int4") == fewest
    with pytest.raises(ConfigError) as refused:
        allowed(tmp_path, least - 1).columns_that_fit(small_layout, "bf16", 4)
    needed_mib = int(str(refused.value).partition("it must be ")[2].partition("MB")[0])
    assert allowed(tmp_path, needed_mib << 20).columns_that_fit(small_layout, "bf16", fewest) == fewest
    assert "--disk" in str(refused.value)


def test_what_a_lease_takes_is_counted_to_the_byte(frozen_layout: Layout, blocks_of: Any) -> None:
    from protocol.codecs import FP32, codec_named
    from protocol.tensors import encode_tensors

    blocks = blocks_of(frozen_layout)
    assert lease_bytes(frozen_layout, "bf16", 2)[0] == sum(
        len(encode_tensors(tensors, FP32)) for tensors in blocks.values()
    )
    held = frozen_layout.shard_blocks(range(2))
    assert lease_bytes(frozen_layout, "bf16", 2, "int4")[0] == sum(
        len(encode_tensors(tensors, FP32 if block in held else codec_named("int4")))
        for block, tensors in blocks.items()
    )
    flat = {f"{block}/{name}": tensor for block in held for name, tensor in blocks[block].items()}
    assert lease_bytes(frozen_layout, "bf16", 2)[1] == 2 * len(encode_tensors(flat, codec_named("bf16")))


ROUNDS, COLUMNS, HELD, BLOCK_BYTES = 500, 8, 3, 1000


class LongRun:
    """A run whose columns change every eight rounds, the trunk with each, and a lease of some columns in every one."""

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.folder, self.blocks = folder, BlockCache(folder / "blocks")
        self.allowance = DiskAllowance(folder, self.blocks, LeaseStates(folder / "progress"), max_bytes)

    @property
    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def lease(self, number: int) -> set[Digest]:
        """Fetch what the lease of this round needs, as fetching does: room first, then block by block."""
        ages = [(number + block) // 8 if block else number for block in range(COLUMNS + 1)]
        contents = [f"{age} {block} ".encode().ljust(BLOCK_BYTES, b".") for block, age in enumerate(ages)]
        digests = [digest_of(content) for content in contents]
        held = [0, *(1 + (number + column) % COLUMNS for column in range(HELD))]
        self.blocks.expect({digests[block] for block in held}, digests)
        missing = [block for block in held if not self.blocks.has(digests[block], BLOCK_BYTES)]
        assert self.allowance.make_room(len(missing) * BLOCK_BYTES), f"round {number}: a lease that fits was lost"
        for block in missing:
            self.blocks.partial(digests[block]).write_bytes(contents[block])
            self.blocks.adopt(digests[block])
        return {digests[block] for block in held}


def test_the_cache_keeps_to_its_cap_for_500_rounds(tmp_path: Path) -> None:
    cap_bytes = (2 * (HELD + 1) + 1) * BLOCK_BYTES
    run = LongRun(tmp_path, cap_bytes)
    for number in range(ROUNDS):
        needed = run.lease(number)
        assert run.used_bytes <= cap_bytes, number
        assert all(run.blocks.path(digest).exists() for digest in needed)


def test_on_a_nearly_full_disk_the_cache_goes_and_no_lease_does(tmp_path: Path) -> None:
    """Other programs take what the disk has, and give it back, over and over; room for one lease is always left."""
    disk_bytes, keep_bytes, lease_bytes_ = 40 * BLOCK_BYTES, 5 * BLOCK_BYTES, (HELD + 1) * BLOCK_BYTES
    run, others_bytes = LongRun(tmp_path, None), 0
    run.allowance.short = lambda coming_bytes: max(
        0, keep_bytes + coming_bytes - (disk_bytes - others_bytes - run.used_bytes)
    )
    most_bytes = 0
    for number in range(ROUNDS):
        others_bytes = min((number % 50) * BLOCK_BYTES, disk_bytes - lease_bytes_)
        run.allowance.make_room(0)  # as the worker looks, every ten seconds
        run.lease(number)
        assert run.used_bytes + others_bytes <= disk_bytes, number
        most_bytes = max(most_bytes, run.used_bytes)
    assert most_bytes > lease_bytes_, "where there is room, more than the lease's blocks is kept"
