"""A real coordinator and real workers on one machine, under the same faults as the simulation's.

Decides when a process that was struck comes back: a killed one after the fault's `seconds`, a stalled one goes on after
them. Each worker has a link of its own (`proxy.py`); what strikes inside a process is
`process_faults.py`. Always: a fault strikes as often as it says, over all lives; a process that ends without
having been struck is an error that names its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from protocol.errors import LocalError
from simulator.faults import COORDINATOR, Fault, FaultKind, FaultPlan, Point
from simulator.processes.launcher import ProcessGroup
from tests.machines.process_faults import ON_LINK, CoordinatorPoints, WorkerPoints, check_for_processes, is_timed
from tests.machines.proxy import FaultyLink

POLL_S = 0.02
_IN_PROCESS = frozenset({FaultKind.KILL, FaultKind.STALL})
Numbered = Sequence[tuple[int, Fault]]


@dataclass(slots=True)
class _Machine:
    """One process after another, in one place."""

    worker: int
    log: Path
    process: BaseProcess | None = None
    pipe: Connection | None = None
    struck: Fault | None = None
    over: bool = False


@dataclass(slots=True)
class Machines:
    """One run's processes. `run` once."""

    folder: Path
    """The run's."""
    work: Path
    """Logs and the workers' homes."""
    workers: int
    faults: Sequence[Fault]
    columns_per_worker: int | None = None
    fired: list[tuple[float, Fault]] = field(default_factory=list)
    """What struck, and after how many seconds."""
    _struck: Counter[int] = field(default_factory=Counter)
    _started_s: float = 0.0
    _port: int = 0
    _listening: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """ConfigError for what real processes cannot do."""
        check_for_processes(self.faults)

    async def run(self, limit_s: float) -> None:
        """Start everything, and wait until the run is over and everybody knows; TimeoutError after `limit_s`."""
        self._started_s = time.monotonic()
        group = ProcessGroup()
        on_links = [fault for fault in self.faults if fault.kind in ON_LINK]
        link_plan = FaultPlan([fault for fault in on_links if not is_timed(fault)])
        links = [FaultyLink(worker, lambda: self._port, link_plan, self._now_s) for worker in range(self.workers)]
        machines = [_Machine(COORDINATOR, self.work / "coordinator.log")]
        machines += [_Machine(worker, self.work / f"worker-{worker}.log") for worker in range(self.workers)]
        invites = await asyncio.to_thread(self._join_links)
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as tasks:
                for link in links:
                    await link.start()
                timed = tasks.create_task(self._strike_by_time(machines, links))
                lives = [tasks.create_task(self._lives(group, machines[0], ""))]
                await self._listening.wait()
                for machine, link, invite in zip(machines[1:], links, invites, strict=True):
                    mine = invite.replace("127.0.0.1:1/", f"127.0.0.1:{link.port}/")
                    lives.append(tasks.create_task(self._lives(group, machine, mine)))
                await asyncio.wait(lives)
                timed.cancel()
        finally:
            group.stop(grace_s=0.0)
            for link in links:
                await link.stop()
            self.fired += link_plan.fired

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _join_links(self) -> list[str]:
        from coordinator.run.folder import RunFolder
        from coordinator.store.registry import Registry
        from protocol.joinlink import JoinLink

        folder = RunFolder.open(self.folder)
        registry = Registry.open(folder.registry_path)
        try:
            invites = [
                registry.create_invite(trusted=False, expires_at_s=time.time() + 3600.0) for _ in range(self.workers)
            ]
        finally:
            registry.close()
        fingerprint = folder.authority().fingerprint
        return [str(JoinLink(host="127.0.0.1", port=1, fingerprint=fingerprint, invite=invite)) for invite in invites]

    # ---- processes -----------------------------------------------------------------------------------------------

    async def _lives(self, group: ProcessGroup, machine: _Machine, link: str) -> None:
        """Life after life, until the run is over."""
        while not machine.over:
            machine.struck = None
            self._start(group, machine, link)
            assert machine.process is not None
            while machine.process.is_alive():
                await self._listen(machine)
                await asyncio.sleep(POLL_S)
            await self._listen(machine)
            machine.over = machine.process.exitcode == 0
            await asyncio.sleep(_away_s(machine))

    def _start(self, group: ProcessGroup, machine: _Machine, link: str) -> None:
        ours, theirs = group.pipe()
        mine = self._left_for(machine.worker)
        name = "coordinator" if machine.worker == COORDINATOR else f"worker-{machine.worker}"
        if machine.worker == COORDINATOR:
            machine.process = group.start(
                name, machine.log, coordinator_life, self.folder, mine, theirs, self._started_s
            )
        else:
            home = self.work / f"home-{machine.worker}"
            spec = (machine.worker, link, home, self.columns_per_worker)
            machine.process = group.start(name, machine.log, worker_life, spec, mine, theirs, self._started_s)
        theirs.close()
        machine.pipe = ours

    def _left_for(self, worker: int) -> Numbered:
        """The faults that may still strike inside this machine's processes."""
        return [
            (number, replace(fault, times=fault.times - self._struck[number]))
            for number, fault in enumerate(self.faults)
            if fault.kind not in ON_LINK and not is_timed(fault) and fault.at.worker == worker
            if fault.times > self._struck[number]
        ]

    async def _listen(self, machine: _Machine) -> None:
        """What the process has to say: where it listens, or what strikes it now."""
        pipe = machine.pipe
        assert pipe is not None
        with contextlib.suppress(EOFError, OSError):
            while pipe.poll():
                message: dict[str, int] = pipe.recv()
                if "port" in message:
                    self._port = message["port"]
                    self._listening.set()
                    continue
                fault = self.faults[message["fault"]]
                self._struck[message["fault"]] += 1
                self.fired.append((self._now_s(), fault))
                if fault.kind is FaultKind.KILL:
                    machine.struck = fault
                elif fault.kind is FaultKind.STALL:
                    await self._let_stand(machine, fault.seconds)

    async def _let_stand(self, machine: _Machine, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._signal(machine, signal.SIGCONT)

    def _signal(self, machine: _Machine, number: int) -> None:
        if machine.process is not None and machine.process.pid is not None and machine.process.is_alive():
            os.kill(machine.process.pid, number)

    # ---- faults that wait for a time -----------------------------------------------------------------------------

    async def _strike_by_time(self, machines: Sequence[_Machine], links: Sequence[FaultyLink]) -> None:
        plan = FaultPlan([fault for fault in self.faults if is_timed(fault)])
        while plan.unspent:
            for link_worker, link in enumerate(links):
                for fault in plan.take(Point(worker=link_worker, now_s=self._now_s()), ON_LINK):
                    self.fired.append((self._now_s(), fault))
                    link.strike(fault)
            for machine in machines:
                for fault in plan.take(Point(worker=machine.worker, now_s=self._now_s()), _IN_PROCESS):
                    await self._strike(machine, fault)
            await asyncio.sleep(POLL_S)

    async def _strike(self, machine: _Machine, fault: Fault) -> None:
        self.fired.append((self._now_s(), fault))
        if fault.kind is FaultKind.KILL:
            machine.struck = fault
            self._signal(machine, signal.SIGKILL)
        else:
            self._signal(machine, signal.SIGSTOP)
            await self._let_stand(machine, fault.seconds)


def _away_s(machine: _Machine) -> float:
    """How long a machine that was struck stays dark; LocalError where its process ended by itself, and not well."""
    if machine.struck is not None:
        return machine.struck.seconds
    if not machine.over:
        assert machine.process is not None
        raise LocalError(f"a process ended with {machine.process.exitcode}: see {machine.log}")
    return 0.0


def coordinator_life(folder: Path, faults: Numbered, pipe: Connection, started_s: float) -> None:
    """Serve the run until it is over."""
    import torch

    from coordinator.edge.server import CoordinatorServer
    from coordinator.run.folder import RunFolder
    from coordinator.store.journal import Journal

    torch.set_num_threads(1)
    run = RunFolder.open(folder)
    journal = Journal.open(run.journal_path, writable=False)
    last_position = journal.last_position
    journal.close()
    points = CoordinatorPoints(COORDINATOR, faults, pipe, started_s)
    points.watch_slow_work()

    async def serve() -> None:
        server = CoordinatorServer(run, journal_observer=points.journal_observer(last_position))
        await server.start()
        pipe.send({"port": json.loads(run.endpoint_path.read_bytes())["port"]})
        await server.finished()
        await server.stop()

    asyncio.run(serve())


def worker_life(spec: tuple[int, str, Path, int | None], faults: Numbered, pipe: Connection, started_s: float) -> None:
    """One worker until the run is over."""
    import torch

    from worker.join import WorkerOptions, run_worker

    torch.set_num_threads(1)
    worker, link, home, max_columns = spec
    points = WorkerPoints(worker, faults, pipe, started_s)
    points.watch_session()
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "output": "plain", "measure_speed": False}
    code = run_worker(
        WorkerOptions(
            link=link,
            home=home,
            max_columns=max_columns,
            batch_hook=points.on_batch,
            keep_progress_every_s=0.0,
            first_backoff_s=0.05,
            max_backoff_s=0.5,
            **options,
        )
    )
    raise SystemExit(code)
