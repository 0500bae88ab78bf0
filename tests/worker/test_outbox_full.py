"""Finished work on a full disk: kept in memory, told, and stored as soon as there is room."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from protocol.errors import StorageTrouble
from protocol.ids import Digest, LeaseId, digest_of
from protocol.storage import telling_storage_trouble
from worker.options import WorkerOptions
from worker.outbox import Outbox, Submission
from worker.pauses import Pauses
from worker.train.residuals import Coded
from worker.train.trainer import TrainingStopped
from worker.train.training import TrainingRoom


def submission(payload: bytes) -> Submission:
    return Submission(
        lease_id=LeaseId("r1.1"), digest=digest_of(payload), payload_bytes=len(payload), codec="bf16",
        inner_steps_done=1, tokens=1, train_loss_first=5.0, train_loss_last=4.0, train_s=1.0, micro_batch=1,
    )  # fmt: skip


class FullFor:
    """An outbox whose disk is full for the first `times` attempts."""

    def __init__(self, folder: Path, times: int, number: int = errno.ENOSPC) -> None:
        self.outbox = Outbox(folder)
        self.times = times
        self.number = number

    def save(self, one: Submission, payload: bytes, residuals: dict[Digest, bytes]) -> None:
        if self.times:
            self.times -= 1
            with telling_storage_trouble(Path("outbox")):
                raise OSError(self.number, "no")
        self.outbox.save(one, payload, residuals)


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, _event: str, text: str, **_fields: Any) -> None:
        self.lines.append(text)


class Job:
    def __init__(self) -> None:
        self.stop = threading.Event()


class Disk:
    """What can give way to finished work: blocks, as often as there are any; progress, of so many bytes."""

    def __init__(self, blocks: int = 0, progress_bytes: int = 0) -> None:
        self.blocks = blocks
        self.used_bytes = progress_bytes
        self.progress = self

    def make_room(self, _coming_bytes: int) -> bool:
        return True

    def give_way(self) -> bool:
        self.blocks -= 1
        return self.blocks >= 0

    def clear(self) -> None:
        self.used_bytes = 0


def room(outbox: Any, reporter: Any, disk: Disk | None = None) -> TrainingRoom:
    options = WorkerOptions(pauses=Pauses(disk_s=0.0))
    return TrainingRoom(options, cast("Any", None), cast("Any", disk or Disk()), outbox, reporter)


def test_finished_work_waits_for_room_and_says_so_once(tmp_path: Path) -> None:
    outbox, said = FullFor(tmp_path, 3), Said()
    room(outbox, said)._keep(cast("Any", Job()), submission(b"gradient"), Coded(payload=b"gradient"))
    assert outbox.outbox.load() == submission(b"gradient")
    first, second = said.lines
    assert "the disk is full: make room" in first
    assert "going on" in second


def test_old_blocks_and_then_progress_give_way_to_finished_work(tmp_path: Path) -> None:
    outbox, said, disk = FullFor(tmp_path, 3), Said(), Disk(blocks=2, progress_bytes=100)
    room(outbox, said, disk)._keep(cast("Any", Job()), submission(b"gradient"), Coded(payload=b"gradient"))
    assert outbox.outbox.load() == submission(b"gradient")
    assert said.lines == [], "nobody has to make room by hand"
    assert disk.used_bytes == 0


def test_progress_that_would_not_make_enough_room_stays(tmp_path: Path) -> None:
    disk, job = Disk(progress_bytes=7), Job()
    job.stop.set()
    with pytest.raises(TrainingStopped):
        room(FullFor(tmp_path, 1), Said(), disk)._keep(
            cast("Any", job), submission(b"gradient"), Coded(payload=b"gradient")
        )
    assert disk.used_bytes == 7


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_nothing_is_deleted_for_a_disk_that_is_not_full(tmp_path: Path, number: int) -> None:
    disk, job = Disk(blocks=2, progress_bytes=100), Job()
    job.stop.set()
    with pytest.raises(TrainingStopped):
        room(FullFor(tmp_path, 1, number), Said(), disk)._keep(
            cast("Any", job), submission(b"gradient"), Coded(payload=b"gradient")
        )
    assert (disk.blocks, disk.used_bytes) == (2, 100)


def test_a_lease_that_ends_meanwhile_ends_the_waiting(tmp_path: Path) -> None:
    job = Job()
    job.stop.set()
    with pytest.raises(TrainingStopped, match="room on the disk"):
        room(FullFor(tmp_path, 3), Said())._keep(cast("Any", job), submission(b"gradient"), Coded(payload=b"gradient"))


def test_an_outbox_on_a_read_only_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path)

    def read_only(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("protocol.private_files.os.open", read_only)
    with pytest.raises(StorageTrouble, match="mount it for writing"):
        outbox.save(submission(b"gradient"), b"gradient")
