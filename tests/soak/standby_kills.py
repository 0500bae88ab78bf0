"""A leader, its follower and their witness, real processes that are killed again and again at every kind of place, and
cut off from one another; and somebody who is answered meanwhile and keeps book of it (`standby_book.py`).

A reign is the time of one leader. Within it each of the three dies, at a place or at any moment, and comes back, and
lines are cut, one way or both, and heal. It ends with the leader's death, its machine's standing still, its being cut
off, or nothing at all but an order, and with the follower's promotion, in which follower and witness may die, too.
Whoever led comes back, and has to hear that it leads no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from coordinator.run.folder import RunFolder
from protocol import local_socket
from protocol.local_socket import Json
from tests.soak.dooms import Doom
from tests.soak.history import Tally, check
from tests.soak.relays import BOTH, Relay, Way
from tests.soak.standby_book import StandbyTally, is_fenced
from tests.soak.standby_dooms import BEGINNINGS, all_standby_dooms
from tests.soak.standby_machines import GONE, NEVER, Machine, Machines
from tests.soak.standby_plan import AT_A_START, Plan

LIMIT_S = 8.0
"""A doom whose place is not reached within this is carried out from outside, at whatever moment it is then."""
DEATHS_A_REIGN = 9
CUTS_A_REIGN = 2
VOLUNTEERS = 3
CUTS = (*BOTH, "both ways")
SYNC_ENDS = ("gone", "stands still", "cut off", "cut off from its follower", "deposed", "dies at a place")
ASYNC_ENDS = ("gone", "cut off, then gone", "dies at a place")
FIRST_SYNC, EVERY_ASYNC = 2, 3
"""Of this many reigns one is in `async`."""


class Reigns:
    """One leader after another."""

    def __init__(self, machines: Machines, draw: random.Random) -> None:
        self.machines, self.draw, self.plan = machines, draw, Plan(draw)
        self.tally, self.book = machines.tally, machines.book
        self.mode = "sync"
        self.told: Callable[[str], None] = lambda _: None
        self._extra = 1000

    # ---- deaths within a reign --------------------------------------------------------------------------------------

    async def dies(self, who: str, doom: Doom) -> None:
        """At that place, or from outside where it does not come there; and everybody is there again."""
        machines = self.machines
        if who == "leader" and (doom.kind or doom.moment) in AT_A_START:
            await self.killed("leader")
            await machines.start_leader(machines.leads, doom)
        elif who == "follower" and doom.moment in BEGINNINGS:
            await self._anew(doom)
        else:
            machines.running[who].arm(doom)
        running = machines.running[who]
        tempting = asyncio.create_task(self._tempt(who, doom))
        began_s = time.monotonic()
        planned = await self._dead_within(LIMIT_S, lambda: not running.alive)
        self.told(f"{self.mode}: {who}: {doom}, {'there' if planned else 'missed'} {time.monotonic() - began_s:.1f} s")
        tempting.cancel()
        with contextlib.suppress(asyncio.CancelledError, *GONE):
            await tempting
        self._count(who, doom, planned=planned)
        if who in machines.running and machines.running[who] is running:
            await machines.ended(who)
        await machines.settle(self.mode)
        self.told(f"  again {time.monotonic() - began_s:.1f} s")

    async def killed(self, who: str) -> None:
        """At any moment."""
        self.tally.from_outside[who] += 1
        await self.machines.ended(who)

    def _count(self, who: str, doom: Doom, *, planned: bool) -> None:
        if planned:
            self.tally.at_place[f"{who}: {doom}"] += 1
            self.plan.unmet.discard(f"{who}: {doom}")
        else:
            self.tally.from_outside[who] += 1

    async def _dead_within(self, limit_s: float, dead: Callable[[], bool]) -> bool:
        deadline_s = time.monotonic() + limit_s
        while not dead() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        return dead()

    async def _tempt(self, who: str, doom: Doom) -> None:
        """Do what brings it to its place, where that does not come by itself."""
        machines, moment = self.machines, doom.moment
        if who != "follower" and moment.startswith(("seat ", "granted")):
            while True:
                await machines.turn("async")
                await machines.turn("sync")
        if moment == "base taken":
            await self._anew(NEVER)
        if moment == "follower attaching":
            while True:
                await self.killed("follower")
                machines.start_follower()
                await asyncio.sleep(3.0)
        while doom.kind in {"WorkerEnrolled", "WorkerSilent", "Ticked"}:
            self._extra += 1
            await machines.extra_volunteer(self._extra, 1.5)
        if doom.kind == "CapabilityChanged":
            machines._lives += 1
            machines.leads.lives.number = machines._lives

    async def _anew(self, doom: Doom) -> None:
        """A new machine follows in the old one's place."""
        await self.machines.turn("async")
        await self.killed("follower")
        await self.machines.new_follower(doom)

    # ---- cut lines --------------------------------------------------------------------------------------------------

    async def line_is_cut(self) -> None:
        """One line, for a while; perhaps somebody dies meanwhile."""
        machines, leads = self.machines, self.machines.leads
        assert machines.follows is not None
        lines: dict[str, Relay] = {
            "follower and leader": leads.followers, "leader and witness": leads.to_witness,
            "follower and witness": machines.follows.to_witness, "volunteers and leader": leads.workers,
        }  # fmt: skip
        between, way = self.draw.choice([*lines, "follower and leader"]), self.draw.choice(CUTS)
        relay, seconds = lines[between], self.draw.choice((0.5, 1.0, 2.0, 5.0))
        dies = self.draw.choice(("leader", "follower", "witness")) if self.draw.random() < 0.4 else ""
        self.tally.cuts[f"{between}, {way}{', and a death' if dies else ''}"] += 1
        since_s = time.monotonic()
        relay.cut(*(BOTH if way == "both ways" else (Way(way),)))
        waits = self.mode == "sync" and between == "follower and leader"
        if waits:
            self.book.silence(leads.name)
        await asyncio.sleep(seconds / 2)
        if dies:
            await self.killed(dies)
            await machines.up()
        elif between == "follower and witness" and self.mode == "sync" and way != Way.BACK:
            await self._is_not_promoted()
        await asyncio.sleep(seconds / 2)
        if not waits and not dies and seconds > 1.0:
            assert self.book.answers_after(since_s) > 0, f"nobody was answered while {between} were cut off"
        if waits:
            self.book.silence_ends(leads.name)
        relay.heal()
        await machines.settle(self.mode)

    async def _is_not_promoted(self) -> None:
        """A follower that the witness is not there for."""
        assert self.machines.follows is not None
        with contextlib.suppress(*GONE):
            await _told_to_lead(self.machines.follows.root, confirmed=False)
            raise AssertionError("promoted without its witness")

    # ---- the end of a reign -----------------------------------------------------------------------------------------

    async def succession(self, how: str) -> None:
        """The leader is no more, or thinks that it is; the follower leads."""
        machines = self.machines
        old, new = machines.leads, machines.follows
        assert old.history is not None
        assert new is not None
        self.tally.successions[f"{self.mode}: {how}"] += 1
        if how == "cut off, then gone":
            old.followers.cut(*BOTH)
            await asyncio.sleep(self.draw.uniform(0.3, 2.0))
        old.history.read()
        before = old.history.count
        behind = int((await machines.standby()).get("behind", 0))
        alive = await self._leader_ends(how)
        await self._promote(new)
        running = machines.running.pop("leader", None)
        if running is not None:
            machines.running["former"] = running
        if self.mode == "sync":
            self.book.silence(old.name)
        await self._takes_over(old, new, behind, before, alive=alive)
        if how in {"cut off", "cut off from its follower"}:
            await asyncio.sleep(self.draw.uniform(0.0, 2.0))
            old.heal()
        await self._former_hears_of_it(old, alive=alive, stands_still=how == "stands still")

    async def _leader_ends(self, how: str) -> bool:
        """Whether its process is still there."""
        machines, old = self.machines, self.machines.leads
        match how:
            case "gone" | "cut off, then gone":
                await asyncio.sleep(self.draw.uniform(0.0, 0.3))
                await self.killed("leader")
                old.heal()
                return False
            case "dies at a place":
                doom = self.draw.choice(all_standby_dooms()["leader"][:40])
                running = machines.running["leader"]
                running.arm(doom)
                self._count("leader", doom, planned=await self._dead_within(3.0, lambda: not running.alive))
                await machines.ended("leader")
                return False
            case "stands still":
                machines.running["leader"].signal(signal.SIGSTOP)
            case "cut off":
                old.isolate(*BOTH)
                self.book.silence(old.name)
            case "cut off from its follower":
                old.followers.cut(self.draw.choice(BOTH))
                self.book.silence(old.name)
        return True

    async def _promote(self, new: Machine) -> None:
        """Until its seat says that it leads, whoever dies or is cut off meanwhile."""
        machines, confirmed = self.machines, self.mode == "async"
        who, doom = "", NEVER
        draw = self.draw.random()
        if draw < 0.7:
            who, doom = self.plan.next("promotion")
            machines.running[who].arm(doom)
        elif draw < 0.85 and not confirmed:
            new.to_witness.cut(self.draw.choice(BOTH))
            self.tally.cuts["follower and witness, in a promotion"] += 1
        began_s = time.monotonic()
        while not machines.follower_leads:
            with contextlib.suppress(*GONE):
                await _told_to_lead(new.root, confirmed=confirmed)
            new.to_witness.heal()
            await asyncio.sleep(0.05)
            who = await self._revived(who, doom)
            assert time.monotonic() - began_s < 120.0, "the follower cannot be promoted"
        who = await self._revived(who, doom)
        if who:
            machines.running[who].arm(NEVER)
        running = machines.running.pop("follower", None)
        if running is not None:
            await asyncio.to_thread(running.process.join, 60.0)
            if running.alive:
                running.signal(signal.SIGUSR1)
                await asyncio.sleep(1.0)
            died = running.process.exitcode == -signal.SIGKILL
            assert died or running.process.exitcode == 0, f"the follower ended with {running.process.exitcode}"
            if died and who == "follower":
                self._count(who, doom, planned=True)

    async def _revived(self, who: str, doom: Doom) -> str:
        """Start again who died in a promotion; who is still to."""
        machines = self.machines
        for name in ("follower", "witness"):
            if name not in machines.running or machines.running[name].alive:
                continue
            if machines.running[name].process.exitcode == 0:
                continue
            assert who == name
            self._count(who, doom, planned=True)
            await machines.ended(name)
            who = ""
            if name == "witness":
                await machines.start_witness()
            elif not machines.follower_leads:
                machines.start_follower()
        return who

    async def _takes_over(self, old: Machine, new: Machine, behind: int, before: int, *, alive: bool) -> None:
        machines = self.machines
        assert old.history is not None
        history = old.history.as_far_as(RunFolder.open(new.root), machines.place / f"ledger-{new.name}.jsonl")
        most = 0
        if self.mode == "async":
            old.history.read()
            most = behind + old.history.count - before
            lost = old.history.count - history.count
            assert lost <= most, f"{lost} records are lost, and {most} might be"
            self.tally.records_lost_async += lost
            self.tally.records_allowed_async += most
        self.book.check(history, most, f"after a promotion in {self.mode}")
        new.history, machines.leads, machines.follows = history, new, None
        new.run.endpoint_path.unlink(
            missing_ok=True
        )  # another port: this is one machine, and lines to the old one stay
        machines.former = old if alive else None
        for courier in self.book.couriers:
            if not alive or courier.number % 2 == 0:
                courier.go_to(new.lives)
        await machines.start_leader(new)
        await machines.is_answered("whoever was promoted answers nobody")

    async def _former_hears_of_it(self, old: Machine, *, alive: bool, stands_still: bool) -> None:
        """A leader that another was promoted over: it may be asked, and answers nobody again."""
        machines = self.machines
        if stands_still:
            machines.running["former"].signal(signal.SIGCONT)
        if not alive and self.draw.random() < 0.6:
            self.book.silence(old.name)
            await machines.start_leader(old, name="former")
            machines.former, alive = old, True
        if alive:
            await machines.until(is_fenced(old.root), "the former leader is not fenced")
            self.tally.fenced += 1
            await asyncio.sleep(0.2)
            await machines.running.pop("former").kill()
        old.lives.up.clear()
        machines.former = None
        for courier in self.book.couriers:
            courier.go_to(machines.leads.lives)
        await old.close()
        if old.root != machines.first_run.root:
            shutil.rmtree(old.root, ignore_errors=True)

    # ---- one reign --------------------------------------------------------------------------------------------------

    async def reign(self, number: int, enough: Callable[[], bool]) -> None:
        """From a new follower to its promotion."""
        machines = self.machines
        self.mode = "async" if number % EVERY_ASYNC == FIRST_SYNC else "sync"
        await machines.new_follower()
        await machines.settle(self.mode)
        happen: list[Callable[[], Awaitable[None]]] = [self._planned] * (DEATHS_A_REIGN - 2)
        happen += [self._anybody] * 2 + [self.line_is_cut] * CUTS_A_REIGN
        self.draw.shuffle(happen)
        for one in happen:
            await one()
            if enough():
                break
        await self.succession(self.draw.choice(SYNC_ENDS if self.mode == "sync" else ASYNC_ENDS))

    async def _planned(self) -> None:
        who, doom = self.plan.next("reign")
        if who != "witness" and not doom.moment.startswith(("seat", "witness", "base")) and self.draw.random() < 0.4:
            await self.killed("witness")  # nobody is kept waiting by that
        await self.dies(who, doom)

    async def _anybody(self) -> None:
        """One, or several at once."""
        await asyncio.sleep(self.draw.uniform(0.0, 0.5))
        for who in self.draw.sample(("leader", "follower", "witness"), self.draw.choice((1, 2, 3))):
            await self.killed(who)
        await self.machines.settle(self.mode)


