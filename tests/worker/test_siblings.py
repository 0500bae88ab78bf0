"""Workers of one machine, a device each, with a real coordinator: one invite, one seat, and commands that reach all."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigError
from tests.worker.conftest import Gate, Swarm
from worker.crew import devices_of
from worker.rejoin import known_runs, links_of
from worker.siblings import homes_of, run_folders, sibling_home


async def test_a_second_gpu_is_let_in_by_the_first_ones_key_and_is_the_same_person(swarm: Swarm, gate: Gate) -> None:
    assert swarm.server is not None
    root = swarm.root / "home"
    _, first, _ = swarm.agent(batch_hook=gate)
    await first.saw("fetched")
    (link,) = links_of("", root)
    swarm.link = f"{link.address}/#{link.fingerprint[:12]}"
    _, second, _ = swarm.agent("home/gpus/cuda-1", batch_hook=gate, first_home=root)
    await second.saw("session_opened")
    workers = swarm.server._opened().pump.engine.state.workers
    assert len(workers) == 2
    assert len({record.person for record in workers.values()}) == 1
    gate.opened.set()
    assert homes_of(root) == [root, root / "gpus" / "cuda-1"]
    assert len(run_folders(root)) == 2
    assert len(known_runs(root)) == 1, "the first one's"


@pytest.mark.soak
async def test_one_command_starts_them_and_one_signal_ends_them(swarm: Swarm) -> None:
    """Real processes, on two devices that are one processor."""
    (swarm.root / "home").mkdir(mode=0o700)
    (swarm.root / "home" / "rules.toml").write_text("[cpu]\nniceness = 0\n")
    options = f"link={swarm.link!r}, home=Path({str(swarm.root / 'home')!r}), threads=1, output='json'"
    code = (
        "from pathlib import Path; from worker.crew import run_crew; from worker.options import WorkerOptions;"
        f" raise SystemExit(run_crew(WorkerOptions({options}), ['cpu', 'cpu']))"
    )
    crew = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert crew.stdout is not None
    events: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(240.0):
            while sum(each["event"] == "enrolled" for each in events) < 2:
                events.append(json.loads(await crew.stdout.readline()))
        assert events[0]["text"] == "2 workers, a process for each of cpu, cpu"
        crew.send_signal(signal.SIGINT)
        events += map(json.loads, (await crew.stdout.read()).splitlines())
        assert sum(each["event"] == "finished" for each in events) == 2, "the run may be over for the first"
        assert await crew.wait() == 0
    finally:
        if crew.returncode is None:
            crew.kill()


def test_devices_are_numbers_or_all_of_them() -> None:
    assert devices_of("0,2") == ["cuda:0", "cuda:2"]
    assert devices_of("all", count=lambda: 2) == ["cuda:0", "cuda:1"]
    for wrong, said in (("", "numbers"), ("0,0", "twice"), ("x", "numbers"), ("-1", "numbers")):
        with pytest.raises(ConfigError, match=said):
            devices_of(wrong)
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        devices_of("all", count=lambda: 0)
    assert sibling_home(Path("/h"), "cuda:1") == Path("/h/gpus/cuda-1")
