"""What share of their time volunteers' machines train: the real engine in virtual time, by line and by what is moved.

Run with `python -m benchmarks.utilisation [--quick] [--json FILE] [--up-bits B] [--down-bytes B] [--frozen-bytes B]
[--coordinator-s S]`. Nothing is trained and no byte is moved: payload sizes follow from the model's layout, times from
sizes and lines, an inner step's time from 25 TFLOP/s sustained (6 operations a parameter and token). A lease's tokens
are those that `init` works out for the line 20/100, and the same for every system and line.

Systems: `before` (version in fp32, submission in bf16, the next lease asked for once the last byte is up), `after` (the
bits and bytes named, the next lease asked for as soon as the submission is committed to), `frugal` (the same with
ternary submissions of 1.6 bits and half of the bytes down) and `bound`: what is left, of `after`, of a round in which
training, one submission and one version's deltas follow each other and nobody waits for anybody, which no synchronous
round can beat, since a version is made of what was sent. `mixed` swarms have all lines in equal parts. Machines differ
by 2 % from lease to lease.
A round's first download of the whole model is left out, and the first rounds, in which the engine learns who is who.

Columns: bytes a lease up and down, seconds that they take and that training takes, and how they compare; what the
coordinator takes at a round's end; the share of workers' time in training, in the mean and of the least busy one.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.report import Cell, print_rows, write_json
from coordinator.engine.commands import (
    AggregateRound,
    CancelLease,
    Command,
    GrantLease,
    MeasureSubmission,
    SlowCommand,
)
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.down_config import WHOLE
from coordinator.engine.engine import Engine
from coordinator.engine.events import LeaseRequested, RunCreated, SubmissionUploaded, WorkerEnrolled, WorkerSeen
from coordinator.engine.lease import GrantedLease
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.lease_length import RATIO, AssumedLine, LeaseBytes, step_s, traffic_of
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, RunId, Version, WorkerId, digest_of
from protocol.residency import FROZEN
from simulator.virtual.canned import canned_commit, canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

LINES = ("10/50", "20/100", "50/200", "100/400")
ASSUMED = AssumedLine.parse("20/100")
LEARNING_ROUNDS = 3
FRUGAL = (1.6, 0.5, 0.05)
"""Bits a parameter up, bytes a trained and a frozen one down: what a run may choose where lines are slow."""
STEPS = 200
"""Inner steps a lease; how many tokens each has follows from the lease's."""
ASKS_S = 0.2
"""A call there and back, the encoding and the disk besides."""
SECRET = b"a benchmark's secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is trained, and how many columns of it a worker holds."""

    name: str
    columns: int
    workers: int

    @property
    def layout(self) -> Layout:
        """Its cut."""
        return layout(preset(self.name), FROZEN)


MODELS = (Model(name="100m", columns=16, workers=16), Model(name="olmoe-7b", columns=8, workers=24))


@dataclass(slots=True, kw_only=True)
class SimulatedMachine:
    """One simulated worker: what it is doing, and when it trained."""

    worker: WorkerId
    line: AssumedLine
    step_s: float
    has: Version | None = None
    """The version that its disk holds."""
    lease_id: LeaseId | None = None
    is_sending: bool = False
    waits: bool = False
    """For its line: two finished submissions are the most."""
    trained: list[tuple[float, float]] = field(default_factory=list)


