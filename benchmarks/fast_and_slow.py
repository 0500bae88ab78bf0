"""Who owns a round and who holds it up: fast liars, fast honest machines, and workers that only pretend to work.

Run with `python -m benchmarks.fast_and_slow [--quick] [--json FILE]`. The real engine in virtual time; nothing is
trained. Sixteen workers whose leases take 70 s or so, with some of them twenty times faster (liars that claim a low
speed, or honest GPUs), twenty times slower, or `idle`: these send heartbeats, ask for work, and never deliver (or for
two leases out of three). With and without 30 % dropout: a lease in so many is lost to silence. Workers hold every
column (`whole`), or 3 of 16 (`3 replicas`). Screening accepts everything: what is asked is who is waited for.

Columns: of the leases that the other workers trained to the end, the share that counted in its own round, and that
counted at all; the length of the median and of the longest round, and the mean one's over that of a swarm of equal
machines with the same dropout; and the sequences that counted in a minute.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median

from benchmarks.report import Cell, parse_args, print_rows, write_json
from coordinator.engine.commands import AggregateRound, Command, GrantLease, MeasureSubmission, SlowCommand
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    Event,
    LeaseRequested,
    RunCreated,
    SubmissionUploaded,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.version import ENGINE_VERSION
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, RunId, WorkerId, digest_of
from simulator.virtual.canned import canned_commit, canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

WORKERS, COLUMNS = 16, 16
STEP_S, STEPS = 2.0, 30
FETCH_S, UPLOAD_S = 4.0, 4.0
HEARTBEAT_S = 10.0
DROPOUT = 0.3
SECRET = b"a benchmark's secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """What the odd ones among the sixteen do."""

    name: str
    odd: int = 0
    speed: float = 1.0
    """Of the odd ones, in times the others'."""
    claimed: float = 1.0
    """The speed that their probes claim, in times the others'."""
    delivers: int = 1
    """Every so many leases one is delivered; 0: never."""


HABITS = (
    Habit(name="all equal"),
    Habit(name="2 fast liars", odd=2, speed=20.0, claimed=0.01),
    Habit(name="4 fast liars", odd=4, speed=20.0, claimed=0.01),
    Habit(name="2 GPUs among CPUs", odd=2, speed=20.0, claimed=20.0),
    Habit(name="4 GPUs among CPUs", odd=4, speed=20.0, claimed=20.0),
    Habit(name="4 idle", odd=4, delivers=0),
    Habit(name="4 idle, 1 lease in 3 delivered", odd=4, delivers=3),
    Habit(name="8 GPUs, 8 CPUs", odd=8, speed=20.0, claimed=20.0),
    Habit(name="4 slow among GPUs", odd=4, speed=0.05, claimed=0.05),
)


@dataclass(slots=True, kw_only=True)
class SwarmMember:
    """One worker and what it does now."""

    worker: WorkerId
    step_s: float
    is_odd: bool
    delivers: int = 1
    present: bool = True
    granted: int = 0
    holds: LeaseId | None = None


@dataclass(slots=True)
class Tale:
    """What came of the leases."""

    worked_on: set[LeaseId] = field(default_factory=set)
    """By the workers that are not odd, to the end."""
    counted: dict[LeaseId, int] = field(default_factory=dict)
    """In which round."""
    sequences: int = 0


