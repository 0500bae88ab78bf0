"""The sidecar's keeper, with a made-up sidecar behind a real socket: whatever is killed, nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from peering.companion import Companion, sweep
from protocol.errors import MalformedMessage, Unavailable
from protocol.ids import Digest
from tests.peering import fake_sidecar

FAKE = str(Path(fake_sidecar.__file__))
RUN = Digest("0" * 64)
Make = Callable[..., Companion]


def orders(folder: Path) -> bytes:
    return json.dumps({"folder": str(folder)}).encode()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Companion] = []

    def companion(how: str = "honest", **options: Any) -> Companion:
        options = {"first_pause_s": 0.05, **options}
        made.append(
            Companion(orders, tmp_path / "traces", command=(sys.executable, FAKE, how, str(tmp_path)), **options)
        )
        return made[-1]

    yield companion
    for one in made:
        await one.stop()
    assert await gone_within_5s(str(tmp_path))


def left_of(folder_part: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            line, state = process.cmdline(), process.status()
        except psutil.Error:
            continue
        if state != psutil.STATUS_ZOMBIE and any(folder_part in part for part in line):
            found.append(process.pid)
    return found


async def gone_within_5s(mark: str) -> bool:
    for _ in range(50):
        if not left_of(mark):
            return True
        await asyncio.sleep(0.1)
    return False


async def ready(companion: Companion, starts: int = 1, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while companion.starts < starts or not companion.ready.is_set():
            await asyncio.sleep(0.02)


async def test_what_is_stored_is_found_and_what_it_says_of_itself_is_parsed(make: Make) -> None:
    companion = make()
    with pytest.raises(Unavailable):
        await companion.find(RUN)  # it is not there yet
    await companion.start()
    await ready(companion)
    assert await companion.find(RUN) == b""
    assert await companion.store(b"record")
    assert await companion.find(RUN) == b"record"
    status = await companion.status()
    assert status.peer_id == fake_sidecar.PEER
    assert [str(one) for one in status.peers] == [f"{fake_sidecar.PEER}@h:2"]  # what is no peer is left out
    folder = companion._folder
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "sidecar.sock").stat().st_mode & 0o777 == 0o600
    environment = psutil.Process(companion.pid).environ()
    assert not {"PYTEST_CURRENT_TEST", "PWD"} & environment.keys()  # what it does not need it is not given


async def test_a_killed_sidecar_is_started_again_and_takes_its_children_with_it(make: Make) -> None:
    told: list[str] = []
    companion = make(tell=told.append)
    await companion.start()
    await ready(companion)
    pid, folder = companion.pid, companion._folder
    assert pid is not None
    assert folder is not None
    assert left_of(str(folder))
    os.kill(pid, signal.SIGKILL)
    await ready(companion, starts=2)
    assert left_of(str(folder)) == []
    assert not folder.exists()
    assert companion.pid != pid
    assert len(told) == 1


async def test_one_that_grows_is_ended(make: Make, tmp_path: Path) -> None:
    told: list[str] = []
    companion = make("greedy", tell=told.append, most_bytes=100 << 20, first_pause_s=60.0)
    await companion.start()
    async with asyncio.timeout(20):
        while not told:
            await asyncio.sleep(0.05)
    assert "MiB of memory, at most 100" in told[0]
    assert await gone_within_5s(str(tmp_path))


async def test_one_that_cannot_live_is_tried_ever_less_often_and_its_sentence_is_told_once(make: Make) -> None:
    told: list[str] = []
    companion = make("brief", tell=told.append)
    await companion.start()
    async with asyncio.timeout(20):
        while companion.starts < 3:
            await asyncio.sleep(0.02)
    assert len(told) == 1
    assert "a sentence about why" in told[0]


async def test_an_answer_that_is_none_is_refused(make: Make) -> None:
    companion = make("junk")
    await companion.start()
    await ready(companion)
    with pytest.raises(MalformedMessage):
        await companion.find(RUN)


async def test_what_a_killed_worker_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    """Nobody but the next start is there to do it where the system does not."""
    script = f"""
import asyncio, sys
from pathlib import Path
from tests.peering.test_companion import orders, ready
from peering.companion import Companion
async def main():
    companion = Companion(orders, Path({str(tmp_path / "traces")!r}), command=(sys.executable, {FAKE!r}, "honest"))
    await companion.start()
    await ready(companion)
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert worker.stdout is not None
    assert await asyncio.to_thread(worker.stdout.readline) == b"ready\n"
    worker.kill()
    worker.wait()
    worker.stdout.close()
    left = json.loads((tmp_path / "traces").read_bytes())
    assert left_of(left["folder"])  # as p2pd, where it does not end by itself
    sweep(tmp_path / "traces")
    assert left_of(left["folder"]) == []
    assert not Path(left["folder"]).exists()
    assert not (tmp_path / "traces").exists()


def test_a_file_of_traces_that_names_something_else_harms_nobody(tmp_path: Path) -> None:
    other = tmp_path / "photographs"
    other.mkdir()
    for content in (b"", b"{", json.dumps({"folder": str(other), "group": os.getpgid(0)}).encode()):
        (tmp_path / "traces").write_bytes(content)
        sweep(tmp_path / "traces")
        assert other.is_dir()
