"""How many workers one coordinator carries: the real engine, pump and journal under simulated swarms.

Run with `python -m benchmarks.scale [--quick] [--json FILE]`. Each worker joins, waits for a lease, sends heartbeats,
commits, "uploads" and is measured, in virtual time; nothing is trained and no byte of a tensor moves. Every size plays
the same number of rounds (the bare engine two, the pump one). What is timed is real: `Engine.handle` (a decision, in
seconds of processor time, since it does nothing but compute), and the time from `Pump.submit` to its durable answer
with 64 calls in flight (on the clock). `growth` is time an event (or memory a worker) over that of the smallest swarm:
1 where the whole grows linearly.
Goals: 10,000 workers in under 20 KB each, 99 of 100 decisions in under 50 ms, growth no more than linear.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from benchmarks.report import Cell, Row, machine, parse_args, print_rows, write_json
from coordinator.engine.commands import AggregateRound, Command, GrantLease, SlowCommand
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    Event,
    LeaseRequested,
    RunCreated,
    SubmissionCommitted,
    SubmissionUploaded,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.pump import Pump
from coordinator.store.journal import Journal
from coordinator.work.port import Work
from protocol.collection import collect_rarely
from protocol.ids import RunId, WorkerId, digest_of
from simulator.virtual.canned import canned_result
from simulator.virtual.engine_loop import Agenda, EngineLoop

COLUMNS, HELD = 64, 4
HEARTBEAT_S, LEASE_S = 10.0, 60.0
IN_FLIGHT = 64
"""Calls that wait for the journal at the same time."""
SECRET = b"a benchmark's secret"
ROUNDS, PUMPED_ROUNDS = 2, 1
NOTED_S = 0.005
"""Of a decision that takes longer it is noted what it did."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One event handled."""

    event: type[Event]
    took_s: float
    effect: str


