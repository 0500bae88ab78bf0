"""A leader, its follower and their witness, three real processes that are killed again and again, and somebody who is
answered meanwhile and keeps book of it.

A reign is the time of one leader. Within it follower, witness and leader die and come back; it ends with the leader's
death, or its machine's standing still (it comes back later and is told nothing), and the follower's promotion. Always:
what was answered is in the journal of whoever leads next; in `async` all but as much as the leader said is behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from barnraise.cli.standby_runs import promoted
from coordinator.edge.operator_client import OperatorClient
from coordinator.edge.standby_desk import standby_link
from coordinator.run.folder import RunFolder
from coordinator.run.seats import read_seat
from coordinator.standby.seat import SeatRole
from coordinator.store.journal import Journal
from protocol.errors import BarnraiseError, ConfigError
from protocol.local_socket import Json

START_S = 120.0
"""For a process to come up on a machine that does other things."""
BETWEEN_S = 0.1
"""Between two announcements."""
GONE = (BarnraiseError, OSError, TimeoutError, EOFError)


@dataclass(slots=True)
class StandbyTally:
    """What became of it."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost_in_async: int = 0
    allowed_in_async: int = 0
    reigns: int = 0
    fenced: int = 0
    """Leaders that stood still, came back, and were told that they lead no more."""
    wall_s: float = 0.0


class Machines:
    """The three processes, the present leader's folder, and who is answered by it."""

    def __init__(self, run: RunFolder, place: Path, draw: random.Random) -> None:
        self.leads, self._place, self._draw = run, place, draw
        self.tally = StandbyTally()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.answered: list[str] = []
        """In this reign, in the order of the answers."""
        self._said = self._folders = 0
        self._witness_link = ""
        self._log = (place / "log").open("ab")

    # ---- processes --------------------------------------------------------------------------------------------------

    def _start(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "barnraise", "coordinator", *arguments]
        self._running[name] = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def _kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """End all of them."""
        for name in list(self._running):
            self._kill(name)
        self._log.close()

    async def start_witness(self) -> None:
        """At the same place each time."""
        folder = self._place / "witness"
        port = self._witness_link.rpartition("/#")[0].rpartition(":")[2] or "0"
        told = self._place / "witness-link"
        with told.open("wb") as out:
            command = [sys.executable, "-m", "barnraise", "coordinator", "witness", str(folder), "--port", port]
            self._running["witness"] = subprocess.Popen(command, stdout=out, stderr=self._log)
        await self._until(lambda: told.read_text().strip() != "", "the witness does not start")
        self._witness_link = told.read_text().split()[0]

    async def start_leader(self) -> None:
        """Serve the run."""
        self._start("leader", "run", str(self.leads.root), "--no-http")
        await self.is_answered("the leader does not start")

    async def follow(self, mode: str) -> None:
        """A new machine follows, and the leader waits for it, or does not."""
        self._folders += 1
        self.follows = self._place / f"machine-{self._folders}"
        self._start("follower", "follow", standby_link(self.leads), str(self.follows))
        await self._standby_is(lambda found: bool(found["attached"]) and not found["behind"])
        await self._order(mode=mode, witness=self._witness_link)
        await self._standby_is(lambda found: found["mode"] == mode)
        self.answered.clear()

    # ---- deaths within a reign --------------------------------------------------------------------------------------

    async def follower_dies(self) -> None:
        """And goes on where it was."""
        self._kill("follower")
        await asyncio.sleep(self._draw.uniform(0.0, 0.5))
        self._start("follower", "follow", "-", str(self.follows))
        await self._standby_is(lambda found: bool(found["attached"]) and not found["behind"])

    async def witness_dies(self) -> None:
        """Nobody is kept waiting by that."""
        self._kill("witness")
        await self.is_answered("answers wait for the witness")
        await self.start_witness()

    async def leader_dies(self) -> None:
        """And is started again on its machine."""
        self._kill("leader")
        self._check_there(self.leads.root, 0, "on the leader's own disk")
        await self.start_leader()
        await self._standby_is(lambda found: bool(found["attached"]) and not found["behind"])

    # ---- the end of a reign -----------------------------------------------------------------------------------------

    async def succession(self, mode: str, *, stands_still: bool) -> None:
        """The leader is gone, or its machine stands still, and the follower leads."""
        found = await self._order()
        behind, so_far = int(found["behind"]), len(self.answered)
        await asyncio.sleep(self._draw.uniform(0.0, 0.3))
        old = self._running["leader"]
        if stands_still:
            os.kill(old.pid, signal.SIGSTOP)
        else:
            self._kill("leader")
        await asyncio.to_thread(promoted, self.follows, confirmed=mode == "async")
        self._running.pop("follower").wait(START_S)
        lost_at_most = 0 if mode == "sync" else behind + len(self.answered) - so_far
        before, self.leads = self.leads, RunFolder.open(self.follows)
        self.tally.lost_in_async += self._check_there(self.leads.root, lost_at_most, f"after a promotion in {mode}")
        self.tally.allowed_in_async += lost_at_most
        if stands_still:
            await self._comes_back(before, old, mode)
        self.tally.reigns += 1
        await self.start_leader()

    async def _comes_back(self, before: RunFolder, old: subprocess.Popen[bytes], mode: str) -> None:
        """Whoever stood still while another was promoted: in `sync` it answers nobody again."""
        count = self.tally.acknowledged
        os.kill(old.pid, signal.SIGCONT)
        if mode == "sync":
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(3.0):
                    await OperatorClient(before).announce("said to one that led")
                    raise AssertionError("a leader that another was promoted over has answered")
            await self._until(lambda: _is_fenced(before.root), "the former leader is not fenced")
            self.tally.fenced += 1
        self._running["leader"] = old
        self._kill("leader")
        assert self.tally.acknowledged == count, "two machines answered at once"

    # ---- whoever is answered ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def somebody_is_answered(self) -> AsyncIterator[None]:
        """Inside, somebody speaks to whoever leads, and notes what was answered."""
        task = asyncio.create_task(self._speak())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _speak(self) -> None:
        while True:
            self._said += 1
            text, to = f"word {self._said}", self.leads
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(5.0):
                    await OperatorClient(to).announce(text)
                if to is self.leads:
                    self.answered.append(text)
                    self.tally.acknowledged += 1
            await asyncio.sleep(BETWEEN_S)

    async def is_answered(self, why_not: str) -> None:
        """Until somebody is answered who asks from now on."""
        count = self.tally.acknowledged
        await self._until(lambda: self.tally.acknowledged > count + 1, why_not)

    def _check_there(self, root: Path, most_lost: int, where: str) -> int:
        there = _words_in(root)
        lost = [text for text in self.answered if text not in there]
        assert len(lost) <= most_lost, f"{len(lost)} answered words are lost {where}: {lost[:5]}"
        return len(lost)

    async def _order(self, **what: str) -> Json:
        order = {"mode": "", "witness": "", **what}
        return await OperatorClient(self.leads).order_standby(order["mode"], order["witness"], confirmed=False)

    async def _standby_is(self, holds: Callable[[Json], bool]) -> None:
        found: Json = {}

        async def look() -> bool:
            nonlocal found
            with contextlib.suppress(*GONE):
                found = await self._order()
                return holds(found)
            return False

        began_s = time.monotonic()
        while not await look():
            assert time.monotonic() - began_s < START_S, f"the standby stays as it is: {json.dumps(found)}"
            await asyncio.sleep(0.05)

    async def _until(self, holds: Callable[[], bool], why_not: str) -> None:
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() - began_s < START_S, why_not
            await asyncio.sleep(0.05)