async def _told_to_lead(root: Path, *, confirmed: bool) -> None:
    """As `coordinator promote` tells it to a follower that runs."""
    request: Json = {"verb": "promote", "confirmed": confirmed}
    await local_socket.ask(root / "control" / "follower.sock", request)


async def reign_after_reign(
    run: RunFolder,
    place: Path,
    *,
    seed: int,
    kills: int,
    most_s: float = math.inf,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[StandbyTally, Tally, set[str]]:
    """Until there were so many kills and every kind of place was met, or for `most_s`; the last is the places that were
    not."""
    began_s = time.monotonic()
    machines = Machines(run, place)
    reigns, tally = Reigns(machines, random.Random(seed)), machines.tally
    reigns.told = told

    def enough() -> bool:
        if time.monotonic() - began_s > most_s:
            return True
        return tally.kills >= kills and (not reigns.plan.unmet or tally.kills >= 1.5 * kills)

    try:
        await machines.begin(VOLUNTEERS)
        number = 0
        while not enough():
            await reigns.reign(number, enough)
            number += 1
            left = len(reigns.plan.unmet)
            told(f"{time.monotonic() - began_s:.0f} s: {tally.kills} kills, {number} reigns, {left} places not met yet")
        for task in machines.tasks:
            task.cancel()
        await asyncio.gather(*machines.tasks, return_exceptions=True)
        await machines.ended("leader")
    finally:
        await machines.close()
    assert machines.leads.history is not None
    history = check(machines.leads.run, machines.leads.history.first, machines.leads.history.ledger, machines.book.told)
    tally.wall_s = time.monotonic() - began_s
    return tally, history, reigns.plan.unmet