class ScriptedSwarm(Work):
    """What all workers do next, in virtual time. Knows the engine by its commands alone."""

    def __init__(self, workers: int, rounds: int = ROUNDS, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.agenda = Agenda()
        self._rounds = rounds
        self._heartbeat_s = heartbeat_s
        self._random = random.Random(workers)
        self._published = 0
        self.config = EngineConfig(
            run_id=RunId("scale"),
            columns=COLUMNS,
            train_sequences=10**9,
            max_rounds=10**6,
            replicas=workers * HELD // COLUMNS,
            quorum=max(1, workers * HELD * 3 // (4 * COLUMNS)),
            min_workers=workers,
            gather_s=0.0,
            heartbeat_interval_s=HEARTBEAT_S,
            heartbeat_misses=60.0,  # a worker that waits for the next round says nothing here, a real one asks again
            checkpoint_every=0,
            inner=InnerRecipe(inner_steps=30, batch_sequences=16),
        )
        for number in range(workers):
            worker, at_s = WorkerId(f"{number:064x}"), self._random.uniform(0.0, HEARTBEAT_S)
            self.agenda.plan(
                WorkerEnrolled(
                    at_s=at_s,
                    worker=worker,
                    name=f"volunteer {number}",
                    trusted=False,
                    max_columns=HELD,
                    tokens_per_s=self._random.uniform(800.0, 1200.0),
                )
            )
            self.agenda.plan(LeaseRequested(at_s=at_s + 0.1, worker=worker))

    def create(self) -> Engine:
        """The run's engine; greeted, as a pump does first."""
        created = RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=self.config, base_manifest=digest_of(b"version 0")
        )
        engine, _ = Engine.create(created, SECRET)
        engine.due(0.0)
        return engine

    @property
    def is_done(self) -> bool:
        """Whether all rounds are published."""
        return self._published >= self._rounds

    def on_command(self, command: Command) -> None:
        """A lease is worked on; slow work is done half a second later."""
        if isinstance(command, GrantLease):
            self._train(command.lease)
        elif isinstance(command, SlowCommand):
            self.agenda.plan(self.execute(command))

    def execute(self, command: SlowCommand) -> Event:
        """As if `command` had been carried out."""
        if isinstance(command, AggregateRound):
            self._published += 1
        draw = self._random.uniform
        return canned_result(
            command, self.agenda.now_s + 0.5, norm_l2=lambda: draw(0.9, 1.1), gain=lambda: draw(0.04, 0.06)
        )

    def _train(self, lease: GrantedLease) -> None:
        took_s = LEASE_S * self._random.uniform(0.8, 1.2) * lease.inner_steps / self.config.inner.inner_steps
        start_s, worker, lease_id = self.agenda.now_s, lease.worker, lease.lease_id
        beat_s = start_s + self._random.uniform(0.0, self._heartbeat_s)
        while beat_s < start_s + took_s:
            self.agenda.plan(WorkerSeen(at_s=beat_s, worker=worker, lease_id=lease_id, tokens_per_s=1000.0))
            beat_s += self._heartbeat_s
        digest = digest_of(lease_id.encode())
        self.agenda.plan(
            SubmissionCommitted(
                at_s=start_s + took_s,
                worker=worker,
                lease_id=lease_id,
                digest=digest,
                payload_bytes=1_000_000,
                codec="bf16",
                inner_steps_done=lease.inner_steps,
                train_loss_first=5.0,
                train_loss_last=4.0,
                train_s=took_s * 0.95,
            )
        )
        end_s = start_s + took_s + 1.0
        self.agenda.plan(SubmissionUploaded(at_s=end_s, worker=worker, lease_id=lease_id, digest=digest))
        self.agenda.plan(LeaseRequested(at_s=start_s + took_s + 1.1, worker=worker))


class Decisions(EngineLoop):
    """All rounds on the bare engine, with what time calls for as a pump would; each decision timed."""

    def __init__(self, swarm: ScriptedSwarm) -> None:
        super().__init__(swarm.create(), swarm.agenda)
        self._swarm = swarm
        self.made: list[Decision] = []

    def play(self) -> list[Decision]:
        """To the end."""
        while self.agenda and not self._swarm.is_done:
            self.advance()
        return self.made

    def handle(self, event: Event) -> list[Command]:
        """Timed."""
        phase, started_s = self.engine.state.phase, time.thread_time()
        commands = self.engine.handle(event)
        took_s = time.thread_time() - started_s
        effect = f"{phase}>{self.engine.state.phase}, {len(commands)} commands" if took_s > NOTED_S else ""
        self.made.append(Decision(type(event), took_s, effect))
        return commands

    def carry_out(self, command: Command) -> None:
        """The swarm's business."""
        self._swarm.on_command(command)


def engine_rows(workers: int) -> list[Row]:
    """Decisions of the bare engine, one after the other on one core; all together, then by kind of event."""
    loop = Decisions(ScriptedSwarm(workers))
    gc.collect()
    decisions = sorted(loop.play(), key=lambda decision: decision.took_s)
    without_heartbeats = [decision for decision in decisions if decision.event is not WorkerSeen]
    kinds = sorted({decision.event for decision in decisions}, key=lambda kind: kind.__name__)
    parts = [("engine", without_heartbeats)]
    parts += [(kind.__name__, [d for d in decisions if d.event is kind]) for kind in kinds]
    return [_engine_row(what, workers, part) for what, part in parts]


def _engine_row(what: str, workers: int, decisions: Sequence[Decision]) -> Row:
    took_s, slowest = [decision.took_s for decision in decisions], decisions[-1]
    row = {"what": what, "workers": workers, **_figures(took_s, sum(took_s))}
    return {**row, "slowest": f"{slowest.event.__name__}: {slowest.effect}" if slowest.effect else None}


def memory_row(workers: int) -> Row:
    """Bytes that the engine holds for each worker when the last round has closed; the swarm's own are not counted."""
    tracemalloc.start()
    loop = Decisions(ScriptedSwarm(workers, heartbeat_s=2.5 * HEARTBEAT_S))  # only the latest of a worker is kept
    loop.play()
    engine = loop.engine
    del loop
    gc.collect()
    whole = tracemalloc.get_traced_memory()[0]
    del engine
    gc.collect()
    held = whole - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"what": "memory", "workers": workers, "kb_a_worker": held / workers / 1000}


