"""Several workers of one machine, a process for each of its GPUs, started by one command and ended by one signal.

Decides that the first of them joins, with the invite where there is one, and that the others follow once it is
enrolled, by its signature (worker/siblings.py); that one which ends leaves the others at work; and that a signal
reaches each once. Light: what trains is in those processes. Starts them, and passes on what they say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from protocol.errors import ConfigError
from protocol.parent import as_parent
from protocol.terminal import ending_signals, is_hangup
from worker.again import arguments_of
from worker.options import WorkerOptions
from worker.progress import PLAIN_STEP_EVERY_S, Reporter, make_reporter
from worker.rejoin import home_root, known_runs, links_of
from worker.siblings import sibling_home
from worker.words import say

LOOK_EVERY_S: Final = 0.5


def devices_of(gpus: str, count: Callable[[], int] | None = None) -> list[str]:
    """`all`, or numbers as `0,1`; ConfigError where that is no GPU."""
    if gpus == "all":
        found = (count or _count)()
        if found < 1:
            raise ConfigError("--gpus all: no NVIDIA GPU is found on this machine; `barnraise worker probe` says why")
        return [f"cuda:{number}" for number in range(found)]
    numbers = gpus.split(",")
    if not all(number.isascii() and number.isdecimal() and len(number) < 4 for number in numbers):
        raise ConfigError(f"--gpus: expected all, or numbers as 0,1, got {gpus!r}")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--gpus: {gpus} names a GPU twice")
    return [f"cuda:{int(number)}" for number in numbers]


def run_crew(options: WorkerOptions, devices: Sequence[str]) -> int:
    """Work until all workers have ended; the worst of their exit codes."""
    reporter = make_reporter(options.output)
    links_of(options.link, home_root(options.home))  # a mistake is told before anything is started
    crew = _Crew(options, reporter)
    reporter.say("crew", say("crew", count=len(devices), devices=", ".join(devices)))
    with crew.ended_by_signals():
        try:
            return crew.work(devices)
        finally:
            crew.end(signal.SIGTERM)
            reporter.close()


class _Crew:
    """The processes."""

    def __init__(self, options: WorkerOptions, reporter: Reporter) -> None:
        self._options, self._reporter = options, reporter
        self._root = home_root(options.home)
        self._workers: list[subprocess.Popen[str]] = []
        self._leaves = False

    def work(self, devices: Sequence[str]) -> int:
        """The first, then the others, until all have ended."""
        first = self._start(dataclasses.replace(self._options, device=devices[0]), self._options.link)
        while not self._leaves and first.poll() is None and not self._is_enrolled():
            time.sleep(LOOK_EVERY_S)
        if self._is_enrolled():
            self._start_others(devices[1:])
        told: set[int] = set()
        while running := [worker for worker in self._workers if worker.poll() is None]:
            self._tell_ended(told, others=len(running))
            time.sleep(LOOK_EVERY_S)
        return max(abs(int(worker.returncode)) for worker in self._workers)

    def end(self, number: int) -> None:
        """Ask each worker that still runs to leave."""
        self._leaves = True
        for worker in self._workers:
            if worker.poll() is None:
                with contextlib.suppress(OSError):
                    worker.send_signal(number)

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Each signal goes to every worker, which knows what a second one means."""

        def pass_on(number: int, _frame: object) -> None:
            if not (self._leaves and is_hangup(number)):
                self.end(number)

        before = {number: signal.signal(number, pass_on) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _is_enrolled(self) -> bool:
        known = {run.fingerprint for run in known_runs(self._root)}
        links = links_of(self._options.link, self._root) if self._options.link or known else []
        return bool(links) and all(link.fingerprint in known for link in links)

    def _start_others(self, devices: Sequence[str]) -> None:
        link = self._options.link and links_of(self._options.link, self._root)[0]
        way_back = f"{link.address}/#{link.fingerprint[:12]}" if link else ""
        for device in devices:
            if self._leaves:
                return
            home = sibling_home(self._root, device)
            own = dataclasses.replace(
                self._options.beside_another, home=home, first_home=self._root, device=device, archive=False
            )
            self._start(own, way_back)

    def _start(self, options: WorkerOptions, link: str) -> subprocess.Popen[str]:
        options = dataclasses.replace(options, output="json")
        worker = subprocess.Popen(
            [sys.executable, "-m", "barnraise", *arguments_of(options, "-" if link else "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **as_parent()},
            start_new_session=True,  # a terminal's Ctrl-C comes to this process, which passes it on once
        )
        assert worker.stdin is not None
        with worker.stdin as source, contextlib.suppress(OSError):  # by it, and not as an argument, which others see
            source.write(f"{link}\n")
        self._workers.append(worker)
        name = options.device or ""
        threading.Thread(target=self._pass_on, args=(worker, name), name=name, daemon=True).start()
        return worker

    def _pass_on(self, worker: subprocess.Popen[str], device: str) -> None:
        told_s = 0.0
        assert worker.stdout is not None
        for line in worker.stdout:
            found = _read(line)
            if found is None:
                continue
            event, text = str(found.pop("event")), str(found.pop("text"))
            if event == "step" and self._options.output != "json":
                if time.monotonic() - told_s < PLAIN_STEP_EVERY_S:
                    continue
                told_s = time.monotonic()
            found.pop("at_s", None)
            try:
                self._reporter.say(event, f"{device}: {text}", for_device=device, **found)
            except OSError:  # whoever read this is gone, and with them the command
                self.end(signal.SIGTERM)
                return

    def _tell_ended(self, told: set[int], *, others: int) -> None:
        for worker in self._workers:
            if worker.returncode is not None and worker.pid not in told and others and not self._leaves:
                told.add(worker.pid)
                self._reporter.say("crew_ended", say("crew.ended"), exit_code=worker.returncode)


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"event", "text"} <= found.keys() else None


def _count() -> int:
    """GPUs that NVIDIA's driver tells of, less those that are hidden from this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
        found = int(pynvml.nvmlDeviceGetCount())
    except Exception:  # the library's errors, and its absence: `barnraise worker probe` tells them apart
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([one for one in visible.split(",") if one.strip()]))
