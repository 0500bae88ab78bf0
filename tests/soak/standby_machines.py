"""The processes of a run with a standby, the lines between them, and how each is started, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from coordinator.edge.operator_client import OperatorClient
from coordinator.edge.standby_desk import standby_link
from coordinator.run.folder import RunFolder
from coordinator.run.seats import FOLLOW_SCHEME, link_text, parse_link
from coordinator.standby.seat import SeatRole
from coordinator.store.journal import Journal
from protocol.errors import BarnraiseError
from protocol.local_socket import Json
from simulator.processes.launcher import ProcessGroup
from tests.soak.coordinator_kills import _link, complete_ledger
from tests.soak.dooms import Doom
from tests.soak.relays import Relay, Way
from tests.soak.standby_book import Book, Courier, History, NamedLives, StandbyTally, seat_of
from tests.soak.standby_dooms import PRELOAD, Part, part_played

START_S = 120.0
"""For anything to come about on a machine that does other things."""
GONE = (BarnraiseError, OSError, TimeoutError, EOFError)
NEVER = Doom(moment="never")
IN_STEP = 20
"""Records: a leader that does not wait is always some ahead."""
BETWEEN_S = 0.1
"""Between two announcements."""


class Machine:
    """One folder that leads or follows, and the lines to it and from it."""

    def __init__(self, name: str, root: Path, history: History | None) -> None:
        self.name, self.root, self.history = name, root, history
        self.lives = NamedLives(name=name)
        self.link = ""
        self.followers, self.workers, self.to_witness = Relay(), Relay(), Relay()
        """To its port, as a follower and the volunteers reach it; and from it to the witness."""

    @property
    def run(self) -> RunFolder:
        """Its folder, as a run's."""
        return RunFolder.open(self.root)

    async def start(self, witness_port: int) -> None:
        """The lines."""
        for relay in (self.followers, self.workers, self.to_witness):
            await relay.start()
        self.lives.port, self.to_witness.target = self.workers.port, witness_port

    async def close(self) -> None:
        """No line any more."""
        for relay in (self.followers, self.workers, self.to_witness):
            relay.heal()
            await relay.close()

    def isolate(self, *ways: Way) -> None:
        """From the follower and the witness, not from the volunteers."""
        self.followers.cut(*ways)
        self.to_witness.cut(*ways)

    def heal(self) -> None:
        """Of everything."""
        for relay in (self.followers, self.workers, self.to_witness):
            relay.heal()


