"""docker-compose.yml: well-formed, and each service's exact command line runs as a process and does its part.

No container engine is needed: mount points become folders of the test, the rest of each line stays as written.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from barnraise.cli.app import run as barnraise

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
WORKERS = ("worker-1", "worker-2", "worker-3")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="Debian's docker-compose is not installed")
def test_docker_compose_reads_the_file():
    said = subprocess.run(
        ["docker-compose", "-f", str(COMPOSE), "config", "-q"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr


def test_a_coordinator_and_three_workers_that_wait_for_it(services):
    assert set(services) == {"init", "coordinator", *WORKERS}
    invites = services["coordinator"]["command"]
    assert int(invites[invites.index("--invites") + 1]) == len(WORKERS)
    for name in WORKERS:
        assert services[name]["hostname"] == name  # a link is claimed under the host's name
        assert "coordinator" in services[name]["depends_on"]


def test_the_image_holds_every_room():
    copied = [line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert rooms <= set(copied)


class Containers:
    """Each service's command line as a process of this machine."""

    def __init__(self, services: dict[str, Any], root: Path, port: int) -> None:
        self.services = services
        self.root = root
        self.port = port
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, name: str) -> list[str]:
        service = self.services[name]
        mounts = dict(reversed(volume.split(":")) for volume in service["volumes"])
        words = list(service["command"])
        for at, word in enumerate(words):
            if word in mounts:
                words[at] = str(self.root / mounts[word])
        if name == "init":  # the one address that a machine without containers does not have
            words[words.index("--advertise") + 1] = "127.0.0.1"
            words[words.index("--port") + 1] = str(self.port)
            words += ["--rounds", "2", "--inner-steps", "2", "--batch", "2", "--sequence-length", "32"]
            # steps this small see so little that at a run's usual rates an honest one may well raise the loss
            words += ["--learning-rate", "0.004", "--set", "inner.muon_learning_rate=0.02"]
        if name in WORKERS:
            words += ["--name", service["hostname"]]
        return [sys.executable, "-m", "barnraise", *words]

    def healthcheck(self) -> list[str]:
        kind, program, *words = self.services["coordinator"]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "barnraise")
        return [str(self.root / "run") if word == "/run-folder" else word for word in words]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(self.command(name), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        return self.running[name]

    def said(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.root.glob("*.log")))


@pytest.fixture
def containers(services, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = Containers(services, tmp_path, port)
    yield group
    for process in group.running.values():
        process.kill()
        process.wait()


def test_the_command_lines_train_a_model_together(containers):
    assert containers.start("init").wait(timeout=120) == 0, containers.said()
    assert containers.start("init").wait(timeout=120) == 0, "a second `up` finds the run and leaves it alone"
    assert barnraise(containers.healthcheck()) == 1, "nobody answers, although the journal does"
    for name in ("coordinator", *WORKERS):
        containers.start(name)
    for name in (*WORKERS, "coordinator"):
        assert containers.running[name].wait(timeout=240) == 0, containers.said()
    events = [json.loads(line) for line in (containers.root / "run" / "events.jsonl").read_text().splitlines()]
    enrolled = {event["data"]["name"] for event in events if event["name"] == "WorkerEnrolled"}
    assert enrolled == set(WORKERS)
    assert sum(event["name"] == "RoundAggregated" for event in events) == 2