class FastSlowLoop(EngineLoop):
    """The engine and its sixteen, in virtual time."""

    def __init__(self, config: EngineConfig, habit: Habit, held: int, dropout: float, seed: int) -> None:
        self._draw, self._dropout = random.Random(seed), dropout
        self.tale = Tale()
        created = RunCreated(at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"v0"))
        engine, commands = Engine.create(created, SECRET)
        super().__init__(engine, Agenda())
        engine.due(0.0)
        for command in commands:
            self.carry_out(command)
        self._members: dict[WorkerId, SwarmMember] = {}
        for number in self._draw.sample(range(WORKERS), WORKERS):
            self._join(number, habit, held)

    def _join(self, number: int, habit: Habit, held: int) -> None:
        is_odd, worker = number < habit.odd, WorkerId(f"{number:064x}")
        usual_s = STEP_S * self._draw.uniform(0.9, 1.1)
        speed, claimed = (habit.speed, habit.claimed) if is_odd else (1.0, 1.0)
        delivers = habit.delivers if is_odd else 1
        self._members[worker] = SwarmMember(worker=worker, step_s=usual_s / speed, is_odd=is_odd, delivers=delivers)
        enrolled = WorkerEnrolled(
            at_s=0.0, worker=worker, name="", trusted=False, max_columns=held, tokens_per_s=1000.0 * claimed / usual_s
        )
        self.apply(enrolled)
        self._ask(self._members[worker])
        self.agenda.after(self._draw.uniform(0.0, HEARTBEAT_S), lambda: self._beat(self._members[worker]))

    @property
    def is_over(self) -> bool:
        """Whether the last round is closed."""
        return self.engine.state.round.round > self.engine.state.config.max_rounds - 1

    def handle(self, event: Event) -> list[Command]:
        """A worker that speaks of a lease which is long forgotten is told so, and that is all."""
        try:
            return super().handle(event)
        except IllegalEvent:
            return []

    def carry_out(self, command: Command) -> None:
        """A lease is worked on; slow work takes a tenth of a second."""
        if isinstance(command, AggregateRound):
            for one in command.contributions:
                self.tale.counted[one.lease_id] = command.round
                self.tale.sequences += one.sequences
        if isinstance(command, GrantLease):
            self._work_on(self._members[command.lease.worker], command.lease)
        elif isinstance(command, SlowCommand):
            steps = command.lease.inner_steps if isinstance(command, MeasureSubmission) else 0
            result = canned_result(command, self.now_s + 0.1, norm_l2=lambda: 1.0 * steps, gain=lambda: 0.01 * steps)
            self.agenda.plan(result)

    def _work_on(self, member: SwarmMember, lease: GrantedLease) -> None:
        if member.holds == lease.lease_id:
            return  # granted again: it goes on
        member.holds, member.granted = lease.lease_id, member.granted + 1
        train_s = lease.inner_steps * member.step_s * self._draw.uniform(0.95, 1.05)
        if member.is_odd and (not member.delivers or member.granted % member.delivers):
            return
        if self._draw.random() < self._dropout:
            self.agenda.after(self._draw.uniform(0.0, train_s), lambda: self._vanish(member, train_s))
            return
        if not member.is_odd:
            self.tale.worked_on.add(lease.lease_id)
        self.agenda.after(FETCH_S + train_s, lambda: self._commit(member, lease, train_s))

    def _vanish(self, member: SwarmMember, away_s: float) -> None:
        def back() -> None:
            member.present, member.holds = True, None
            self._ask(member)

        member.present = False
        self.agenda.after(HEARTBEAT_S * 4 + away_s, back)

    def _commit(self, member: SwarmMember, lease: GrantedLease, train_s: float) -> None:
        if self.engine.lease_ended(member.worker, lease.lease_id) is not None:
            self._ask(member)
            return
        committed = canned_commit(lease, self.now_s, train_s, payload_bytes=1_000_000)
        digest = committed.digest

        def uploaded() -> None:
            event = SubmissionUploaded(at_s=self.now_s, worker=member.worker, lease_id=lease.lease_id, digest=digest)
            self.apply(event)
            self.agenda.after(0.5, lambda: self._ask(member))

        self.apply(committed)
        self.agenda.after(UPLOAD_S * self._draw.uniform(0.9, 1.1), uploaded)

    def _ask(self, member: SwarmMember) -> None:
        self.apply(LeaseRequested(at_s=self.now_s, worker=member.worker))

    def _beat(self, member: SwarmMember) -> None:
        """It is there, or says so; who delivers nothing asks for the next as soon as there is one."""
        self.agenda.after(HEARTBEAT_S, lambda: self._beat(member))
        if not member.present:
            return
        self.apply(WorkerSeen(at_s=self.now_s, worker=member.worker))
        held = None if member.holds is None else self.engine.state.leases.get(member.holds)
        idles = member.is_odd and member.delivers != 1
        if idles and held is not None and held.status is LeaseStatus.GRANTED:
            if held.lease.round < self.engine.state.round.round:
                self._ask(member)
        elif idles and self.engine.state.workers[member.worker].waiting_since_s is None:
            self._ask(member)


def config_of(rounds: int, held: int) -> EngineConfig:
    """The defaults, but for the swarm's size and nothing that costs time without being asked about."""
    return EngineConfig(
        run_id=RunId("fast-and-slow"),
        columns=COLUMNS,
        train_sequences=10**9,
        max_rounds=rounds + 1,
        replicas=WORKERS * held // COLUMNS,
        min_workers=WORKERS,
        gather_s=0.0,
        heartbeat_interval_s=HEARTBEAT_S,
        checkpoint_every=0,
        validate_every=0,
        inner=InnerRecipe(inner_steps=STEPS, batch_sequences=16),
    )


def figures_of(habit: Habit, held: int, dropout: float, rounds: int, seed: int) -> dict[str, float]:
    """One run's figures."""
    loop = FastSlowLoop(config_of(rounds, held), habit, held, dropout, seed)
    while not loop.is_over:
        loop.advance()
    state, tale = loop.engine.state, loop.tale
    lengths = [closed.closed_at_s - closed.opened_at_s for closed in state.history]
    # what is still on its way into a round that nobody sees the end of is left out
    judged = [lease_id for lease_id in tale.worked_on if _round_of(lease_id) < rounds - 1]
    return {
        "in_its_round": fmean(tale.counted.get(lease_id) == _round_of(lease_id) for lease_id in judged),
        "counted": fmean(lease_id in tale.counted for lease_id in judged),
        "round_s": median(lengths),
        "longest_s": max(lengths),
        "mean_s": fmean(lengths),
        "sequences_a_minute": 60.0 * tale.sequences / sum(lengths),
    }


def _round_of(lease_id: LeaseId) -> int:
    return int(lease_id[1:].split(".")[0])


def rows_of(rounds: int, seeds: int, show: Callable[[str], None] = lambda _: None) -> list[dict[str, Cell]]:
    """Means over seeds; of `longest_s` the greatest."""
    rows: list[dict[str, Cell]] = []
    for held, shape in ((0, "whole"), (3, "3 replicas")):
        for dropout in (0.0, DROPOUT):
            equal_s = 0.0
            for habit in HABITS:
                found = [figures_of(habit, held or COLUMNS, dropout, rounds, seed) for seed in range(seeds)]
                means = {name: fmean(one[name] for one in found) for name in found[0]}
                means["longest_s"] = max(one["longest_s"] for one in found)
                equal_s = equal_s or means["mean_s"]
                means["over_equal"] = means.pop("mean_s") / equal_s
                rows.append({"workers": habit.name, "hold": shape, "dropout": dropout, **means})
                show(f"{habit.name}, {shape}, {dropout:.0%} dropout")
    return rows


def main() -> None:
    """Play and print."""
    args = parse_args(__doc__ or "")
    rows = rows_of(*((8, 1) if args.quick else (30, 3)))
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