class UtilisedLoop(EngineLoop):
    """One engine and its machines."""

    def __init__(
        self,
        machines: Sequence[SimulatedMachine],
        config: EngineConfig,
        traffic: LeaseBytes,
        *,
        max_columns: int,
        overlap: bool,
        coordinator_s: float,
    ) -> None:
        self.machines = {one.worker: one for one in machines}
        self._traffic, self._overlap = traffic, overlap
        self._measure_s, self._aggregate_s = 0.5 * coordinator_s / len(machines), 0.5 * coordinator_s
        self._free_s = 0.0  # when the coordinator's one executor is
        self._draw = random.Random(len(machines))
        created = RunCreated(at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"v0"))
        engine, commands = Engine.create(created, SECRET)
        super().__init__(engine, Agenda())
        engine.due(0.0)
        for command in commands:
            self.carry_out(command)
        for one in machines:
            joined = WorkerEnrolled(
                at_s=0.0,
                worker=one.worker,
                name=one.worker[-2:],
                trusted=False,
                max_columns=max_columns,
                tokens_per_s=1.0 / one.step_s,
            )
            self.agenda.plan(joined)
            self.agenda.after(0.0, partial(self._ask, one))
        self.agenda.after(0.0, self._beat)

    def run(self) -> None:
        """To the end of the run."""
        while not self.engine.state.ended:
            self.advance()

    def carry_out(self, command: Command) -> None:
        """A lease is worked on; slow work is done by one executor, one after the other."""
        match command:
            case GrantLease(lease=lease):
                self._work_on(self.machines[lease.worker], lease)
            case CancelLease(worker=worker, lease_id=lease_id):
                one = self.machines[worker]
                if one.lease_id == lease_id:
                    one.lease_id = None
                    self.agenda.after(ASKS_S, partial(self._ask, one))
            case SlowCommand():
                takes = {MeasureSubmission: self._measure_s, AggregateRound: self._aggregate_s}.get(type(command), 0.0)
                self._free_s = max(self._free_s, self.now_s) + takes
                self.agenda.after(self._free_s - self.now_s, partial(self._finish, command))

    def _finish(self, command: SlowCommand) -> None:
        if self.engine.is_pending(command.command_id):
            steps = command.lease.inner_steps if isinstance(command, MeasureSubmission) else 0
            self.apply(canned_result(command, self.now_s, norm_l2=lambda: 1.0 * steps, gain=lambda: 0.01 * steps))

    def _beat(self) -> None:
        for worker, one in self.machines.items():
            self.engine.handle(WorkerSeen(at_s=self.now_s, worker=worker, lease_id=one.lease_id))
        self.agenda.after(self.engine.state.config.heartbeat_interval_s, self._beat)

    # ---- a machine ------------------------------------------------------------------------------------

    def _ask(self, one: SimulatedMachine) -> None:
        if one.lease_id is None and not one.waits:
            self.apply(LeaseRequested(at_s=self.now_s, worker=one.worker))

    def _work_on(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.lease_id = lease.lease_id
        if one.has is None:
            down_bytes = self._traffic.whole_bytes
        else:
            down_bytes = self._traffic.down_bytes * (lease.base_version - one.has)
        one.has = lease.base_version
        self.agenda.after(down_bytes * 8e-6 / one.line.down_mbit_s, partial(self._train, one, lease))

    def _train(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        if one.lease_id == lease.lease_id:
            train_s = lease.inner_steps * one.step_s * self._draw.uniform(0.98, 1.02)
            self.agenda.after(train_s, partial(self._commit, one, lease, train_s))

    def _commit(self, one: SimulatedMachine, lease: GrantedLease, train_s: float) -> None:
        one.trained.append((self.now_s - train_s, self.now_s))
        if one.lease_id != lease.lease_id:
            return
        one.lease_id = None
        try:
            self.apply(canned_commit(lease, self.now_s, train_s, payload_bytes=self._traffic.up_bytes))
        except IllegalEvent:
            self.agenda.after(ASKS_S, partial(self._ask, one))
            return
        one.waits = one.is_sending or not self._overlap
        if not one.is_sending:
            self._send(one, lease)
        else:
            self.agenda.after(0.0, partial(self._send_later, one, lease))

    def _send_later(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        if one.is_sending:
            self.agenda.after(1.0, partial(self._send_later, one, lease))
        else:
            one.waits = False
            self._send(one, lease)

    def _send(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.is_sending = True
        self.agenda.after(self._traffic.up_bytes * 8e-6 / one.line.up_mbit_s, partial(self._sent, one, lease))
        if self._overlap:
            self.agenda.after(ASKS_S, partial(self._ask, one))

    def _sent(self, one: SimulatedMachine, lease: GrantedLease) -> None:
        one.is_sending = False
        digest = digest_of(lease.lease_id.encode())
        with contextlib.suppress(IllegalEvent):  # forgotten meanwhile: it came too many rounds late
            self.apply(SubmissionUploaded(at_s=self.now_s, worker=one.worker, lease_id=lease.lease_id, digest=digest))
        if not self._overlap:
            one.waits = False
            self.agenda.after(ASKS_S, partial(self._ask, one))

    def shares(self) -> list[float]:
        """Of each machine's time since the engine knows who is who, the share in training."""
        since_s, until_s = (
            self.engine.state.history[LEARNING_ROUNDS].opened_at_s,
            self.engine.state.history[-1].closed_at_s,
        )
        return [
            sum(max(0.0, min(end_s, until_s) - max(start_s, since_s)) for start_s, end_s in one.trained)
            / (until_s - since_s)
            for one in self.machines.values()
        ]


def config_of(model: Model, lease_s: float, rounds: int) -> EngineConfig:
    """The defaults of a run, with deadlines that no line here misses."""
    return EngineConfig(
        run_id=RunId("utilisation"),
        columns=model.layout.columns,
        train_sequences=10**9,
        max_rounds=rounds,
        min_workers=model.workers,
        gather_s=0.0,
        lease_ttl_s=1e3 * lease_s,
        round_deadline_s=1e4 * lease_s,
        fetch_s=1e2 * lease_s,
        checkpoint_every=0,
        validate_every=0,
        inner=InnerRecipe(inner_steps=STEPS),
    )


def moved(model: Model, up_bits: float, trained_bytes: float, frozen_bytes: float) -> LeaseBytes:
    """A lease's bytes: bits a parameter up; bytes a trained and a frozen parameter down, each round."""
    cut = model.layout
    trained = cut.trainable_bytes(model.columns) // 4
    return LeaseBytes(
        up_bytes=round(trained * up_bits / 8),
        down_bytes=round(trained * trained_bytes + (cut.parameters - trained) * frozen_bytes),
        whole_bytes=4 * cut.parameters,
    )


def row(
    model: Model, system: str, line: str, traffic: LeaseBytes, lease_s: float, args: argparse.Namespace
) -> dict[str, Cell]:
    """One system on one line, or on all of them."""
    lines = [AssumedLine.parse(one) for one in (LINES if line == "mixed" else (line,))]
    transfer_s = fmean(traffic.transfer_s(one) for one in lines)
    found: dict[str, Cell] = {
        "model": model.name,
        "columns": model.columns,
        "line": line,
        "system": system,
        "up_mb": traffic.up_bytes / 1e6,
        "down_mb": traffic.down_bytes / 1e6,
        "transfer_s": transfer_s,
        "lease_s": lease_s,
        "ratio": lease_s / transfer_s,
        "coordinator_s": args.coordinator_s,
    }
    if system == "bound":
        share = fmean(lease_s / (lease_s + traffic.transfer_s(one)) for one in lines)
        return {**found, "coordinator_s": 0.0, "training": share, "least": None}
    machines = [
        SimulatedMachine(worker=WorkerId(f"{number:064x}"), line=lines[number % len(lines)], step_s=lease_s / STEPS)
        for number in range(model.workers)
    ]
    loop = UtilisedLoop(
        machines,
        config_of(model, lease_s, 8 if args.quick else 20),
        traffic,
        max_columns=model.columns,
        overlap=system != "before",
        coordinator_s=args.coordinator_s,
    )
    loop.run()
    shares = loop.shares()
    return {**found, "training": fmean(shares), "least": min(shares)}


def rows_of(args: argparse.Namespace) -> list[dict[str, Cell]]:
    """Every model, line and system."""
    rows = []
    for model in MODELS[:1] if args.quick else MODELS:
        now = traffic_of(model.layout, "bf16", model.columns, WHOLE)
        then = moved(model, args.up_bits, args.down_bytes, args.frozen_bytes)
        frugal = moved(model, *FRUGAL)
        lease_s = RATIO * then.transfer_s(ASSUMED)
        for line in (*LINES, "mixed"):
            for system, traffic in (("before", now), ("after", then), ("frugal", frugal), ("bound", then)):
                rows.append(row(model, system, line, traffic, lease_s, args))
    return rows


def tokens_of(model: Model, lease_s: float) -> int:
    """Tokens of a lease that takes so long."""
    return round(lease_s / step_s(model.layout, 1))


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one model, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--up-bits", type=float, default=4.25, help="a trained parameter, up (int4: 4.25)")
    parser.add_argument("--down-bytes", type=float, default=1.0, help="a trained parameter and round, down")
    parser.add_argument("--frozen-bytes", type=float, default=0.1, help="a frozen parameter and round, down")
    parser.add_argument("--coordinator-s", type=float, default=0.0, help="the coordinator's own work for a round")
    args = parser.parse_args()
    rows = rows_of(args)
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
