"""A run of a billion parameters, end to end on one small machine: seconds by stage, memory, bytes each way.

    python -m benchmarks.billion [--quick] [--experts N] [--json FILE] [--rounds N] [--workers N]

Everything is the product's own, in processes of its own: the coordinator (engine, journal, edge, executor, 4 GB of
version 0 on disk) and each worker's agent (session, signed calls over TLS, fetcher, block cache, outbox). In place of
training, a worker sends half of the way from the version that it was leased to a fixed model, in int4, with noise of
its own; that model was made beforehand of version 0 by a few real steps on the run's text (each weight by its
gradient's sign), so that what comes has a gain and screening is real: norms, held-out gains, trust region, validation.
Three workers hold two thirds of the columns each, so that every column is held by two.

Rows: `init` (version 0 is written), `fixed model`, then for each round `fetch and make` (from opening to the last
commit: all workers fetch, then make what they send, one after the other, since they share the machine), `upload` (the
rest of it), `measure`, `aggregate` (trust region included), `validate`; and `whole run`. Columns: wall seconds and the
coordinator's processor seconds; of the whole run the coordinator's anonymous memory at most (RssAnon, read every
20 ms) beside the model's, bytes up and down, versions published, submissions accepted and refused, held-out loss. Linux
only.
`--quick`: a model of half a megabyte. `--experts`: fewer columns of the same size, a smaller model whose largest block
is as large. The whole takes 23 GB of disk and ten gigabytes of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import structlog

from benchmarks import billion_processes as processes
from benchmarks.billion_processes import BILLION, LITTLE, BillionPlan
from benchmarks.coordinator_memory import anonymous_mb
from benchmarks.report import Cell, Row, machine, print_rows, write_json
from benchmarks.sized_runs import invited
from coordinator.run.folder import RunFolder
from simulator.processes.launcher import ProcessGroup

INTERVAL_S = 0.02
PATIENCE_S = 5400.0
STAGES = {
    "fetch and make": "SubmissionCommitted",
    "upload": "SubmissionUploaded",
    "measure": "SubmissionMeasured",
    "aggregate": "RoundAggregated",
    "validate": "VersionValidated",
}
"""Each ends with the last of such events of its round."""


class WatchedProcess:
    """One process's anonymous memory and processor time, looked at until it is gone."""

    def __init__(self, pid: int) -> None:
        self._process, self.peak_mb = psutil.Process(pid), 0.0
        self._used: list[tuple[float, float]] = []
        """Seconds since 1970, and processor seconds by then."""
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while (now_mb := anonymous_mb(self._process.pid)) > 0.0:
            self.peak_mb = max(self.peak_mb, now_mb)
            self.looked(now_mb)
            with contextlib.suppress(psutil.Error):
                times = self._process.cpu_times()
                self._used.append((time.time(), times.user + times.system))
            time.sleep(INTERVAL_S)

    def looked(self, now_mb: float) -> None:
        """For those who want to know more at that moment."""

    def cpu_s(self, since_s: float, until_s: float) -> float:
        """Processor seconds between two moments."""
        before, after = (
            max((cpu for at_s, cpu in self._used if at_s <= one), default=0.0) for one in (since_s, until_s)
        )
        return after - before


def play(folder: Path, plan: BillionPlan) -> list[Row]:
    """The whole run."""
    began_s = time.monotonic()
    group = ProcessGroup()
    try:
        rows: list[Row] = list(_prepared(group, folder, plan))
        run = RunFolder.open(folder / "run")
        ours, theirs = group.pipe()
        coordinator = group.start(
            "coordinator", folder / "coordinator.log", processes.serve, run.root, plan.rounds, theirs
        )
        assert coordinator.pid is not None
        watched = WatchedProcess(coordinator.pid)
        port = heard(ours, folder)
        for number in range(plan.workers):
            home = folder / f"worker-{number}"
            group.start(
                home.name, folder / f"{home.name}.log", processes.work, folder, plan, invited(run, port), number
            )
        told: dict[str, Cell] = heard(ours, folder)
        rows += _rounds(run, plan, watched)
    finally:
        group.stop(grace_s=0.0)
    model_mb = run.layout().total_bytes / 1e6
    whole: dict[str, Cell] = {
        "round": None, "stage": "whole run", "seconds": time.monotonic() - began_s, **told,
        "parameters": run.layout().parameters, "model_mb": model_mb, "anonymous_mb": watched.peak_mb,
        "beyond_mb": watched.peak_mb - model_mb,
    }  # fmt: skip
    return [*rows, whole]


def _prepared(group: ProcessGroup, folder: Path, plan: BillionPlan) -> Iterator[Row]:
    for stage, step in (("init", processes.begin), ("fixed model", processes.fix)):
        began_s = time.monotonic()
        ours, theirs = group.pipe()
        group.start(stage, folder / "prepare.log", step, folder, plan, theirs)
        theirs.close()
        heard(ours, folder)
        yield {"round": None, "stage": stage, "seconds": time.monotonic() - began_s}


def heard(pipe: Any, folder: Path) -> Any:
    """What a child says; its log, where it ends without a word."""
    try:
        if not pipe.poll(PATIENCE_S):
            raise TimeoutError(f"nothing for {PATIENCE_S:g} s")
        return pipe.recv()
    except (EOFError, TimeoutError):
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        raise


def _rounds(run: RunFolder, plan: BillionPlan, watched: WatchedProcess) -> Iterator[Row]:
    """By round, from one event of the journal to the next."""
    records = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    events = [one for one in records if one["kind"] == "event"]
    since_s = next(float(one["wall_s"]) for one in events if one["name"] == "LeaseRequested")
    for number in range(1, plan.rounds + 1):
        for stage, name in STAGES.items():
            ended = [float(one["wall_s"]) for one in events if one["name"] == name and _round_of(one["data"]) == number]
            until_s = max(since_s, *ended)
            yield {
                "round": number, "stage": stage, "seconds": until_s - since_s, "cpu_s": watched.cpu_s(since_s, until_s)
            }  # fmt: skip
            since_s = until_s


def _round_of(event: Mapping[str, Any]) -> int:
    """In which it happened: a lease's name begins with it, and a version has its round's number."""
    if "lease_id" in event:
        return int(str(event["lease_id"]).partition(".")[0].lstrip("r"))
    return int(event.get("round", event.get("version", 0)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: a tiny model, same columns")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--experts", type=int, default=BILLION.experts, help="columns of 25 million parameters each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rounds = 2 if args.quick else args.rounds
    shape = LITTLE if args.quick else dataclasses.replace(BILLION, experts=args.experts)
    plan = BillionPlan(shape=shape, rounds=rounds, workers=args.workers)
    with tempfile.TemporaryDirectory(prefix="barnraise-billion-") as folder:
        rows = play(Path(folder), plan)
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
