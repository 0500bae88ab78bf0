"""A worker against a real coordinator, where disk or memory is short, or only so much of it is given."""

from __future__ import annotations

import asyncio
import errno
import re
from pathlib import Path
from typing import Any

import pytest

from worker.allowance import RECORDS_BYTES, DiskAllowance, lease_bytes
from worker.client import CoordinatorClient
from worker.machine.machine import Machine
from worker.messages import EXIT_OK, EXIT_REFUSED
from worker.pauses import Pauses


async def finish(task: asyncio.Task[Any]) -> Any:
    async with asyncio.timeout(60):
        return await task


def run_folder_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


async def test_a_download_pauses_only_when_nothing_is_left_to_give_way(
    swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_way = iter([True, False, False, False])
    monkeypatch.setattr(DiskAllowance, "give_way", lambda _self: next(gave_way))
    failures = iter([*(OSError(errno.ENOSPC, "No space left") for _ in range(4)), None])
    fetch_manifest = CoordinatorClient.get_manifest

    async def on_a_full_disk(self: CoordinatorClient, version: int) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        return await fetch_manifest(self, version)

    monkeypatch.setattr(CoordinatorClient, "get_manifest", on_a_full_disk)
    _, recorder, task = swarm.agent(pauses=Pauses(disk_s=0.0))
    assert (await finish(task)).exit_code == EXIT_OK
    assert len(recorder.texts("no_room")) == 1, "told once, however often it is tried"


async def test_a_disk_that_is_too_small_for_a_lease_is_refused_before_one_is_taken(swarm: Any) -> None:
    _, recorder, task = swarm.agent(disk_bytes=1 << 20)
    ended = await finish(task)
    assert ended.exit_code == EXIT_REFUSED
    assert "--disk 1.0 MiB is too little: one lease of this run needs " in ended.reason
    assert re.search(r"it must be \d+MB or more$", ended.reason)
    assert recorder.texts("lease_granted") == []


async def test_a_memory_that_is_too_small_for_the_worker_itself_is_refused_with_what_is_needed(swarm: Any) -> None:
    capped = Machine(
        device="cpu", device_name="test", memory_bytes=0, threads=1, bf16=False,
        memory_cap_bytes=10 << 20, process_bytes=300 << 20,
    )  # fmt: skip
    _, recorder, task = swarm.agent(machine=capped)
    ended = await finish(task)
    assert ended.exit_code == EXIT_REFUSED
    assert re.search(r"--memory 10\.0 MiB is too little: it must be 3\d\dMB or more", ended.reason)
    assert recorder.texts("lease_granted") == []


async def test_a_disk_of_just_the_size_of_a_lease_is_enough_and_is_kept_to(swarm: Any) -> None:
    layout = swarm.folder.layout()
    cap_bytes = sum(lease_bytes(layout, "fp32", layout.columns)) + RECORDS_BYTES
    most_bytes = 0

    def watch(_lease: Any, result: Any) -> Any:
        nonlocal most_bytes
        most_bytes = max(most_bytes, run_folder_bytes(swarm.root / "home"))
        return result

    _, recorder, task = swarm.agent(disk_bytes=cap_bytes, keep_progress_every_s=0.0, trainer_hook=watch)
    assert (await finish(task)).exit_code == EXIT_OK
    assert recorder.texts("submission_accepted")
    assert 0 < most_bytes <= cap_bytes
    (told,) = recorder.texts("progress_not_kept")
    assert "--disk leaves no room" in told
