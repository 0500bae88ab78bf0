"""SIGKILL of a leader, its follower, their witness, and of whoever was promoted: of none is a process left after 5 s.

The real commands, with a peer-to-peer node beside whoever leads; nothing but the one process is killed each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from barnraise.cli.standby_runs import promoted
from coordinator.edge.standby_desk import standby_link
from coordinator.run.folder import RunFolder, init_run
from coordinator.run.seats import admission_of
from coordinator.settings import RunSettings
from tests.soak.standby_soak import text_in

LEFT_S = 5.0
START_S = 120.0
P2PD = "p2pd"


def until(holds: Callable[[], bool], why_not: str) -> None:
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < START_S, why_not
        time.sleep(0.1)


class Commands:
    """`barnraise coordinator ...`, one process each."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> Path:
        """Its output."""
        out = self._place / f"{name}.log"
        with out.open("wb") as log:
            self._running[name] = subprocess.Popen(
                (sys.executable, "-m", "barnraise", "coordinator", *arguments), stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path.cwd())}, start_new_session=True,
            )  # fmt: skip
        return out

    def family(self, name: str) -> list[psutil.Process]:
        """It, and whom it started."""
        itself = psutil.Process(self._running[name].pid)
        return [itself, *itself.children(recursive=True)]

    def has_node(self, name: str) -> bool:
        """Whether its sidecar has started the node's own process."""
        return any(self._is_node(one) for one in self.family(name)[1:])

    @staticmethod
    def _is_node(one: psutil.Process) -> bool:
        try:
            return P2PD in " ".join(one.cmdline()[:1])
        except psutil.NoSuchProcess:
            return False

    def killed(self, name: str) -> list[str]:
        """Kill this one process; what is left of its family after 5 s."""
        family = self.family(name)
        self._running[name].kill()
        self._running.pop(name).wait()
        _, alive = psutil.wait_procs(family[1:], timeout=LEFT_S)
        return [" ".join(one.cmdline())[:200] for one in alive]

    def close(self) -> None:
        for name in list(self._running):
            for one in self.family(name):
                one.kill()
            self._running.pop(name).wait()


@pytest.mark.soak
def test_whoever_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    settings = RunSettings(
        preset="tiny", data=str(text_in(tmp_path)), port=0, sequence_length=16, heldout_limit=2, p2p=True, p2p_port=0,
        advertised_hosts=("127.0.0.1",), screening_sequences=2,
    )  # fmt: skip
    run, second = init_run(tmp_path / "run", settings), tmp_path / "second"
    commands = Commands(tmp_path)
    try:
        told = commands.start("witness", "witness", str(tmp_path / "witness-folder"), "--port", "0")
        until(lambda: "barnraise-witness://" in told.read_text(), "no witness")
        commands.start("leader", "run", str(run.root), "--no-http")
        until(run.endpoint_path.is_file, "no leader")
        until(lambda: commands.has_node("leader"), "the leader has no node")
        commands.start("follower", "follow", standby_link(run), str(second))
        until(lambda: (found := admission_of(run.root)) is not None and bool(found.key), "no follower")
        until((second / "run.json").is_file, "the follower has no run")
        for name in ("witness", "follower", "leader"):
            assert commands.killed(name) == [], f"left of the {name}"
        assert promoted(second, confirmed=True) == 2
        commands.start("promoted", "run", str(second), "--no-http")
        until(lambda: commands.has_node("promoted"), "whoever was promoted has no node")
        assert commands.killed("promoted") == []
        assert RunFolder.open(second).run_id == run.run_id
    finally:
        commands.close()
