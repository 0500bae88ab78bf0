"""How near together unequal machines end a round, and what the fast ones wait: the real engine in virtual time.

Run with `python -m benchmarks.pacing [--quick] [--json FILE]`. Workers differ in speed (x1 to x4) and uplink (1 to 20
Mbit/s) and send 10 MB each; nothing is trained. Five ways of pacing, by the same engine on the same machines:
`equal steps` (a tolerance so wide that nobody is slow), `speeds` (every upload looks interrupted, so that the engine
sees no uplink), `speeds, uplinks` (nobody does more than the recipe), `fast do more` (the default: `most_steps_share`
2), and the default with a schedule of inner steps. The first rounds, in which the engine learns who is who, are left
out.

Columns: the median round's length; `spread`, the last worker's end less the first one's; what the fast workers (half of
them, by speed) and all wait between their own end and the round's; each as a share of the round; steps a worker did.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from benchmarks.report import Cell, parse_args, print_rows, write_json
from coordinator.engine.commands import Command, GrantLease, MeasureSubmission, SlowCommand
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    Event,
    LeaseRequested,
    RunCreated,
    SubmissionCommitted,
    SubmissionUploaded,
    WorkerEnrolled,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.version import ENGINE_VERSION
from protocol.ids import RunId, WorkerId, digest_of
from simulator.virtual.canned import canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

PAYLOAD_BYTES = 10_000_000
FETCH_S = 5.0
"""Before training: what changed since the last round, at a usual downlink."""
STEP_S = 2.0
"""Of the fastest machine; the slowest takes four times as long."""
LEARNING_ROUNDS = 3
SECRET = b"a benchmark's secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineModel:
    """One simulated worker."""

    worker: WorkerId
    step_s: float
    upload_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLease:
    """One lease, as its worker saw it."""

    machine: MachineModel
    round: int
    ended_s: float
    steps: int


def machines_of(count: int, seed: int) -> list[MachineModel]:
    """Speeds x1 to x4 and uplinks of 1 to 20 Mbit/s, each evenly on a logarithmic scale, drawn independently."""
    draw = random.Random(seed)
    shares = [place / (count - 1) for place in range(count)]
    slowness, uplinks = draw.sample(shares, count), draw.sample(shares, count)
    return [
        MachineModel(
            worker=WorkerId(f"{number:064x}"),
            step_s=STEP_S * 4.0**slow,
            upload_s=PAYLOAD_BYTES * 8 / (1e6 * 20.0**uplink),
        )
        for number, (slow, uplink) in enumerate(zip(slowness, uplinks, strict=True))
    ]


class Loop(EngineLoop):
    """The engine and its swarm, in virtual time: every event at its moment, the engine's own timers between them."""

    def __init__(self, machines: Sequence[MachineModel], config: EngineConfig, *, uplinks_seen: bool) -> None:
        self._machines = {machine.worker: machine for machine in machines}
        self._uplinks_seen = uplinks_seen
        self._draw = random.Random(len(machines))
        self.spans: list[FinishedLease] = []
        created = RunCreated(at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"v0"))
        engine, commands = Engine.create(created, SECRET)
        super().__init__(engine, Agenda())
        engine.due(0.0)
        for command in commands:
            self.carry_out(command)
        for machine in machines:
            self.agenda.plan(
                WorkerEnrolled(
                    at_s=0.0,
                    worker=machine.worker,
                    name=machine.worker[-2:],
                    trusted=False,
                    max_columns=0,
                    tokens_per_s=1000.0 / machine.step_s,
                )
            )
            self.agenda.plan(LeaseRequested(at_s=0.0, worker=machine.worker))

    def run(self) -> None:
        """To the end of the run."""
        while self.agenda:
            self.advance()

    def carry_out(self, command: Command) -> None:
        """A lease is worked on; slow work takes a tenth of a second."""
        if isinstance(command, GrantLease):
            self._work_on(command.lease, self.now_s)
        elif isinstance(command, SlowCommand):
            self.agenda.plan(self._result_of(command, self.now_s + 0.1))

    def _work_on(self, lease: GrantedLease, now_s: float) -> None:
        machine = self._machines[lease.worker]
        train_s = lease.inner_steps * machine.step_s * self._draw.uniform(0.95, 1.05)
        commit_s = now_s + FETCH_S + train_s
        upload_s = machine.upload_s * self._draw.uniform(0.95, 1.05)
        committed = SubmissionCommitted(
            at_s=commit_s,
            worker=lease.worker,
            lease_id=lease.lease_id,
            digest=digest_of(lease.lease_id.encode()),
            payload_bytes=PAYLOAD_BYTES,
            codec="bf16",
            inner_steps_done=lease.inner_steps,
            train_loss_first=5.0,
            train_loss_last=4.0,
            train_s=train_s,
        )
        self.agenda.plan(committed)
        if not self._uplinks_seen:
            self.agenda.plan(replace(committed, at_s=commit_s + upload_s / 2))
        end_s = commit_s + upload_s
        uploaded = SubmissionUploaded(at_s=end_s, worker=lease.worker, lease_id=lease.lease_id, digest=committed.digest)
        self.agenda.plan(uploaded)
        self.agenda.plan(LeaseRequested(at_s=end_s + 0.5, worker=lease.worker))
        self.spans.append(FinishedLease(machine=machine, round=lease.round, ended_s=end_s, steps=lease.inner_steps))

    def _result_of(self, command: SlowCommand, at_s: float) -> Event:
        """More steps make a longer and a better update."""
        steps = command.lease.inner_steps if isinstance(command, MeasureSubmission) else 0
        return canned_result(command, at_s, norm_l2=lambda: 1.0 * steps, gain=lambda: 0.01 * steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """One way of pacing."""

    name: str
    tolerance: float = 0.25
    uplinks_seen: bool = True
    most_steps_share: float = 1.0
    final_inner_steps: int | None = None


PACINGS = (
    Pacing(name="equal steps", tolerance=1e6),
    Pacing(name="speeds", uplinks_seen=False),
    Pacing(name="speeds, uplinks"),
    Pacing(name="fast do more", most_steps_share=2.0),
    Pacing(name="30 to 60 steps", most_steps_share=2.0, final_inner_steps=60),
)


def config_of(pacing: Pacing, workers: int, rounds: int) -> EngineConfig:
    """Everybody holds every column, and a round waits for all: nobody is given up, so that ends can be compared."""
    return EngineConfig(
        run_id=RunId("pacing"),
        columns=8,
        train_sequences=10**9,
        max_rounds=rounds,
        replicas=workers,
        quorum=workers,
        overdue_factor=1e6,
        min_workers=workers,
        gather_s=0.0,
        heartbeat_interval_s=1e6,
        lease_ttl_s=1e6,
        round_deadline_s=1e6,
        checkpoint_every=0,
        pace_tolerance=pacing.tolerance,
        most_steps_share=pacing.most_steps_share,
        inner=InnerRecipe(inner_steps=30, final_inner_steps=pacing.final_inner_steps, batch_sequences=16),
    )


def row(pacing: Pacing, workers: int, rounds: int, swarms: int) -> dict[str, Cell]:
    """Means over swarms of that many workers, with machines drawn anew."""
    found = [figures_of(pacing, machines_of(workers, seed), rounds) for seed in range(swarms)]
    means = {name: fmean(one[name] for one in found) for name in found[0]}
    return {"pacing": pacing.name, "workers": workers, "swarms": swarms, **means}


def figures_of(pacing: Pacing, machines: Sequence[MachineModel], rounds: int) -> dict[str, float]:
    """One swarm's figures, over the rounds after the engine has learnt who is who."""
    loop = Loop(machines, config_of(pacing, len(machines), rounds), uplinks_seen=pacing.uplinks_seen)
    loop.run()
    slowest_of_the_fast = sorted(machine.step_s for machine in machines)[len(machines) // 2 - 1]
    lengths, spreads, fast_waits, waits = [], [], [], []
    for closed in loop.engine.state.history[LEARNING_ROUNDS:]:
        spans = [span for span in loop.spans if span.round == closed.round]
        last_s = max(span.ended_s for span in spans)
        length_s = last_s - closed.opened_at_s
        waited = {span.machine: (last_s - span.ended_s) / length_s for span in spans}
        lengths.append(length_s)
        spreads.append(max(waited.values()))
        waits.append(fmean(waited.values()))
        fast_waits.append(fmean(wait for one, wait in waited.items() if one.step_s <= slowest_of_the_fast))
    steps = sum(span.steps for span in loop.spans if span.round > LEARNING_ROUNDS)
    trained_s = loop.engine.state.now_s - loop.engine.state.history[LEARNING_ROUNDS].opened_at_s
    return {
        "round_s": median(lengths),
        "spread": fmean(spreads),
        "fast_wait": fmean(fast_waits),
        "all_wait": fmean(waits),
        "steps_a_lease": steps / (len(lengths) * len(machines)),
        "steps_a_minute": 60.0 * steps / trained_s,
    }


def main() -> None:
    """Play and print."""
    args = parse_args(__doc__ or "")
    sizes, rounds, swarms = ((8,), 8, 3) if args.quick else ((8, 32), 13, 10)
    rows = [row(pacing, workers, rounds, swarms) for workers in sizes for pacing in PACINGS]
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
