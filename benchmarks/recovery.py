"""How long a coordinator takes to read its run back after a kill: from snapshot and tail, and from all events.

The events are a real run's: a real engine is driven, round after round, by workers that ask, commit and upload, and all
that it takes is appended to a real journal as the pump does it (256 events a commit, a snapshot every 2000 which cuts
what it covers). The process that wrote it never closes the file. Recovery is `Journal.open` and `load_engine`.

    python -m benchmarks.recovery [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Row, machine, parse_args, print_rows, write_json
from coordinator.engine import commands as cm
from coordinator.engine import events as ev
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.engine import Engine
from coordinator.engine.lease import GrantedLease
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.pump import MAX_BATCH, load_engine
from coordinator.run.pump_limits import PumpLimits
from coordinator.store.journal import Journal
from coordinator.store.ports import Snapshot
from protocol.ids import RunId, WorkerId, digest_of
from simulator.virtual.canned import canned_result

SECRET = b"of the benchmark"
WORKERS = 50
COLUMNS = 16
GOAL_S = 5.0


def main() -> None:
    """Print one row for each size of journal."""
    arguments = parse_args(__doc__ or "")
    sizes = [20_000] if arguments.quick else [100_000, 1_000_000]
    whole = 5_000 if arguments.quick else 20_000
    rows: list[Row] = [_measured(size, cut=True) for size in sizes]
    rows.append(_measured(whole, cut=False))
    print_rows(rows)
    print(machine())
    if arguments.json is not None:
        write_json(arguments.json, rows)


def _measured(events: int, *, cut: bool) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        began_s = time.perf_counter()
        writer = _write(path, events, cut=cut)
        wrote_s = time.perf_counter() - began_s
        size_bytes = sum(one.stat().st_size for one in path.parent.iterdir())
        began_s = time.perf_counter()
        journal = Journal.open(path)
        opened_s = time.perf_counter() - began_s
        engine, _ = load_engine(journal, SECRET)
        recovered_s = time.perf_counter() - began_s
        snapshot = journal.latest_snapshot()
        position = journal.last_position
        assert engine.snapshot() == writer.engine.snapshot(), "what was recovered is not what was there"
        journal.close()
        writer.journal.close()
    return {
        "events": position,
        "replayed": position - (snapshot.position if snapshot else 0),
        "rounds": int(engine.state.round.round),
        "snapshot_kb": len(snapshot.state) / 1e3 if snapshot else 0.0,
        "files_mb": size_bytes / 1e6,
        "open_s": opened_s,
        "recovery_s": recovered_s,
        "goal_s": GOAL_S if cut else None,
        "writing_s": wrote_s,
    }


class _Writer:
    """An engine and its journal, as the pump keeps them."""

    def __init__(self, path: Path, *, cut: bool) -> None:
        inner = InnerRecipe(inner_steps=8, batch_sequences=4)
        config = EngineConfig(
            run_id=RunId("recovery"), columns=COLUMNS, train_sequences=1 << 30, max_rounds=1 << 30, gather_s=0.0,
            min_grace_s=0.0, min_workers=WORKERS, heartbeat_interval_s=1e9, inner=inner,
        )  # fmt: skip
        created = ev.RunCreated(
            at_s=0.0, engine_version=ENGINE_VERSION, config=config, base_manifest=digest_of(b"version 0")
        )
        self.journal = Journal.create(path, engine_version=ENGINE_VERSION)
        self.journal.append([event_to_json(created)])
        self.engine, self._todo = Engine.create(created, SECRET)[0], deque[ev.Event]()
        self._batch: list[str] = []
        self._cut, self._since_cut = cut, 0

    def write(self, events: int) -> None:
        """Append and apply until the journal has so many."""
        waves = self._waves()
        while self.journal.last_position + len(self._batch) < events:
            # A whole wave asks before anybody answers: so everybody has a lease in every round.
            for event in [self._todo.popleft()] if self._todo else next(waves):
                self._take(event)
        self._commit()

    def _take(self, event: ev.Event) -> None:
        self._batch.append(event_to_json(event))
        for command in self.engine.handle(event):
            self._todo.extend(_answers(command, event.at_s))
        if len(self._batch) == MAX_BATCH:
            self._commit()

    def _commit(self) -> None:
        self.journal.append(self._batch)
        self._since_cut += len(self._batch)
        self._batch = []
        # Not at the very end: a kill finds a tail, at worst one as long as this.
        if self._cut and self._since_cut >= PumpLimits().snapshot_every:
            state = json.dumps(self.engine.snapshot(), separators=(",", ":"), allow_nan=True)
            position = self.journal.last_position
            self.journal.save_snapshot(Snapshot(position=position, engine_version=ENGINE_VERSION, state=state))
            self._since_cut = 0

    def _waves(self) -> Iterator[list[ev.Event]]:
        """What comes from outside: everybody enrols, then asks for work whenever nothing else is to be done."""
        workers = [WorkerId(f"{number:032x}") for number in range(WORKERS)]
        yield [
            ev.WorkerEnrolled(at_s=0.0, worker=worker, name="w", trusted=False, max_columns=4, tokens_per_s=1000.0)
            for worker in workers
        ]
        now_s = 1.0
        while True:
            now_s += 60.0
            yield [ev.LeaseRequested(at_s=now_s, worker=worker) for worker in workers] + [ev.Ticked(at_s=now_s + 1.0)]


def _write(path: Path, events: int, *, cut: bool) -> _Writer:
    writer = _Writer(path, cut=cut)
    writer.write(events)
    return writer


def _answers(command: cm.Command, at_s: float) -> list[ev.Event]:
    """What workers and executor do about a command."""
    match command:
        case cm.GrantLease(lease=lease):
            return _submission(lease, at_s)
        case cm.SlowCommand():
            return [canned_result(command, at_s, gain=lambda: 0.1)]
    return []


def _submission(lease: GrantedLease, at_s: float) -> list[ev.Event]:
    digest = digest_of(lease.lease_id.encode())
    return [
        ev.SubmissionCommitted(
            at_s=at_s, worker=lease.worker, lease_id=lease.lease_id, digest=digest, payload_bytes=1000, codec="bf16",
            inner_steps_done=lease.inner_steps, train_loss_first=5.0, train_loss_last=4.0, train_s=1.0,
        ),
        ev.SubmissionUploaded(at_s=at_s, worker=lease.worker, lease_id=lease.lease_id, digest=digest),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
