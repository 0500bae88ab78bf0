"""A process's most memory is what it held, also after it has let go of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulator.processes.memory import LOOK_EVERY_S, PeakMemory, peak_rss_bytes

HOLDS_AND_LETS_GO = """
import sys
held = b"x" * (200 << 20)
del held
print("let go", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a mark that outlives the memory")
def test_memory_that_was_let_go_of_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS_AND_LETS_GO], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 200 << 20 < peak_rss_bytes(process.pid) < 400 << 20
        process.communicate()


def test_a_process_that_is_gone_took_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert peak_rss_bytes(process.pid) == 0
    assert peak_rss_bytes(os.getpid()) > 0


def test_the_largest_of_several_lives_is_kept_and_looks_are_rare() -> None:
    sizes, now_s, looks = {1: 10, 2: 30, 3: 20}, 0.0, []

    def look(pid: int) -> int:
        looks.append(pid)
        return sizes[pid]

    peaks = PeakMemory(look, lambda: now_s)
    peaks.note({"coordinator": 1, "worker-0": 2})
    peaks.note({"coordinator": 1, "worker-0": 2})
    assert looks == [1, 2]
    now_s += LOOK_EVERY_S
    peaks.note({"worker-0": 3})
    assert peaks.of("coordinator") == 10
    assert peaks.of("worker-0", "worker-1") == 30
    assert peaks.of("worker-1") is None
