"""A worker's process at work: for one run, or for all that its machine is enrolled in, under the volunteer's rules.

Decides that runs go on beside each other, each with a key, a session and a folder of its own, while the device is one
run's at a time (worker/turns.py); that trouble with one ends that one alone; and that a signal leaves all. Touches the
runs' folders, their sockets and the system's signals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from protocol.errors import ConfigError, RemoteError
from protocol.joinlink import JoinLink
from protocol.local_socket import serve
from worker import messages as m
from worker.agent import Agent
from worker.agents import make_agent, tell_machine
from worker.control import Control, control_path
from worker.energy_watch import TRAINING, EnergyWatch, meter_of
from worker.home import RunHome, open_home
from worker.lease import printable
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.policy import Policy
from worker.progress import Field, LiveReporter, Reporter
from worker.rejoin import home_root, known_runs
from worker.rules.house import House
from worker.rules.traffic import HouseLine
from worker.sentences import finished, refusal
from worker.signals import LeavingOnSignals
from worker.standing import LOG_FILE, WorkerStanding
from worker.trouble import trouble_of
from worker.turns import TurnPolicy, Turns
from worker.words import Words, say

THREAD_GRACE_S = 0.4
LINE_EVERY_S = 0.5


async def work_for(options: WorkerOptions, links: list[JoinLink], reporter: Reporter) -> tuple[int, bool]:
    """Until all runs are over, or the worker leaves: the exit code, and whether all that was begun has ended.

    ConfigError and RemoteError are raised where there is one run only.
    """
    process = _WorkerProcess(options, reporter, links)
    with LeavingOnSignals(process.leave):
        if len(links) == 1:
            return await process.serve(links[0])
        reporter.say("turns", say("turns", runs=len(links)), runs=len(links))
        ends = await asyncio.gather(*(process.serve_or_tell(link) for link in links))
    return max(code for code, _ in ends), all(ended for _, ended in ends)


class _WorkerProcess:
    """What the runs have in common."""

    def __init__(self, options: WorkerOptions, reporter: Reporter, links: list[JoinLink]) -> None:
        self._options, self._reporter = options, reporter
        self._first = links[0]
        self._root = home_root(options.first_home or options.home)
        """Where the volunteer's rules are."""
        self._line = HouseLine(self._root)
        self._agents: list[Agent] = []
        self._leaves = ""
        """Why it is to leave; empty: it is not."""
        self._controls: dict[str, Control] = {}
        self._turns = Turns(time.monotonic) if len(links) > 1 else None
        known = {run.fingerprint: run for run in known_runs(self._root)} if self._turns else {}
        self._names = {
            each.fingerprint: (run.address.run_name or each.address) if run.address else each.address
            for each in links
            if (run := known.get(each.fingerprint)) is not None
        }
        self._ids = {fingerprint: run.run_id for fingerprint, run in known.items()}

    async def serve_or_tell(self, link: JoinLink) -> tuple[int, bool]:
        """As `serve`; trouble of this run is told, and keeps no other from working."""
        try:
            return await self.serve(link)
        except (ConfigError, RemoteError) as error:
            trouble = trouble_of(error)
            text = refusal(trouble.cause, trouble.detail, link.address)
            self._told(link).say("failed", text, detail=printable(str(error)))
            return 2, True

    async def serve(self, link: JoinLink) -> tuple[int, bool]:
        """One run, from its folder's lock to its end."""
        options = self._options if link is self._first else self._options.beside_another
        home = open_home(options.home, link.fingerprint, options.disk_bytes)
        home.lock()
        try:
            standing = WorkerStanding(self._told(link), home.folder / LOG_FILE)
            house = House(self._root, tell=lambda text: standing.say("rules", text), line=self._line)
            machine = _machine_here(options, standing, house) if options.trains_here else None
            finish, agent = await self._work(options, machine, link, home, standing, house)
            detail = printable(finish.reason)
            standing.say("finished", finished(finish, link.address), exit_code=finish.exit_code, detail=detail)
            return finish.exit_code, agent.wait_for_thread(THREAD_GRACE_S)
        finally:
            if self._turns is not None:
                self._turns.leave(link.fingerprint)
            home.unlock()

    async def _work(
        self,
        options: WorkerOptions,
        machine: Machine | None,
        link: JoinLink,
        home: RunHome,
        standing: WorkerStanding,
        house: House,
    ) -> tuple[m.Finish, Agent]:
        """With a live line where somebody looks, and an ear for the volunteer's commands."""
        agents: list[Agent] = []
        turn = self._turn_of(link, house, agents)
        agent, joining = make_agent(options, machine, link, home, standing, house, turn=turn)
        agents.append(agent)
        self._agents.append(agent)
        if self._leaves:
            agent.leave(self._leaves)
        house.is_training = lambda: agent.state in TRAINING
        watch = EnergyWatch(meter_of(home, house), agent, joining.background)
        control = self._controls[link.fingerprint] = Control(agent, joining, house, standing, watch.meter)
        live, server = None, None
        try:
            server = await serve(control_path(home.folder), control.handle)
        except (ConfigError, OSError) as error:
            standing.say("no_commands", say("no_commands", why=Words(str(error))))
        if isinstance(self._reporter, LiveReporter) and len(self._controls) == 1:
            live = asyncio.create_task(self._live_line(self._reporter))
        watching = asyncio.create_task(watch.run())
        try:
            return await agent.run(), agent
        finally:
            watching.cancel()
            watch.meter.close()
            if live is not None:
                live.cancel()
            if server is not None:
                await server.close()

    def _turn_of(self, link: JoinLink, house: House, agents: list[Agent]) -> Callable[[Policy], Policy]:
        turns = self._turns
        if turns is None:
            return lambda policy: policy
        names = (self._names.get(link.fingerprint, ""), self._ids.get(link.fingerprint, ""), link.address)
        turns.enter(
            link.fingerprint,
            lambda: house.rules.share_of(names),
            lambda: bool(agents) and agents[0].held_lease is not None,
        )
        return lambda policy: TurnPolicy(policy, turns, link.fingerprint, lambda run: repr(self._names.get(run, run)))

    def leave(self, reason: str) -> None:
        """All of them, those that are about to begin, too."""
        self._leaves = reason
        for agent in self._agents:
            agent.leave(reason)

    def _told(self, link: JoinLink) -> Reporter:
        if self._turns is None:
            return self._reporter
        return NamedReporter(self._reporter, self._names.get(link.fingerprint, link.address))

    async def _live_line(self, shown: LiveReporter) -> None:
        while True:
            turn = self._turns.turn if self._turns is not None else ""
            control = self._controls.get(turn) or next(iter(self._controls.values()))
            shown.stand(control.sentence())
            await asyncio.sleep(LINE_EVERY_S)


class NamedReporter:
    """A `Reporter` that says of which run it speaks."""

    def __init__(self, shown: Reporter, name: str) -> None:
        self._shown, self._name = shown, name

    def say(self, event: str, text: str, **fields: Field) -> None:
        """With the run's name before it."""
        self._shown.say(event, f"{self._name}: {text}", **{"for_run": self._name, **fields})

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        """One run trains at a time: as it is."""
        self._shown.step(done, total, loss, tokens_per_s)

    def close(self) -> None:
        """Nothing follows."""
        self._shown.close()


def _machine_here(options: WorkerOptions, reporter: Reporter, house: House) -> Machine:
    """For a simulation, whose hooks into training cannot reach another process."""
    import torch

    from worker.machine.probe import probe_machine

    machine = probe_machine(options.device, options.memory_bytes, options.threads or house.rules.cpu.threads or None)
    torch.set_num_threads(machine.threads)
    tell_machine(machine, reporter, house)
    return machine
