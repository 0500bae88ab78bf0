"""A terminal that is closed under a process: output that nobody reads, and which signals end it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.terminal import ending_signals, is_hangup, outliving_terminal

PROGRAM = """
import sys
from pathlib import Path
from protocol.terminal import outliving_terminal
with outliving_terminal():
    print("here", flush=True)
    sys.stdin.readline()
    for stream in (sys.stdout, sys.stderr):
        print("nobody reads this", file=stream, flush=True)
        print("nor this", file=stream)
    Path(sys.argv[1]).write_text("went on")
print("not even this")
"""


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_printing_goes_on_when_nobody_is_there_to_read(tmp_path: Path, kind: str) -> None:
    reads, writes = pty.openpty() if kind == "terminal" else os.pipe()
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "said")]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=writes, stderr=writes, start_new_session=True)
    os.close(writes)
    assert os.read(reads, 100).startswith(b"here")
    os.close(reads)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "said").read_text() == "went on"


def test_what_can_be_read_is_written() -> None:
    code = "from protocol.terminal import outliving_terminal\nwith outliving_terminal(): print('so')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"so\n"
    before = sys.stdout
    with outliving_terminal():
        assert sys.stdout is not before
    assert sys.stdout is before


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_ends_a_process_unless_nohup_started_it(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        found = set(ending_signals())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == {signal.SIGTERM, signal.SIGINT} | (set() if ignored else {signal.SIGHUP})
    assert is_hangup(signal.SIGHUP)
    assert not is_hangup(signal.SIGTERM)
