"""The worker as a process of its own: one link is enough, and a signal is obeyed within two seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.phases import LeaseStatus
from worker.join import WorkerOptions, run_worker

PROGRAM = """
import sys, time
from pathlib import Path
from coordinator.engine.phases import LeaseStatus
from worker.join import WorkerOptions, run_worker
def hook(lease, sequences):
    time.sleep(60)  # a step that cannot be interrupted
    return sequences
rules = Path(sys.argv[2]) / "rules.toml"
rules.parent.mkdir(exist_ok=True)
rules.write_text("[cpu]\\nniceness = 0\\n")  # where tests run side by side, a worker that steps back waits for minutes
options = WorkerOptions(link=sys.argv[1], home=Path(sys.argv[2]), threads=1, output="json", measure_speed=False,
                        batch_hook=hook)
raise SystemExit(run_worker(options))
"""


async def events_until(process: asyncio.subprocess.Process, name: str) -> list[dict[str, Any]]:
    assert process.stdout is not None
    seen = []
    async with asyncio.timeout(300):
        while line := await process.stdout.readline():
            seen.append(json.loads(line))
            if seen[-1]["event"] == name:
                return seen
    raise AssertionError(seen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_in_mid_step_hands_the_lease_back_within_two_seconds(
    swarm: Any, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("-c", PROGRAM, swarm.link, str(tmp_path / "home"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        await events_until(process, "fetched")
        started_s = time.monotonic()
        process.send_signal(number)
        finished = (await events_until(process, "finished"))[-1]
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        assert time.monotonic() - started_s < 2.0
        assert finished["text"] == "the lease is handed back"
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_terminal_that_is_closed_hands_the_lease_back(swarm: Any, tmp_path: Path) -> None:
    """The real thing: the kernel hangs up, and what is printed from then on fails."""
    ours, theirs = os.openpty()
    arguments = ("-c", "import os; os.login_tty(0)" + PROGRAM, swarm.link, str(tmp_path / "home"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=theirs, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    os.close(theirs)
    try:
        async with asyncio.timeout(300):
            shown = b""
            while b'"fetched"' not in shown:
                shown += await asyncio.to_thread(os.read, ours, 4096)
            os.close(ours)
            assert await process.wait() == 0
        (record,) = swarm.server._opened().pump.engine.state.leases.values()
        assert (record.status, record.end_reason) == (LeaseStatus.RETURNED, "handed back: the terminal was closed")
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize("link", ["http://example.org", "barnraise://host:1/#abc"])
def test_a_wrong_link_is_one_sentence_and_exit_code_2(
    link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_worker(WorkerOptions(link=link, home=tmp_path, output="plain")) == 2
    assert "join link" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["example.org:7070"],
        ["barnraise://example.org:7070/"],
        ["-", "--device", "tpu"],
        ["-", "--memory", "lots"],
        ["-", "--output", "loud"],
        ["-", "--threads", "100000"],
        ["--links-from", "nowhere", "--device", "tpu"],
        ["--link-file", "nowhere"],
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    arguments = ["worker", "join", *arguments, "--home", str(tmp_path)]
    code = (
        f"import sys; from barnraise.cli.app import run; code = run({arguments!r})\n"
        "raise SystemExit(code if code != 2 else any(m in sys.modules for m in ('torch', 'grpc', 'transformers')))"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, worker.join; raise SystemExit(any(m in sys.modules for m in ('torch', 'grpc', 'transformers')))"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
