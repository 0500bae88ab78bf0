"""How many workers one coordinator carries: the real engine, pump and journal under simulated swarms.

Run with `python -m benchmarks.scale [--quick] [--json FILE]`. Each worker joins, waits for a lease, sends heartbeats,
commits, "uploads" and is measured, in virtual time; nothing is trained and no byte of a tensor moves. What is timed is
real: `Engine.handle` (a decision), and the time from `Pump.submit` to its durable answer with 64 calls in flight.
Goals: 10,000 workers in under 20 KB each, 99 of 100 decisions in under 50 ms, growth no more than linear.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import structlog

from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from coordinator.engine.commands import AggregateRound, Command, GrantLease, MeasureSubmission, SlowCommand
from coordinator.engine.commands import ValidateVersion as Validate
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.events import (
    BlockNorm,
    CheckpointWritten,
    Event,
    LeaseRequested,
    RoundAggregated,
    RunCreated,
    SubmissionCommitted,
    SubmissionMeasured,
    SubmissionUploaded,
    VersionValidated,
    WorkerEnrolled,
    WorkerSeen,
)
from coordinator.engine.lease import Lease
from coordinator.engine.version import ENGINE_VERSION
from coordinator.journal import Journal
from coordinator.pump import Pump
from protocol.ids import RunId, WorkerId, digest_of

COLUMNS, HELD = 64, 4
HEARTBEAT_S, LEASE_S = 10.0, 60.0
IN_FLIGHT = 64
"""Calls that wait for the journal at the same time."""
SECRET = b"a benchmark's secret"


class Swarm:
    """What all workers do next, in virtual time. Knows the engine by its commands alone."""

    def __init__(self, workers: int, rounds: int) -> None:
        self.now_s = 0.0
        self.rounds = rounds
        self._random = random.Random(workers)
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Event]] = []
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
            checkpoint_every=0,
            inner=InnerRecipe(inner_steps=30, batch_sequences=16),
        )
        for number in range(workers):
            worker, at_s = WorkerId(f"{number:064x}"), self._random.uniform(0.0, HEARTBEAT_S)
            self._plan(
                WorkerEnrolled(
                    at_s=at_s,
                    worker=worker,
                    name=f"volunteer {number}",
                    trusted=False,
                    max_columns=HELD,
                    tokens_per_s=self._random.uniform(800.0, 1200.0),
                )
            )
            self._plan(LeaseRequested(at_s=at_s + 0.1, worker=worker))

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
        return self._published >= self.rounds

    def next_event(self) -> Event | None:
        """What happens next; None while something has to be carried out first."""
        if self.is_done or not self._agenda:
            return None
        self.now_s, _, event = heapq.heappop(self._agenda)
        return event

    def on_command(self, command: Command) -> None:
        """A lease is worked on; slow work is done half a second later."""
        if isinstance(command, GrantLease):
            self._train(command.lease)
        elif isinstance(command, SlowCommand):
            self._plan(self.result_of(command))

    def result_of(self, command: SlowCommand) -> Event:
        """As if `command` had been carried out."""
        at_s, command_id = self.now_s + 0.5, command.command_id
        if isinstance(command, MeasureSubmission):
            norms = tuple(
                BlockNorm(block=block, norm_l2=self._random.uniform(0.9, 1.1), base_l2=10.0)
                for block in command.lease.blocks
            )
            return SubmissionMeasured(
                at_s=at_s,
                command_id=command_id,
                lease_id=command.lease.lease_id,
                malformed="",
                norms=norms,
                heldout_gain=self._random.uniform(0.04, 0.06),
                heldout_gain_se=0.001,
            )
        if isinstance(command, AggregateRound):
            self._published += 1
            return RoundAggregated(
                at_s=at_s,
                command_id=command_id,
                round=command.round,
                version=command.version,
                parent_version=command.parent_version,
                manifest=digest_of(command_id.encode()),
                update_norm_l2=1.0,
            )
        if isinstance(command, Validate):
            return VersionValidated(
                at_s=at_s, command_id=command_id, version=command.version, val_loss=3.0, val_loss_se=0.01
            )
        return CheckpointWritten(at_s=at_s, command_id=command_id, version=getattr(command, "version", 0), path="")  # type: ignore[arg-type]

    def _train(self, lease: Lease) -> None:
        took_s = LEASE_S * self._random.uniform(0.8, 1.2) * lease.inner_steps / self.config.inner.inner_steps
        start_s, worker, lease_id = self.now_s, lease.worker, lease.lease_id
        beat_s = start_s + self._random.uniform(0.0, HEARTBEAT_S)
        while beat_s < start_s + took_s:
            self._plan(WorkerSeen(at_s=beat_s, worker=worker, lease_id=lease_id, tokens_per_s=1000.0))
            beat_s += HEARTBEAT_S
        digest = digest_of(lease_id.encode())
        self._plan(
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
        self._plan(SubmissionUploaded(at_s=start_s + took_s + 1.0, worker=worker, lease_id=lease_id, digest=digest))
        self._plan(LeaseRequested(at_s=start_s + took_s + 1.1, worker=worker))

    def _plan(self, event: Event) -> None:
        heapq.heappush(self._agenda, (event.at_s, next(self._order), event))


def played(swarm: Swarm, engine: Engine) -> Iterator[tuple[Event, float]]:
    """Play all rounds on the bare engine; each event, and how long it took in seconds."""
    for unfinished in engine.pending:
        swarm.on_command(unfinished)
    while (event := swarm.next_event()) is not None:
        due: list[Event] = []
        wakeup_s = engine.next_wakeup_s()
        if wakeup_s is not None and wakeup_s <= swarm.now_s:
            due = engine.due(swarm.now_s)
        for each in (*due, event):
            started_s = time.perf_counter()
            commands = engine.handle(each)
            yield each, time.perf_counter() - started_s
            for command in commands:
                swarm.on_command(command)


def engine_row(workers: int, rounds: int) -> dict[str, Cell]:
    """Decisions of the bare engine, one after the other on one core."""
    swarm = Swarm(workers, rounds)
    engine = swarm.create()
    gc.collect()
    took_s = [(isinstance(event, WorkerSeen), seconds) for event, seconds in played(swarm, engine)]
    decisions_s = sorted(seconds for is_heartbeat, seconds in took_s if not is_heartbeat)
    figures = _figures(decisions_s, sum(decisions_s))
    whole_s = sum(seconds for _, seconds in took_s)
    with_heartbeats = {"with_heartbeats_per_s": len(took_s) / whole_s}
    return {"what": "engine", "workers": workers, "rounds": rounds, **figures, **with_heartbeats}


def memory_row(workers: int, rounds: int) -> dict[str, Cell]:
    """Bytes that the engine holds for each worker when the last round has closed; the swarm's own are not counted."""
    tracemalloc.start()
    swarm = Swarm(workers, rounds)
    engine = swarm.create()
    for _ in played(swarm, engine):
        pass
    swarm.__dict__.clear()
    gc.collect()
    whole = tracemalloc.get_traced_memory()[0]
    del engine
    gc.collect()
    held = whole - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"what": "memory", "workers": workers, "rounds": rounds, "kb_a_worker": held / workers / 1000}


