"""What a volunteer feels of a worker: from `join` to the first inner step, a pause, the memory of an idle one.

    python -m benchmarks.volunteer [--quick] [--json FILE]

A real coordinator and real workers (`barnraise worker join`), each a process, on the tiny preset and over loopback; a
lease is waiting when a worker joins. Memory is that of the agent's process (PSS: what it shares with others is
counted in part); the trainer's process, which has torch and the GPU, is there only while there is something to
compute, and so a pause is measured from the request to the end of that process. Processor time says what an idle
machine would take, where others keep this one busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from protocol.local_socket import ask
from worker.control import control_path

COMMAND = "python -m benchmarks.volunteer"
BARNRAISE = (sys.executable, "-m", "barnraise")
RULES = "[cpu]\nniceness = 0\n[when]\nbattery = 'work'\n"
PATIENCE_S = 300.0
COLUMNS = (
    {"heading": "what", "shows": "{what}"},
    {"heading": "median", "shows": "{median:.1f}"},
    {"heading": "least to most", "shows": "{least:.1f} to {most:.1f}"},
    {"heading": "of", "shows": "{count}"},
    {"heading": "goal", "shows": "under {goal}"},
)


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    count = 2 if options.quick else 5
    joins_s, worked_s, pauses_s, paused_mib, waiting_mib = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="barnraise-volunteer-") as folder, served(Path(folder)) as link:
        for number in range(count):
            with JoinedWorker(Path(folder) / f"home-{number}", link) as worker:
                joins_s.append(worker.until("step"))
                worked_s.append(worker.processor_s())
                pauses_s.append(worker.pause())
                paused_mib.append(worker.agent_mib())
        subprocess.run([*BARNRAISE, "coordinator", "pause", f"{folder}/run"], check=True, stdout=subprocess.DEVNULL)
        with JoinedWorker(Path(folder) / "home-waiting", link) as worker:
            worker.until("waiting")
            worker.until_alone()
            waiting_mib.append(worker.agent_mib())
    rows = [
        _row("from `join` to the first inner step, s", joins_s, "15"),
        _row("processor time of that, s", worked_s, "15"),
        _row("from `pause` to the end of the trainer's process, s", pauses_s, "2"),
        _row("memory of a paused worker, MiB", paused_mib, "120"),
        _row("memory of a worker that waits for work, MiB", waiting_mib, "120"),
    ]
    report.print_rows(rows)
    if options.json is not None:
        command = f"{COMMAND} --quick" if options.quick else COMMAND
        load = os.getloadavg()[0] - 1.0  # what this benchmark itself adds is less than that
        beside = f"beside other work (a load of {load:.0f})" if load > 1.0 else "nothing else running"
        report.write_results(options.json, rows, command=command, columns=COLUMNS, beside=beside)


def _row(what: str, found: list[float], goal: str) -> dict[str, Any]:
    median = statistics.median(found)
    return {
        "what": what, "median": median, "least": min(found), "most": max(found), "count": len(found), "goal": goal,
    }  # fmt: skip


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A run of the tiny preset on this program's own text, and a link for many machines."""
    data, run = folder / "data", str(folder / "run")
    data.mkdir()
    for path in Path(report.__file__).parent.glob("*.py"):
        (data / path.name).write_bytes(path.read_bytes())
    settings = ("--preset", "tiny", "--data", str(data), "--rounds", "50", "--inner-steps", "60", "--port", "0")
    subprocess.run([*BARNRAISE, "coordinator", "init", run, *settings], check=True, stdout=subprocess.DEVNULL)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*BARNRAISE, "coordinator", "run", run, "--no-http"], stdout=log, stderr=log)
    try:
        _await_port(folder / "log")
        invite = [*BARNRAISE, "coordinator", "invite", run, "--uses", "50"]
        told = subprocess.run(invite, check=True, capture_output=True, text=True).stdout
        found = re.search(r"barnraise://\S+", told)
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait(30.0)


def _await_port(log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if "listening on port" in log.read_text():
            return
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


class JoinedWorker:
    """One worker's process; ended by its context."""

    def __init__(self, home: Path, link: str) -> None:
        home.mkdir(mode=0o700)
        (home / "rules.toml").write_text(RULES)
        command = [*BARNRAISE, "worker", "join", link, "--home", str(home), "--threads", "1", "--output", "json"]
        self._home, self._started_s = home, time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> JoinedWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def until(self, event: str) -> float:
        """Wait for it; seconds since the command was given."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if json.loads(line)["event"] == event:
                return time.monotonic() - self._started_s
        raise RuntimeError(f"the worker ended before it said {event}")

    def processor_s(self) -> float:
        """That the agent and its trainer have taken."""
        agent = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (agent, *agent.children())]
        return float(sum(each.user + each.system for each in times))

    def pause(self) -> float:
        """Seconds from the request to the end of the trainer's process."""
        (trainer,) = psutil.Process(self._process.pid).children()
        (run,) = (self._home / "runs").iterdir()
        started_s = time.monotonic()
        asyncio.run(ask(control_path(run), {"verb": "pause"}))
        trainer.wait(PATIENCE_S)
        return time.monotonic() - started_s

    def until_alone(self) -> None:
        """Wait until the trainer's process has gone, as it does when nothing needs it for a while."""
        deadline_s = time.monotonic() + PATIENCE_S
        while psutil.Process(self._process.pid).children():
            if time.monotonic() > deadline_s:
                raise TimeoutError("the trainer's process stays")
            time.sleep(0.5)

    def agent_mib(self) -> float:
        """Of the agent, the only process that there is now."""
        assert not psutil.Process(self._process.pid).children()
        return float(psutil.Process(self._process.pid).memory_full_info().pss) / 2**20


if __name__ == "__main__":
    main()
