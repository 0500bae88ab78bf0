"""Finished work on a full disk: told, and encoded again as soon as there is room."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from moe.layout import Layout
from protocol.codecs import BF16
from protocol.errors import StorageTrouble
from protocol.ids import LeaseId, digest_of
from protocol.storage import telling_storage_trouble
from tests.worker.leases import changed_lease, lease_message, read_lease
from tests.worker.test_residuals import gradient_of
from worker.options import WorkerOptions
from worker.outbox import Draft, Outbox, Submission
from worker.pauses import Pauses
from worker.train.residuals import coded
from worker.train.trainer import LeaseResult, TrainingStopped, TrainMetrics
from worker.train.training import TrainingRoom


def submission(payload: bytes) -> Submission:
    return Submission(
        lease_id=LeaseId("r1.1"), digest=digest_of(payload), payload_bytes=len(payload), codec="bf16",
        inner_steps_done=1, tokens=1, train_loss_first=5.0, train_loss_last=4.0, train_s=1.0, micro_batch=1,
    )  # fmt: skip


class FullFor(Outbox):
    """An outbox whose disk is full for the first `times` attempts, each at another moment."""

    def __init__(self, folder: Path, times: int, number: int = errno.ENOSPC) -> None:
        super().__init__(folder)
        self.times = times
        self.number = number

    def _full(self) -> None:
        if self.times:
            self.times -= 1
            with telling_storage_trouble(Path("outbox")):
                raise OSError(self.number, "no")

    def payload(self) -> Draft:
        draft = super().payload()
        if self.times % 2:
            draft.add = lambda piece: self._full()  # type: ignore[method-assign]
        return draft

    def record(self, submission: Submission) -> None:
        self._full()
        super().record(submission)


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, _event: str, text: str, **_fields: Any) -> None:
        self.lines.append(text)


class Job:
    """A lease of two columns, that has come to `work`."""

    def __init__(self, layout: Layout, codec: str = BF16.name) -> None:
        self.stop = threading.Event()
        lease = changed_lease(read_lease(lease_message()), codec=codec)
        self.fetched = SimpleNamespace(lease=lease, run=SimpleNamespace(layout=layout))
        self.work = gradient_of(layout, lease, 0)


def kept(room: TrainingRoom, job: Job) -> Submission:
    metrics = TrainMetrics(
        inner_steps_done=5, tokens=1, loss_first=5.0, loss_last=4.0, train_s=1.0, micro_batch=1
    )  # fmt: skip
    return room._keep(cast("Any", job), LeaseResult(pseudo_gradient=job.work, metrics=metrics))


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
    options, machine = WorkerOptions(pauses=Pauses(disk_s=0.0)), SimpleNamespace(arithmetic="")
    return TrainingRoom(options, cast("Any", machine), cast("Any", disk or Disk()), outbox, reporter)


@pytest.mark.parametrize("codec", [BF16.name, "ternary"])
def test_finished_work_waits_for_room_and_says_so_once(frozen_layout: Layout, tmp_path: Path, codec: str) -> None:
    outbox, said, job = FullFor(tmp_path, 3), Said(), Job(frozen_layout, codec)
    submission = kept(room(outbox, said), job)
    assert outbox.load() == submission
    made = coded(cast("Any", job.fetched.lease), job.work, lambda _: None)
    assert outbox.payload_path(submission).read_bytes() == made.payload
    assert (submission.residuals_out, submission.residuals_back) == (made.left, made.back)
    first, second = said.lines
    assert "the disk is full: make room" in first
    assert "going on" in second
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert left == {f"{made_digest}.residual" for made_digest in (*made.left, *made.back)} | {
        outbox.payload_path(submission).name
    }, "and nothing of what did not succeed"


def test_old_blocks_and_then_progress_give_way_to_finished_work(frozen_layout: Layout, tmp_path: Path) -> None:
    outbox, said, disk = FullFor(tmp_path, 3), Said(), Disk(blocks=2, progress_bytes=1 << 30)
    submission = kept(room(outbox, said, disk), Job(frozen_layout))
    assert outbox.load() == submission
    assert said.lines == [], "nobody has to make room by hand"
    assert disk.used_bytes == 0


def test_progress_that_would_not_make_enough_room_stays(frozen_layout: Layout, tmp_path: Path) -> None:
    disk, job = Disk(progress_bytes=7), Job(frozen_layout)
    job.stop.set()
    with pytest.raises(TrainingStopped):
        kept(room(FullFor(tmp_path, 1), Said(), disk), job)
    assert disk.used_bytes == 7


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_nothing_is_deleted_for_a_disk_that_is_not_full(frozen_layout: Layout, tmp_path: Path, number: int) -> None:
    disk, job = Disk(blocks=2, progress_bytes=1 << 30), Job(frozen_layout)
    job.stop.set()
    with pytest.raises(TrainingStopped):
        kept(room(FullFor(tmp_path, 1, number), Said(), disk), job)
    assert (disk.blocks, disk.used_bytes) == (2, 1 << 30)


def test_a_lease_that_ends_meanwhile_ends_the_waiting(frozen_layout: Layout, tmp_path: Path) -> None:
    job = Job(frozen_layout)
    job.stop.set()
    with pytest.raises(TrainingStopped, match="room on the disk"):
        kept(room(FullFor(tmp_path, 3), Said()), job)


def test_an_outbox_on_a_read_only_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path)

    def read_only(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("protocol.private_files.os.open", read_only)
    with pytest.raises(StorageTrouble, match="mount it for writing"):
        outbox.save(submission(b"gradient"), b"gradient")