async def reign_after_reign(run: RunFolder, place: Path, seed: int, seconds: float) -> StandbyTally:
    """Kill for so long, to the end of the reign that is under way then."""
    draw, began_s = random.Random(seed), time.monotonic()
    machines = Machines(run, place, draw)
    deaths: dict[str, Callable[[], Awaitable[None]]] = {
        "follower": machines.follower_dies,
        "witness": machines.witness_dies,
        "leader": machines.leader_dies,
    }
    try:
        async with machines.somebody_is_answered():
            await machines.start_witness()
            await machines.start_leader()
            while time.monotonic() - began_s < seconds:
                mode = "async" if machines.tally.reigns % 3 == 2 else "sync"
                await machines.follow(mode)
                for name in draw.sample([*deaths] * 3, 6):
                    await asyncio.sleep(draw.uniform(0.0, 0.4))
                    machines.tally.kills[f"{name}, {mode}"] += 1
                    await deaths[name]()
                    if time.monotonic() - began_s > seconds:
                        break
                stands_still = mode == "sync" and draw.random() < 0.5
                machines.tally.kills[f"leader {'stopped' if stands_still else 'gone'}, {mode}"] += 1
                await machines.succession(mode, stands_still=stands_still)
    finally:
        machines.close()
    machines.tally.wall_s = time.monotonic() - began_s
    return machines.tally


def _words_in(root: Path) -> set[str]:
    journal = Journal.open(RunFolder.open(root).journal_path, writable=False)
    try:
        records = (json.loads(record) for _, record in journal.read())
        return {str(one["text"]) for one in records if "text" in one}
    finally:
        journal.close()


def _is_fenced(root: Path) -> bool:
    try:
        seat = read_seat(root)
    except ConfigError:
        return False
    return seat is not None and seat.role is SeatRole.FENCED
