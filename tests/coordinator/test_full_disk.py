"""A real disk that is really full, and one that is really read-only: told in one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--map-root-user", "--mount"]


def may_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_and_a_read_only_disk(pristine_run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not may_mount(disk):
        pytest.skip("this machine does not let a test mount a disk of its own")
    command = [*ALONE, sys.executable, "-m", "tests.coordinator.full_disk", str(pristine_run), str(disk)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    for name in ("append", "put", "backup"):
        assert "the disk is full: make room; nothing was lost" in seen[name], name
    assert seen["left_behind"] == []
    assert seen["position_after"] == seen["position_when_full"] + 1
    assert seen["problems"] == []
    assert seen["exit_code"] == 2
    (sentence,) = seen["read_only"].splitlines()
    assert "the file system is read-only: mount it for writing" in sentence
