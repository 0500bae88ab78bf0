"""What every implementation of `worker.files.Files` promises: the disk, and the simulated volunteers' memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.ids import LeaseId, digest_of
from simulator.deterministic.loop import Process
from simulator.deterministic.volunteer_disk import MemoryFiles, VolunteerDisk
from worker.blocks import BlockCache
from worker.files import DiskFiles, Files, file_digest, reading
from worker.outbox import Outbox, Submission


class Machine:
    """Files, and what a new process finds of them."""

    def __init__(self, files: Files, root: Path, reboot: Callable[[], Files]) -> None:
        self.files, self.root, self.reboot = files, root, reboot
        files.make_folder(root)


@pytest.fixture(params=["disk", "memory"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    root = tmp_path / "home" / "run"
    if request.param == "disk":
        return Machine(DiskFiles(), root, DiskFiles)
    disk = VolunteerDisk()
    return Machine(MemoryFiles(disk, Process("first")), root, lambda: MemoryFiles(disk, Process("next")))


def test_what_was_written_is_read_whole_or_in_parts(machine: Machine) -> None:
    files, path = machine.files, machine.root / "file"
    files.write(path, b"old and long")
    files.write(path, b"content")
    assert files.read(path) == b"content"
    assert files.read(path, 3) == b"tent"
    assert files.read(path, 3, 2) == b"te"
    assert files.read(path, 3, 100) == b"tent"
    assert files.read(path, 100, 5) == b""
    assert files.size(path) == 7
    assert file_digest(path, files) == digest_of(b"content")


def test_what_is_not_there_says_so(machine: Machine) -> None:
    files, path = machine.files, machine.root / "nothing"
    assert files.size(path) is None
    assert files.entries(machine.root) == []
    files.remove(path)
    for act in (lambda: files.read(path), lambda: files.rename(path, machine.root / "b"), lambda: files.touch(path)):
        with pytest.raises(FileNotFoundError):
            act()


def test_what_comes_in_pieces_is_there_once_it_is_kept(machine: Machine) -> None:
    files, path = machine.files, machine.root / "file"
    files.write(path, b"old")
    kept, dropped = files.writer(machine.root / "draft"), files.writer(machine.root / "draft")
    for piece in (b"con", memoryview(b"tent")):
        kept.add(piece)
        dropped.add(piece)
    assert files.read(path) == b"old"
    dropped.drop()
    kept.keep(path)
    kept.drop()
    assert machine.reboot().read(path) == b"content"
    assert [entry.path.name for entry in files.entries(machine.root)] == ["file"]


def test_a_file_is_read_from_anywhere(machine: Machine) -> None:
    files, path = machine.files, machine.root / "file"
    content = bytes(range(256)) * 9000  # more than is read at a time
    files.write(path, content)
    file, target = reading(path, files), bytearray(len(content) - 5)
    assert file.seek(0, 2) == len(content)
    file.seek(5)
    assert file.readinto(target) == len(target)  # type: ignore[attr-defined]
    assert bytes(target) == content[5:]
    file.seek(7)
    assert file.read(2_000_000) == content[7:2_000_007]


def test_appending_makes_the_file_and_goes_on_at_its_end(machine: Machine) -> None:
    files, path = machine.files, machine.root / "partial"
    files.append(path, b"abc")
    files.append(path, b"def")
    assert files.read(path) == b"abcdef"
    assert machine.reboot().read(path) == b"abcdef", "a process that is killed takes nothing with it"


def test_a_file_takes_anothers_place(machine: Machine) -> None:
    files, first, second = machine.files, machine.root / "first", machine.root / "second"
    files.write(first, b"1")
    files.write(second, b"2")
    files.rename(first, second)
    assert files.size(first) is None
    assert files.read(second) == b"1"


def test_entries_are_the_files_right_here_with_size_and_last_use(machine: Machine) -> None:
    files, below = machine.files, machine.root / "below"
    files.make_folder(below)
    files.write(machine.root / "old", b"12")
    files.write(machine.root / "new", b"1")
    files.write(below / "deep", b"1234")
    files.touch(machine.root / "old")
    entries = {entry.path.name: entry for entry in files.entries(machine.root) if entry.path.name != "below"}
    assert {name: entry.size_bytes for name, entry in entries.items()} == {"old": 2, "new": 1}
    assert entries["old"].used_ns >= entries["new"].used_ns
    assert files.used_bytes(machine.root) == 7
    assert [entry.path.name for entry in files.entries(below)] == ["deep"]


def test_what_was_removed_and_synced_stays_away(machine: Machine) -> None:
    files, path = machine.files, machine.root / "file"
    files.write(path, b"x")
    files.remove(path)
    files.sync(machine.root)
    assert machine.reboot().size(path) is None


def test_an_outbox_and_a_block_cache_live_on_it(machine: Machine) -> None:
    payload = b"gradient"
    submission = Submission(
        lease_id=LeaseId("r1.1"), digest=digest_of(payload), payload_bytes=len(payload), codec="fp32",
        inner_steps_done=1, tokens=1, train_loss_first=2.0, train_loss_last=1.0, train_s=1.0, micro_batch=1,
    )  # fmt: skip
    Outbox(machine.root / "outbox", machine.files).save(submission, payload)
    cache = BlockCache(machine.root / "blocks", machine.files)
    partial = cache.begin(digest_of(b"block"), 5)
    partial.add(b"blo")
    files = machine.reboot()
    outbox = Outbox(machine.root / "outbox", files)
    assert outbox.load() == submission
    assert outbox.read(submission, 4, 4) == b"ient"
    cache = BlockCache(machine.root / "blocks", files)
    again = cache.begin(digest_of(b"block"), 5)
    assert again.offset == 3
    again.add(b"ck")
    again.finish()
    cache.adopt(digest_of(b"block"))
    assert cache.has(digest_of(b"block"), 5)
    outbox.drop(LeaseId("r1.1"))
    assert Outbox(machine.root / "outbox", machine.reboot()).load() is None


# ---- what only memory can show: the power goes -----------------------------------------------------------------------


def after_power_loss(act: Callable[[Files, Path], None], seed: int) -> Files:
    disk, process = VolunteerDisk(), Process("first")
    act(MemoryFiles(disk, process), Path("/run"))
    process.kill()
    disk.lose_power(random.Random(seed))
    return MemoryFiles(disk, Process("next"))


def test_a_power_loss_takes_only_what_was_not_synced() -> None:
    def act(files: Files, root: Path) -> None:
        files.write(root / "kept", b"kept")
        files.write(root / "gone", b"gone")
        files.append(root / "part", b"partial")
        files.remove(root / "gone")

    found = [after_power_loss(act, seed) for seed in range(40)]
    assert {files.read(Path("/run/kept")) for files in found} == {b"kept"}
    assert {files.size(Path("/run/gone")) for files in found} == {None, 4}
    parts = {files.read(Path("/run/part")) for files in found if files.size(Path("/run/part")) is not None}
    assert b"partial" in parts
    assert any(part != b"partial" for part in parts), "zeros where bytes were not written yet"
    assert any(files.size(Path("/run/part")) is None for files in found)


def test_a_dead_process_writes_nothing() -> None:
    disk, process = VolunteerDisk(), Process("first")
    files = MemoryFiles(disk, process)
    files.write(Path("/run/file"), b"1")
    process.kill()
    files.write(Path("/run/file"), b"2")
    files.append(Path("/run/other"), b"2")
    files.remove(Path("/run/file"))
    assert disk.now == {Path("/run/file"): b"1"}
