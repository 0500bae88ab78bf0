"""docker-compose.yml: well-formed, and each service's exact command line runs as a process and does its part.

No container engine is needed: volumes become file systems below a folder of the test, owned by the image's user; the
rest of each line stays as written (tests/compose_up.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose_up import IMAGE_USER, WORKERS

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"


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
    assert set(services) == {"init", "coordinator", *WORKERS, "prometheus", "grafana-password", "grafana"}
    invites = services["coordinator"]["command"]
    assert int(invites[invites.index("--invites") + 1]) == len(WORKERS)
    for name in WORKERS:
        assert services[name]["hostname"] == name  # a link is claimed under the host's name
        assert "coordinator" in services[name]["depends_on"]


def test_the_image_holds_every_room():
    copied = [line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert rooms <= set(copied)


def alone() -> list[str] | None:
    """A command that runs another in a mount namespace of its own; None where this machine allows none."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
            mount = [*command, "mount", "-t", "tmpfs", "tmpfs", folder]
            if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                return command
    return None


def test_the_command_lines_train_a_model_together_on_mounted_volumes():
    if (namespace := alone()) is None:
        pytest.skip("this machine does not let a test mount file systems of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the image's user must get to the volumes, as it does in a container
        command = [*namespace, sys.executable, "-m", "tests.compose_up", folder, str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["enrolled"] == list(WORKERS)
    assert seen["rounds"] == 2
    assert seen["health_unserved"] == 1, "nobody answers, although the journal does"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen["model"])
    if seen["unprivileged"]:
        assert seen["owners"] == [IMAGE_USER]
        assert f"--uid {IMAGE_USER}" in (ROOT / "Dockerfile").read_text()
