"""Processes start, are stopped even when they will not listen, and do not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.processes.launcher import ProcessGroup, best_start_method, wait_for_exit
from simulator.processes.shutdown import StopRequest

ORPHANS = """
import sys, time
from pathlib import Path
from simulator.processes.launcher import ProcessGroup
if __name__ == "__main__":
    group = ProcessGroup(preload=())
    child = group.start("sleeper", Path(sys.argv[1]), time.sleep, 600)
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def group() -> ProcessGroup:
    return ProcessGroup()  # a process has one fork server: what it has preloaded serves the tests of whole swarms too


def gone(pid: int, within_s: float) -> bool:
    """Whether the process ends in time; a zombie has ended."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        os.sched_yield()
    return False


def test_a_child_writes_to_its_log_and_its_exit_code_is_seen(group: ProcessGroup, tmp_path: Path) -> None:
    child = group.start("printer", tmp_path / "logs" / "printer.log", print, "hello")
    assert wait_for_exit([child], 30.0)
    assert child.exitcode == 0
    broken = group.start("broken", tmp_path / "broken.log", os.rmdir, "/nonexistent")
    assert wait_for_exit([broken], 30.0)
    assert broken.exitcode == 1
    assert "FileNotFoundError" in (tmp_path / "broken.log").read_text()
    assert (tmp_path / "logs" / "printer.log").read_text() == "hello\n"


def test_stop_ends_even_what_ignores_sigterm(group: ProcessGroup, tmp_path: Path) -> None:
    listens = group.start("listens", tmp_path / "a.log", time.sleep, 600)
    deaf = group.start("deaf", tmp_path / "b.log", exec, "import signal,time; signal.signal(15, 1); time.sleep(600)")
    started_s = time.monotonic()
    group.stop(grace_s=0.5)
    assert time.monotonic() - started_s < 5
    assert listens.exitcode == -signal.SIGTERM
    assert deaf.exitcode in {-signal.SIGKILL, -signal.SIGTERM}


@pytest.mark.skipif(best_start_method() != "forkserver", reason="needs a fork server")
def test_children_end_when_the_simulation_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, str(script), str(tmp_path / "sleeper.log")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert gone(child, within_s=10.0)


def test_the_first_signal_only_asks() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        asked = [stop.requested]
        os.kill(os.getpid(), signal.SIGINT)
        asked.append(stop.requested)
    assert asked == [False, True]
    assert signal.getsignal(signal.SIGINT) is before