class Running:
    """One process, alive or dead."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe

    def arm(self, doom: Doom) -> None:
        """Let it die there."""
        with contextlib.suppress(OSError):
            self.pipe.send(doom)

    @property
    def alive(self) -> bool:
        """Still."""
        return self.process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send it."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        """From outside, if it lives."""
        self.process.kill()
        await asyncio.to_thread(self.process.join)
        self.pipe.close()


class Machines:
    """A leader, its follower, their witness, and whoever speaks to them."""

    def __init__(self, run: RunFolder, place: Path) -> None:
        self.place, self.first_run = place, run
        self.tally = StandbyTally()
        self.book = Book(self.tally)
        self.group = ProcessGroup(preload=PRELOAD)
        self.running: dict[str, Running] = {}
        self.follows: Machine | None = None
        self.former: Machine | None = None
        """That led before, and whose process may still be there."""
        self._machines = self._said = self._lives = 0
        self.witness_port = 0
        self.witness_link = ""
        ledger = place / "ledger-0.jsonl"
        ledger.touch()
        journal = Journal.open(run.journal_path)
        ((_, first),) = journal.read()
        journal.close()
        self.leads = Machine("machine-0", run.root, History(first, ledger))
        self.tasks: list[asyncio.Task[None]] = []

    # ---- processes --------------------------------------------------------------------------------------------------

    def _start(self, name: str, part: Part) -> Running:
        ours, theirs = self.group.pipe()
        process = self.group.start(name, self.place / f"{name}.log", part_played, part, theirs)
        theirs.close()
        self.running[name] = Running(process, ours)
        return self.running[name]

    async def start_witness(self, doom: Doom = NEVER) -> None:
        """At the same place each time."""
        folder, log = self.place / "witness-folder", self.place / "witness.log"
        log.touch()
        told = log.stat().st_size
        part = Part(role="witness", folder=folder, ledger=self.place / "none", doom=doom, port=self.witness_port)
        self._start("witness", part)

        def link() -> list[str]:
            said = log.read_bytes()[told:].decode().splitlines()
            return [line for line in said if line.startswith("barnraise-witness://")]

        await self.until(lambda: bool(link()), "the witness does not start")
        self.witness_link = link()[0]
        self.witness_port = int(self.witness_link.rpartition("/#")[0].rpartition(":")[2])

    async def start_leader(self, machine: Machine, doom: Doom = NEVER, *, name: str = "leader") -> None:
        """Serve the run that is in this machine's folder."""
        assert machine.history is not None
        started = self._start(
            name,
            Part(
                role="leader", folder=machine.root, ledger=machine.history.ledger, doom=doom,
                witness=(self.witness_port, machine.to_witness.port),
            ),
        )  # fmt: skip
        began_s = time.monotonic()
        while not started.pipe.poll() and started.alive:
            assert time.monotonic() - began_s < START_S, "the leader does not start"
            await asyncio.sleep(0.01)
        with contextlib.suppress(EOFError, OSError):
            port = int(started.pipe.recv())
            machine.followers.target = machine.workers.target = port
            self._lives += 1
            machine.lives.number = self._lives
            machine.lives.up.set()

    def start_follower(self, doom: Doom = NEVER) -> None:
        """Follow, in the present follower's folder."""
        machine = self.follows
        assert machine is not None
        self._start(
            "follower",
            Part(
                role="follower", folder=machine.root, ledger=self.place / "none", doom=doom, link=machine.link,
                witness=(self.witness_port, machine.to_witness.port),
            ),
        )  # fmt: skip

    async def new_follower(self, doom: Doom = NEVER) -> None:
        """An empty machine takes the follower's place."""
        before = self.follows
        self._machines += 1
        name = f"machine-{self._machines}"
        machine = Machine(name, self.place / name, None)
        await machine.start(self.witness_port)
        link = dataclasses.replace(
            parse_link(standby_link(self.leads.run), FOLLOW_SCHEME), host="127.0.0.1", port=self.leads.followers.port
        )
        machine.link = link_text(link, FOLLOW_SCHEME)
        self.follows = machine
        self.start_follower(doom)
        if before is not None:
            await before.close()
            shutil.rmtree(before.root, ignore_errors=True)

    async def ended(self, name: str) -> None:
        """See to a process that is dead, or kill it; and to what a leader had answered: it is on its own disk."""
        running = self.running.pop(name)
        if name == "leader":
            self.leads.lives.up.clear()
        await running.kill()
        code = running.process.exitcode
        assert code == -signal.SIGKILL, f"{name} ended with {code}: see {self.place}/{name}.log"
        if name == "leader":
            assert self.leads.history is not None
            complete_ledger(self.leads.run, self.leads.history.ledger)
            self.book.check(self.leads.history, 0, "on the leader's own disk")

    async def up(self) -> None:
        """Start again whoever is dead."""
        for name in ("witness", "leader", "follower"):
            if name in self.running and not self.running[name].alive:
                await self.ended(name)
            if name in self.running:
                continue
            match name:
                case "witness":
                    await self.start_witness()
                case "leader":
                    await self.start_leader(self.leads)
                case "follower" if self.follows is not None and not self.follower_leads:
                    self.start_follower()

    @property
    def follower_leads(self) -> bool:
        """Whether its seat says so."""
        assert self.follows is not None
        seat = seat_of(self.follows.root)
        return seat is not None and seat.role is SeatRole.LEADS

    async def settle(self, mode: str) -> None:
        """Until everybody is there, in step, and in this mode."""
        began_s, found = time.monotonic(), Json()
        while True:
            await self.up()
            found = await self.standby()
            if found.get("attached") and found["mode"] == mode and found["behind"] <= IN_STEP:
                return
            if found.get("attached") and found["mode"] != mode:
                await self.standby(mode=mode)
            assert time.monotonic() - began_s < START_S, f"the standby stays as it is: {json.dumps(found)}"
            await asyncio.sleep(0.05)

    async def turn(self, mode: str) -> None:
        """The same, starting nobody."""
        while (found := await self.standby()).get("mode") != mode:
            if found.get("attached"):
                await self.standby(mode=mode)
            await asyncio.sleep(0.05)

    async def standby(self, **what: str) -> Json:
        """How it is, after this order; empty where nobody answers."""
        order = {"mode": "", "witness": "", **what}
        with contextlib.suppress(*GONE):
            async with asyncio.timeout(5.0):
                client = OperatorClient(self.leads.run)
                return await client.order_standby(order["mode"], order["witness"], confirmed=False)
        return {}

    async def until(self, holds: Callable[[], bool], why_not: str) -> None:
        """Wait for it."""
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() - began_s < START_S, why_not
            await asyncio.sleep(0.02)

    # ---- whoever is answered ----------------------------------------------------------------------------------------

    async def begin(self, volunteers: int) -> None:
        """Everybody is there, but a follower."""
        await self.start_witness()
        await self.leads.start(self.witness_port)
        await self.start_leader(self.leads)
        await self.standby(witness=self.witness_link)
        for number in range(volunteers):
            courier = Courier(self.first_run, _link(self.first_run), self.leads.lives, number, self.book)
            self.tasks.append(asyncio.create_task(courier.run()))
        self.tasks += [asyncio.create_task(self._speak(lambda: self.leads)),
                       asyncio.create_task(self._speak(lambda: self.former))]  # fmt: skip

    async def _speak(self, to: Callable[[], Machine | None]) -> None:
        while True:
            await asyncio.sleep(BETWEEN_S)
            machine = to()
            if machine is None:
                continue
            self._said += 1
            text, began_s = f"word {self._said}", time.monotonic()
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(4.0):
                    await OperatorClient(machine.run).announce(text)
                seat = seat_of(machine.root)
                self.book.word(text, machine.name, 0 if seat is None else seat.epoch, began_s)

    async def extra_volunteer(self, number: int, seconds: float) -> None:
        """Somebody who enrols, and is not seen again after a while."""
        link = await asyncio.to_thread(_link, self.leads.run)
        courier = Courier(self.first_run, link, self.leads.lives, number, self.book)
        task = asyncio.create_task(courier.run())
        try:
            await asyncio.sleep(seconds)
        finally:
            task.cancel()

    async def is_answered(self, why_not: str) -> None:
        """Until somebody is answered who asks from now on."""
        since_s = time.monotonic()
        await self.until(lambda: self.book.answers_after(since_s) > 0, why_not)

    async def close(self) -> None:
        """End all of it."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for running in self.running.values():
            await running.kill()
        self.group.stop(grace_s=0.0)
        for machine in (self.leads, self.follows, self.former):
            if machine is not None:
                await machine.close()
