"""What a follower costs the pump: how long an event takes from `submit` to its answer, with none, and with one.

A tiny run is served by the real coordinator over loopback, its follower is a process of its own, and events come at a
steady rate, some of them at once. Each way is measured several times, turn about, since others share the machine; the
median of each way's 99th percentiles is compared.

    python -m benchmarks.standby [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Row, machine, parse_args, print_rows, write_results
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.standby_desk import standby_link
from coordinator.engine.events import Announced
from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings

RATE = 100.0
"""Events a second: a busy run of some hundred workers."""
AT_ONCE = 4
GOALS = {"none": 1.0, "async": 1.5, "sync": 3.0}
START_S = 300.0


def main() -> None:
    """Measure, and print a row for each way."""
    arguments = parse_args(__doc__ or "")
    events, turns = (300, 2) if arguments.quick else (600, 3)
    rows = asyncio.run(_measured(events, turns))
    print_rows(rows)
    print(machine())
    if arguments.json is not None:
        columns = [
            {"heading": "follower", "shows": "{follower}"},
            {"heading": "events", "shows": "{events:,}"},
            {"heading": "median, ms", "shows": "{p50_ms:.2f}"},
            {"heading": "p99, ms", "shows": "{p99_ms:.2f}"},
            {"heading": "lowest and highest p99", "shows": "{lowest_ms:.2f} to {highest_ms:.2f}"},
            {"heading": "p99 of no follower's", "shows": "{times:.2f} ×"},
            {"heading": "goal", "shows": "{goal:.1f} ×"},
        ]
        command = "python -m benchmarks.standby" + (" --quick" if arguments.quick else "")
        beside = f"beside other work (load {os.getloadavg()[0]:.0f})"
        write_results(arguments.json, rows, command=command, columns=columns, beside=beside)


async def _measured(events: int, turns: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_text(folder / "text")
        settings: dict[str, Any] = {"preset": "tiny", "data": str(folder / "text"), "port": 0, "sequence_length": 32}
        run = init_run(folder / "run", RunSettings(**settings, heldout_limit=4, screening_sequences=4))
        server = CoordinatorServer(run)
        await server.start()
        try:
            await _all_of(server, 100)
            found: dict[str, list[list[float]]] = {way: [] for way in GOALS}
            for turn in range(turns):
                found["none"].append(await _all_of(server, events))
                follower = _follower(run, folder / f"follower-{turn}")
                try:
                    await _attached(server)
                    found["async"].append(await _all_of(server, events))
                    _replication(server).order("sync", confirmed=False)
                    found["sync"].append(await _all_of(server, events))
                    _replication(server).order("async", confirmed=True)
                finally:
                    follower.kill()
                    follower.wait()
            return [_row(way, found) for way in GOALS]
        finally:
            await server.stop(0.0)


def _write_text(folder: Path) -> None:
    folder.mkdir()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("c*.py"))[:16]:
        shutil.copy(path, folder / path.name)


async def _all_of(server: CoordinatorServer, events: int) -> list[float]:
    """Milliseconds of each of so many events."""
    opened = server._opened()
    took_ms: list[float] = []

    async def one(number: int) -> None:
        began_s = time.perf_counter()
        await opened.pump.submit(Announced(at_s=opened.run_time(), actor="benchmark", text=f"event {number}"))
        took_ms.append(1000 * (time.perf_counter() - began_s))

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(events // AT_ONCE):
            for each in range(AT_ONCE):
                tasks.create_task(one(AT_ONCE * number + each))
            await asyncio.sleep(max(0.0, began_s + (number + 1) * AT_ONCE / RATE - time.perf_counter()))
    return took_ms


def _follower(run: RunFolder, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "barnraise", "coordinator", "follow", standby_link(run), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _replication(server: CoordinatorServer) -> Any:
    parts = server._parts
    assert parts is not None
    return parts.replication


async def _attached(server: CoordinatorServer) -> None:
    async with asyncio.timeout(START_S):
        while not (_replication(server).state.attached and not _replication(server).state.behind):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _row(way: str, found: dict[str, list[list[float]]]) -> Row:
    p99s = [_p99(one) for one in found[way]]
    p99_ms = statistics.median(p99s)
    return {
        "follower": way,
        "events": sum(len(one) for one in found[way]),
        "p50_ms": statistics.median([value for one in found[way] for value in one]),
        "p99_ms": p99_ms,
        "lowest_ms": min(p99s),
        "highest_ms": max(p99s),
        "times": p99_ms / statistics.median([_p99(one) for one in found["none"]]),
        "goal": GOALS[way],
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


if __name__ == "__main__":
    main()
