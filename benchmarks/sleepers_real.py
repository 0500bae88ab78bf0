"""Sleepers whose leases are really trained, really lied about and really computed again: one run of `sleepers`.

Decides who is in the swarm (eight workers of the micro model of `benchmarks.byzantine`; two sleepers, one founder) and
what is counted of each, as the stubbed swarm counts it. Touches the benchmark's folder, and one temporary one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.byzantine_rows import ByzantineCase
from benchmarks.byzantine_run import micro_checkpoint, prepared, settings_of, swarm_of
from benchmarks.stubbed_swarm import SLEPT
from coordinator.engine.commands import AggregateRound, Command
from coordinator.engine.events import Event, LeaseReplayed, SubmissionMeasured
from coordinator.engine.lease import GrantedLease
from protocol.ids import LeaseId, WorkerId
from simulator.adversaries.attack import Attack, Conduct
from simulator.adversaries.table import SLEEPS_UNTIL

WORKERS, SLEEPERS, FOUNDERS = 8, 2, 1
ALONE = Attack(
    does="is a sleeper that trains half of its steps in three rounds of ten",
    conduct=Conduct(first_round=SLEEPS_UNTIL, share_of_rounds=0.3, steps_share=0.5),
)
"""`sleeper-30` lies as `alie` does: by the spread among liars, which is none once the other one is banned."""
LIES_ALONE = "benchmarks/sleepers_real.py:ALONE"
"""From the tree's root, where benchmarks are started: an attack's draws follow from its name."""


@dataclass(slots=True)
class SleeperTally:
    """What became of one worker, in the rounds in which sleepers are awake."""

    audited: set[LeaseId] = field(default_factory=set)
    done: int = 0
    found: int = 0
    """Round of the first lease of its that an auditor could not reproduce; 0: none."""
    banned: int = 0
    weighed_after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSwarm:
    """One run with real training."""

    seed: int
    attack: str
    """As `--attack` names it."""
    rounds: int
    folder: Path
    """Where data and first weights are kept between runs."""
    workers: int = WORKERS
    sleepers: int = SLEEPERS


def play(run: RealSwarm) -> tuple[Any, dict[WorkerId, SleeperTally], set[WorkerId]]:
    """The engine's state at the end, what became of each worker, and who slept."""
    import structlog
    import torch

    from coordinator.run.folder import init_run
    from coordinator.run.opened import OpenedRun
    from simulator.seeds import derived_seed
    from simulator.virtual.swarm import STILL

    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    prepared(run.folder)
    case = ByzantineCase(
        attack=run.attack, defence="pipeline", n=run.workers, f=run.sleepers, trusted=FOUNDERS, seed=run.seed
    )
    checkpoint, seed = micro_checkpoint(run.folder, run.seed), derived_seed(run.seed, "sleepers")
    settings = settings_of(case, run.rounds, seed, str(run.folder / "data"), checkpoint)
    with tempfile.TemporaryDirectory(prefix="barnraise-sleepers-") as scratch:
        opened = OpenedRun.open(init_run(Path(scratch) / "run", settings), STILL)
        try:
            swarm, colluders = swarm_of(case, opened)
            watcher = SleeperWatch(swarm)
            swarm.play()
            return opened.engine.state, watcher.tallies, set(colluders)
        finally:
            opened.close()


class SleeperWatch:
    """Looks on at one swarm."""

    def __init__(self, swarm: Any) -> None:
        self._engine = swarm.engine
        self.tallies: dict[WorkerId, SleeperTally] = {}
        self._handle, swarm.handle = swarm.handle, self._handled

    def _handled(self, event: Event) -> list[Command]:
        commands: list[Command] = self._handle(event)
        state = self._engine.state
        match event:
            case LeaseReplayed(lease_id=lease_id, error="") if lease_id in state.leases:
                self._audited(state.leases[lease_id].lease, max(event.trunk, event.columns))
            case SubmissionMeasured(lease_id=lease_id) if state.leases[lease_id].lease.audits is None:
                lease = state.leases[lease_id].lease
                self._of(lease.worker).done += lease.round > SLEPT
        for command in commands:
            if isinstance(command, AggregateRound):
                self._weighed(command)
        return commands

    def _audited(self, lease: GrantedLease, distance: float) -> None:
        state, one = self._engine.state, self._of(lease.worker)
        if lease.round > SLEPT:
            one.audited.add(lease.lease_id)
        if distance > state.config.audits.tolerance:
            one.found = one.found or lease.round
        if state.workers[lease.worker].ban is not None:
            one.banned = one.banned or state.round.round

    def _weighed(self, command: AggregateRound) -> None:
        leases = self._engine.state.leases
        for part in command.contributions:
            if part.worker is not None and part.weight > 0.0 and part.lease_id in leases:
                one = self._of(part.worker)
                one.weighed_after += 0 < one.found < leases[part.lease_id].lease.round

    def _of(self, worker: WorkerId) -> SleeperTally:
        return self.tallies.setdefault(worker, SleeperTally())
