"""The swarm's workers: started, found dead, brought back.

Decides when a worker that vanished returns, and how often one that broke is started again. Which worker vanishes when
is the schedule's (churn.py); its own process carries it out, at the very step (vanishing.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from signal import SIGKILL

from simulator.adversaries.files import attack_named
from simulator.processes.children import WorkerSpec, worker_process
from simulator.processes.churn import byzantine_workers, churn_schedule, dropouts_of
from simulator.processes.launcher import ProcessGroup
from simulator.processes.live import Display
from simulator.processes.observer import Glance, Observation
from simulator.processes.options import SimulationOptions
from simulator.processes.vanishing import Vanishing, read_vanishing
from simulator.seeds import derived_seed

MOST_BREAKDOWNS = 3
"""Starts again of a worker that ended by itself though nobody killed it: more of them hide a bug."""
SHORTEST_AWAY_S, LONGEST_AWAY_S = 0.5, 30.0


@dataclass(slots=True, kw_only=True)
class CrewMember:
    """One worker's place in the swarm, through all its processes."""

    spec: WorkerSpec
    process: BaseProcess | None = None
    back_at_s: float | None = None
    dropped: list[Vanishing] = field(default_factory=list)
    breakdowns: int = 0
    left: bool = False

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.is_alive()


class Crew:
    """All workers of one simulation."""

    def __init__(self, options: SimulationOptions, group: ProcessGroup, display: Display) -> None:
        self._options = options
        self._group = group
        self._display = display
        self.schedule = churn_schedule(
            seed=options.seed, workers=options.workers, rounds=options.rounds, probability=options.dropout
        )
        self.byzantine = byzantine_workers(seed=options.seed, workers=options.workers, count=options.byzantine)
        self.members: list[CrewMember] = []

    @property
    def byzantine_names(self) -> tuple[str, ...]:
        """Names of the workers that lie."""
        return tuple(worker_name(index) for index in self.byzantine)

    @property
    def dropouts(self) -> int:
        """Workers killed in mid-lease so far."""
        return sum(len(member.dropped) for member in self.members)

    @property
    def attack_strength(self) -> float | None:
        """How hard the liars lie; None without any."""
        if not self.byzantine:
            return None
        chosen = self._options.attack_strength
        return attack_named(self._options.attack).strength if chosen is None else chosen

    def processes(self) -> list[BaseProcess]:
        """Every process that runs."""
        return [member.process for member in self.members if member.process is not None and member.alive]

    def glances(self) -> tuple[Glance, ...]:
        """What the live view shows of each worker besides the coordinator's word."""
        return tuple(
            Glance(
                index=member.spec.index,
                name=member.spec.name,
                byzantine=member.spec.attack is not None,
                alive=member.alive,
                dropouts=len(member.dropped),
                away_s=None if member.back_at_s is None else max(0.0, member.back_at_s - time.monotonic()),
            )
            for member in self.members
        )

    def start(self, links: Sequence[str], *, vocab_size: int) -> None:
        """Start everybody, each with a link of its own."""
        for index, link in zip(range(self._options.workers), links, strict=True):
            member = CrewMember(spec=self._spec(index, link, vocab_size))
            self.members.append(member)
            self._launch(member)

    def tend(self, seen: Observation) -> None:
        """Notice who is gone, and bring back those whose time has come."""
        now_s = time.monotonic()
        for member in self.members:
            if member.back_at_s is not None and now_s >= member.back_at_s:
                member.back_at_s = None
                self._launch(member)
            elif member.process is not None and not member.alive and not member.left and member.back_at_s is None:
                self._on_gone(member, seen)

    def _on_gone(self, member: CrewMember, seen: Observation) -> None:
        assert member.process is not None
        code = member.process.exitcode
        if code == 0:
            member.left = True
        elif code == -SIGKILL and member.breakdowns < MOST_BREAKDOWNS:
            self._on_dropout(member, seen)
        elif member.breakdowns < MOST_BREAKDOWNS:
            member.breakdowns += 1
            member.back_at_s = time.monotonic() + SHORTEST_AWAY_S * 2**member.breakdowns
            self._display.say(f"{member.spec.name} ended with exit code {code} and is started again; see its log")
        else:
            member.left = True
            self._display.say(f"{member.spec.name} ended with exit code {code} once more and is left out")

    def _on_dropout(self, member: CrewMember, seen: Observation) -> None:
        last = read_vanishing(member.spec.vanishings)
        drop = next((one for one in member.spec.dropouts if last is not None and one.round == last.round), None)
        if drop is None or last is None:  # killed by something else, such as a lack of memory
            member.breakdowns += 1
            member.back_at_s = time.monotonic() + SHORTEST_AWAY_S * 2**member.breakdowns
            self._display.say(f"{member.spec.name} was killed, though not by the simulation, and is started again")
            return
        member.dropped.append(last)
        rest = tuple(one for one in member.spec.dropouts if one.round > drop.round)
        member.spec = dataclasses.replace(member.spec, dropouts=rest)
        away_s = min(LONGEST_AWAY_S, max(SHORTEST_AWAY_S, drop.away_share * seen.typical_round_s))
        member.back_at_s = time.monotonic() + away_s

    def _launch(self, member: CrewMember) -> None:
        log = self._options.work / "logs" / f"{member.spec.name}.log"
        member.process = self._group.start(member.spec.name, log, worker_process, member.spec)

    def _spec(self, index: int, link: str, vocab_size: int) -> WorkerSpec:
        options, name = self._options, worker_name(index)
        return WorkerSpec(
            index=index,
            name=name,
            link=link,
            home=options.homes / name,
            vanishings=options.work / "vanishings" / f"{name}.jsonl",
            max_columns=options.columns_per_worker,
            attack=options.attack if index in self.byzantine else None,
            attack_strength=options.attack_strength,
            attack_seed=derived_seed(options.seed, "attack", index),
            vocab_size=vocab_size,
            dropouts=tuple(sorted(dropouts_of(self.schedule, index).values(), key=lambda drop: drop.round)),
        )


def worker_name(index: int) -> str:
    """What the worker is called, everywhere."""
    return f"worker-{index}"