def pump_row(workers: int, rounds: int) -> dict[str, Cell]:
    """Events through the real pump into a real journal, with 64 calls waiting at any time."""
    with tempfile.TemporaryDirectory(prefix="barnraise-scale-") as folder:
        started_s = time.perf_counter()
        took_s = asyncio.run(_pumped(Swarm(workers, rounds), Path(folder)))
        whole_s = time.perf_counter() - started_s
    return {"what": "pump", "workers": workers, "rounds": rounds, **_figures(sorted(took_s), whole_s)}


async def _pumped(swarm: Swarm, folder: Path) -> list[float]:
    engine = swarm.create()
    journal = Journal.create(folder / "journal.sqlite", engine_version=ENGINE_VERSION)
    pump = Pump(
        engine,
        journal,
        execute=swarm.result_of,
        dispatch=swarm.on_command,
        observer=_Silent(),
        clock=lambda: swarm.now_s,
    )
    took_s: list[float] = []
    pump.start()

    async def submit(event: Event) -> None:
        started_s = time.perf_counter()
        await pump.submit(event)
        took_s.append(time.perf_counter() - started_s)

    waiting: set[asyncio.Task[None]] = set()
    while not swarm.is_done:
        event = swarm.next_event()
        if isinstance(event, WorkerSeen):
            pump.seen(event)
            continue
        if event is not None:
            waiting.add(asyncio.create_task(submit(event)))
        if event is None and not waiting:
            await asyncio.sleep(0.001)  # the executor's thread is at work
        if len(waiting) >= IN_FLIGHT or (event is None and waiting):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    await asyncio.gather(*waiting)
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


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    sizes = (100, 300, 1000) if args.quick else (1000, 3000, 10_000)
    rounds = 2 if args.quick else 3
    measures: tuple[Callable[[int, int], dict[str, Cell]], ...] = (engine_row, pump_row, memory_row)
    rows = [measure(size, rounds) for measure in measures for size in sizes]
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
