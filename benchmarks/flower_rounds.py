"""Rounds of Flower, over processes of its own: the row `flower` of `benchmarks.round_trip`.

Decides nothing that it measures: a SuperLink, a SuperNode for each worker and `flwr run`, all with their defaults, from
the interpreter that is given; a strategy that averages (FedAvg), clients that change one value and send everything
back. Without TLS, signatures and files, which is in Flower's favour. Touches the folder that it is given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "rounds"
version = "1.0.0"
license = "Apache-2.0"
description = "rounds"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "rounds.both:server"
clientapp = "rounds.both:client"
[tool.flwr.app.config]
"""
_APP = """
import json, time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()
WORKERS, PAYLOAD_BYTES, ROUNDS, TOLD = {workers}, {payload_bytes}, {rounds}, {told!r}


class Timed(FedAvg):
    began_s = []

    def configure_train(self, *args, **named):
        self.began_s.append(time.monotonic())
        return super().configure_train(*args, **named)


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=WORKERS, min_available_nodes=WORKERS
    )
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(PAYLOAD_BYTES // 4, np.float32)]), num_rounds=ROUNDS
    )
    with open(TOLD + ".new", "w") as file:
        json.dump([*strategy.began_s, time.monotonic()], file)
    import os
    os.replace(TOLD + ".new", TOLD)


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [np.array(one) for one in message.content["arrays"].to_numpy_ndarrays()]
    arrays[0][0] += 1.0
    content = RecordDict({{"arrays": ArrayRecord(arrays), "metrics": MetricRecord({{"num-examples": 1}})}})
    return Message(content=content, reply_to=message)
"""


def flower_version(python: Path) -> str:
    """Of the Flower that `python` has."""
    asked = [str(python), "-c", "import flwr; print(flwr.__version__)"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def flower_rounds(
    python: Path, folder: Path, workers: int, payload_bytes: int, rounds: int, patience_s: float = 900.0
) -> tuple[list[float], float]:
    """Seconds of each round but the first, and the processor seconds that one round took in all server processes."""
    app, told = folder / "app", folder / "told.json"
    (app / "rounds").mkdir(parents=True)
    (app / "pyproject.toml").write_text(_PROJECT)
    (app / "rounds" / "__init__.py").write_text("")
    text = _APP.format(workers=workers, payload_bytes=payload_bytes, rounds=rounds, told=str(told))
    (app / "rounds" / "both.py").write_text(text)
    link_port, *node_ports = _free_ports(1 + workers)
    environment = {**os.environ, "FLWR_HOME": str(folder / "home"), "HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    (folder / "home").mkdir()
    address = f"127.0.0.1:{link_port}"
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> None:
        log = (folder / f"{name}.log").open("wb")
        command = [str(python.parent / arguments[0]), *arguments[1:]]
        started.append(
            subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=app, start_new_session=True)
        )

    start("superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
          "--port", str(link_port))  # fmt: skip
    try:
        _wait_for(link_port)
        for number, port in enumerate(node_ports):
            start(f"node-{number}", "flower-supernode", "--insecure", "--superlink", address, "--port", str(port))
        time.sleep(3.0)
        start("run", "flwr", "run", str(app), "here")
        ends_s, marks = time.monotonic() + patience_s, _Marks(started[0].pid)
        while not told.exists():
            if time.monotonic() > ends_s:
                raise TimeoutError((folder / "run.log").read_text()[-2000:])
            time.sleep(0.2)
            marks.look()
    finally:
        for process in started:
            _end(process)
    began_s: list[float] = json.loads(told.read_text())
    took_s = [after - before for before, after in itertools.pairwise(began_s)]
    return took_s[1:], marks.between(began_s[1], began_s[-1]) / (rounds - 1)


class _Marks:
    """Processor seconds of a process and all that it started, now and then."""

    def __init__(self, pid: int) -> None:
        self._pid, self._seen = pid, [(time.monotonic(), 0.0)]

    def look(self) -> None:
        """Now."""
        self._seen.append((time.monotonic(), _cpu_s_of_session(self._pid)))

    def between(self, begin_s: float, end_s: float) -> float:
        """Between two moments, to a look's precision."""

        def at(moment_s: float) -> float:
            return max((cpu for when, cpu in self._seen if when <= moment_s + 0.3), default=0.0)

        return at(end_s) - at(begin_s)


def _cpu_s_of_session(session: int) -> float:
    total, tick = 0, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields: list[Any] = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            total += sum(map(int, fields[11:15]))
    return total / tick


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(port: int, patience_s: float = 60.0) -> None:
    ends_s = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(0.2)
