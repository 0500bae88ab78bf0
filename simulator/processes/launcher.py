"""Starts, kills and reaps the swarm's processes, and makes sure that none outlives the simulation.

Decides how a child comes to life: from a fork server that has torch, transformers and the worker imported, or by
spawning where fork servers do not exist. Measured on two cores: a child that trains and calls gRPC answers after 0.02 s
from the fork server, after 2.7 s spawned, and forked children share the imported memory. gRPC is imported in the fork
server but never initialised there: its threads would not survive the fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from simulator.processes.memory import PeakMemory

PRELOAD = ("simulator.processes.preload",)
COORDINATOR = "coordinator"
"""Its process's name; workers have their own (simulator/processes/crew.py)."""


def best_start_method() -> str:
    """`forkserver` where there is one, otherwise `spawn`. Never `fork`: it would copy threads' locks."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class ProcessGroup:
    """All processes of one simulation."""

    def __init__(self, *, start_method: str | None = None, preload: Sequence[str] = PRELOAD) -> None:
        self._context: Any = multiprocessing.get_context(start_method or best_start_method())
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(list(preload))
        self._processes: list[BaseProcess] = []
        self.peaks = PeakMemory()

    def start(self, name: str, log: Path, target: Callable[..., None], *arguments: object) -> BaseProcess:
        """Start `target(*arguments)` in a process of its own, whose output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        process: BaseProcess = self._context.Process(
            target=run_child, args=(log, target, arguments), name=name, daemon=True
        )
        process.start()
        self._processes = [one for one in self._processes if one.is_alive()]
        self._processes.append(process)
        return process

    def note_memory(self) -> None:
        """Look at how much memory everybody has taken so far."""
        self.peaks.note({one.name: one.pid for one in self._processes if one.pid is not None and one.is_alive()})

    def pipe(self) -> tuple[Connection, Connection]:
        """A two-way pipe: one end for a child's arguments, the other for us."""
        ours, theirs = self._context.Pipe(duplex=True)
        return ours, theirs

    def stop(self, processes: Iterable[BaseProcess] | None = None, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for those that are still there after `grace_s`; all of them when none are named."""
        chosen = list(self._processes if processes is None else processes)
        for process in chosen:
            if process.is_alive():
                process.terminate()
        wait_for_exit(chosen, grace_s)
        for process in chosen:
            if process.is_alive():
                process.kill()
        wait_for_exit(chosen, 5.0)


def wait_for_exit(processes: Iterable[BaseProcess], timeout_s: float) -> bool:
    """Whether all of `processes` have ended within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in processes if process.is_alive()]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        connection.wait([process.sentinel for process in alive], timeout=left_s)
    return True


def run_child(log: Path, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """First thing in a child: its output to `log`, the terminal's signals left to the parent, death with it."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    _die_with_parent()
    try:
        target(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None


def _die_with_parent() -> None:
    """End this process when the simulation's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
