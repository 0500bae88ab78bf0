"""Runs one simulation from beginning to end: the coordinator, the workers, their dropouts, the lone worker, the report.

Decides what is started, killed and brought back, and when it is over. Always: whatever happens, every process that was
started is stopped, a report of what was seen is written, and the workers' folders go unless they are asked for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from protocol.errors import BarnraiseError, ConfigError
from protocol.folders import telling_folder_trouble
from simulator.processes.children import coordinator_process, lone_process
from simulator.processes.crew import Crew
from simulator.processes.launcher import COORDINATOR, ProcessGroup, wait_for_exit
from simulator.processes.live import Display
from simulator.processes.observer import Observation
from simulator.processes.options import SimulationOptions
from simulator.processes.outfolder import OutFolder
from simulator.processes.report import SimulationReport
from simulator.processes.results import write_results
from simulator.processes.setup import check_simulation, require_outside
from simulator.processes.shutdown import StopRequest

POLL_S = 0.1
START_LIMIT_S = 300.0
"""Preparing the corpus and importing torch on a slow disk; far above anything seen."""
FAREWELL_S = 5.0
"""How long the workers have to learn that the run is over and leave by themselves."""
STOP_GRACE_S = 2.5


class SimulationFailed(BarnraiseError):
    """The simulation cannot go on; the report is still written."""


def run_simulation(options: SimulationOptions, display: Display, *, replace: bool = False) -> SimulationReport:
    """Run a whole simulation; writes everything into `options.out` and returns the report.

    An earlier simulation there is in the way; with `replace` it goes when this one has begun. ConfigError where it
    could not begin, KeyboardInterrupt where it was stopped before that: then all is as it was.
    """
    check_simulation(options)  # what is wrong is said before anything is touched
    if replace:
        require_outside(options)
    folder = OutFolder(options.out)
    former = folder.begin(replace=replace)
    try:
        with StopRequest() as stop:
            return Swarm(options, display, stop, lambda: _begun(folder, former, options, display)).run()
    except NotBegun as error:
        folder.give_up()
        if error.stopped:
            raise KeyboardInterrupt from error
        raise ConfigError(str(error)) from error
    finally:
        folder.close()


def _begun(folder: OutFolder, former: Sequence[str], options: SimulationOptions, display: Display) -> None:
    folder.settle()
    if former:
        display.say(f"removed from {options.out}, as --force asked: {', '.join(former)}")


class NotBegun(BarnraiseError):
    """The run could not be made, for a reason that a person can correct, or because somebody asked to stop."""

    def __init__(self, why: str, *, stopped: bool = False) -> None:
        super().__init__(why)
        self.stopped = stopped


class Swarm:
    """One simulation's lifecycle. `begun` is called once the run is there."""

    def __init__(
        self, options: SimulationOptions, display: Display, stop: StopRequest, begun: Callable[[], None]
    ) -> None:
        self._options = options
        self._display = display
        self._stop = stop
        self._begun = begun
        self._group = ProcessGroup()
        self._seen = Observation(options)
        self._crew = Crew(options, self._group, display)
        self._coordinator: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._ready = False
        self._started_s = time.monotonic()

    def run(self) -> SimulationReport:
        """Everything, in order."""
        outcome, why = "finished", ""
        lone: dict[str, float] | None = None
        try:
            self._train()
            if self._options.lone and not self._stop.requested:
                lone = self._train_alone()
        except SimulationFailed as error:
            outcome, why = "failed", str(error)
        finally:
            self._group.stop(grace_s=STOP_GRACE_S)
            if not self._options.keep_homes:
                # Enrolled in a run that is over, and full of its blocks: of no more use to anybody.
                shutil.rmtree(self._options.homes, ignore_errors=True)
        if self._stop.requested:
            outcome, why = "interrupted", "stopped by Ctrl-C, SIGTERM or a closed terminal"
        if outcome == "finished":
            self._show("looking at the experts")
        with telling_folder_trouble(self._options.out):
            report = write_results(
                self._options,
                self._seen,
                self._crew,
                outcome=outcome,
                why=why,
                lone=lone,
                peaks=self._group.peaks,
                wall_s=time.monotonic() - self._started_s,
            )
        self._show(outcome)
        return report

    def _train(self) -> None:
        """The swarm itself: until the run is over, or somebody stops it."""
        self._show("preparing the corpus and the run")
        ready = self._start_coordinator()
        if ready is None:
            raise NotBegun("stopped before the run was made", stopped=True)
        self._begun()
        self._crew.start(ready["links"], vocab_size=int(ready["vocab_size"]))
        finished = False
        while not finished and not self._stop.requested:
            finished = self._read_statuses(POLL_S)
            if not self._stop.requested:  # a signal to the whole group has ended the workers too
                self._crew.tend(self._seen)
            self._group.note_memory()
            self._show("training")
            if time.monotonic() - self._started_s > self._options.time_limit_s:
                raise SimulationFailed(f"gave up after {self._options.time_limit_s:.0f} s")
        if finished:
            wait_for_exit(self._crew.processes(), FAREWELL_S)
        self._group.stop(self._crew.processes(), grace_s=STOP_GRACE_S)
        self._stop_coordinator()

    def _start_coordinator(self) -> dict[str, Any] | None:
        """The coordinator's first message; None when somebody asked to stop before it came."""
        self._pipe, theirs = self._group.pipe()
        log = self._options.work / "logs" / "coordinator.log"
        self._coordinator = self._group.start(COORDINATOR, log, coordinator_process, self._options, theirs)
        theirs.close()
        deadline_s = time.monotonic() + START_LIMIT_S
        while not self._stop.requested:
            for message in self._messages(POLL_S):
                if message["kind"] == "ready":
                    return message
            self._show("preparing the corpus and the run")
            if time.monotonic() > deadline_s:
                raise SimulationFailed(f"the coordinator did not start within {START_LIMIT_S:.0f} s; see {log}")
        return None

    def _read_statuses(self, wait_s: float) -> bool:
        """Take in what the coordinator told; whether its run is over."""
        finished = False
        for message in self._messages(wait_s):
            if "status" in message:
                self._seen.take(message["status"])
            finished = finished or message["kind"] == "finished"
        return finished

    def _messages(self, wait_s: float) -> list[dict[str, Any]]:
        """All messages that have come, waiting up to `wait_s` for the first."""
        assert self._pipe is not None
        assert self._coordinator is not None
        found: list[dict[str, Any]] = []
        try:
            while self._pipe.poll(0.0 if found else wait_s):
                message: dict[str, Any] = self._pipe.recv()
                if message["kind"] == "failed":
                    if message["correctable"] and not self._ready:
                        raise NotBegun(message["why"])
                    raise SimulationFailed(f"the coordinator failed: {message['why']}")
                self._ready = True
                found.append(message)
        except (EOFError, ConnectionResetError) as error:
            self._coordinator.join(timeout=1.0)
            log = self._options.work / "logs" / "coordinator.log"
            code = self._coordinator.exitcode
            raise SimulationFailed(f"the coordinator's process ended (exit code {code}); see {log}") from error
        return found

    def _stop_coordinator(self) -> None:
        """Tell it to stop, take its last status, and wait for it."""
        if self._coordinator is None or self._pipe is None:
            return
        try:
            self._pipe.send({"kind": "stop"})
            deadline_s = time.monotonic() + STOP_GRACE_S
            while self._coordinator.is_alive() and time.monotonic() < deadline_s:
                self._read_statuses(POLL_S)
        except (SimulationFailed, OSError):
            pass  # its pipe closes when it ends, which is what was asked for
        self._group.stop([self._coordinator], grace_s=STOP_GRACE_S)

    def _train_alone(self) -> dict[str, float]:
        """One honest worker alone, in a process of its own."""
        ours, theirs = self._group.pipe()
        log = self._options.work / "logs" / "lone.log"
        process = self._group.start("lone", log, lone_process, self._options.work / "run", theirs)
        theirs.close()
        stage = "training one honest worker alone, to compare"
        while not self._stop.requested:
            self._show(stage)
            try:
                message: dict[str, Any] = ours.recv() if ours.poll(POLL_S) else {"kind": "nothing"}
            except EOFError as error:
                raise SimulationFailed(f"the lone worker's process ended without a result; see {log}") from error
            if message["kind"] == "failed":
                raise SimulationFailed(f"the lone worker failed: {message['why']}")
            if message["kind"] == "lone":
                wait_for_exit([process], STOP_GRACE_S)
                return {"loss": float(message["loss"]), "wall_s": float(message["wall_s"])}
        return {}

    def _show(self, stage: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self._display.show(self._seen.view(stage, elapsed_s=elapsed_s, crew=self._crew.glances()))