def pump_row(workers: int) -> Row:
    """Events through the real pump into a real journal, with 64 calls waiting at any time."""
    with tempfile.TemporaryDirectory(prefix="barnraise-scale-") as folder:
        started_s = time.perf_counter()
        took_s = asyncio.run(_pumped(ScriptedSwarm(workers, PUMPED_ROUNDS), Path(folder)))
        whole_s = time.perf_counter() - started_s
    return {"what": "pump", "workers": workers, **_figures(sorted(took_s), whole_s)}


async def _pumped(swarm: ScriptedSwarm, folder: Path) -> list[float]:
    engine = swarm.create()
    journal = Journal.create(folder / "journal.sqlite", engine_version=ENGINE_VERSION)
    pump = Pump(
        engine,
        journal,
        work=swarm,
        dispatch=swarm.on_command,
        observer=_Silent(),
        clock=lambda: swarm.agenda.now_s,
    )
    took_s: list[float] = []
    lines = asyncio.Semaphore(IN_FLIGHT)
    pump.start()

    async def call(event: Event) -> None:
        started_s = time.perf_counter()
        await pump.submit(event)
        took_s.append(time.perf_counter() - started_s)
        lines.release()

    async with asyncio.TaskGroup() as calls:
        while not swarm.is_done:
            # virtual time stands still while leases are being handed out, or it would run ahead of them
            if engine.state.round.granting or not swarm.agenda:
                await asyncio.sleep(0.001)
            elif isinstance(event := swarm.agenda.take(), WorkerSeen):
                pump.seen(event)
            else:
                assert isinstance(event, Event)
                await lines.acquire()
                calls.create_task(call(event))
    await pump.stop()
    journal.close()
    return took_s


class _Silent:
    def event(self, event: Event) -> None:
        """Nobody looks."""

    def command(self, command: Command, at_s: float) -> None:
        """Nobody looks."""


def _figures(took_s: Sequence[float], whole_s: float) -> dict[str, Cell]:
    """`took_s` ascends."""
    return {
        "events": len(took_s),
        "events_per_s": len(took_s) / whole_s,
        "p50_ms": 1e3 * took_s[len(took_s) // 2],
        "p99_ms": 1e3 * took_s[len(took_s) * 99 // 100],
        "max_ms": 1e3 * took_s[-1],
    }


def _with_growth(rows: Sequence[Row]) -> list[Row]:
    """Each row with what an event, or a worker, costs over what it costs in the smallest swarm.

    Not for what happens a few times a round: that is about everybody, and grows with them.
    """
    first: dict[Cell, float] = {}
    grown: list[Row] = []
    for row in rows:
        rate, held = row.get("events_per_s"), row.get("kb_a_worker")
        cost = 1.0 / rate if isinstance(rate, float) else held
        assert isinstance(cost, float)
        events, workers = row.get("events"), row["workers"]
        rare = isinstance(events, int) and isinstance(workers, int) and events < workers
        grown.append({**row, "growth": None if rare else cost / first.setdefault(row["what"], cost)})
    return grown


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    collect_rarely()
    sizes = (100, 300, 1000) if args.quick else (1000, 3000, 10_000)
    rows: list[Row] = [row for size in sizes for row in engine_rows(size)]
    rows += [pump_row(size) for size in sizes]
    rows += [memory_row(size) for size in sizes]
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    rows = sorted(_with_growth(rows), key=lambda row: kinds.index(row["what"]))
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}; {COLUMNS} columns")
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
