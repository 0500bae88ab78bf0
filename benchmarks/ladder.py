"""A large mixture of experts trained in little memory: each worker's memory beside its plan and beside the goal.

    python -m benchmarks.ladder [--quick] [--json FILE] [--experts N] [--rounds N] [--memory BYTES] [--set KEY=VALUE]

Everything is the product's own, in processes of its own: a coordinator with version 0 of a generated model of 1.5
billion parameters on disk, and two real workers that train their leases under `--memory`. Goal (issue 15): in two
rounds no worker takes more than a third of the model in bf16 and the trunk in bf16, beyond what it took before its
first lease. Rows, one a worker: columns, `planned_mb` (of the way in which the worker said that it trains), `taken_mb`
(RssAnon at most, read every 20 ms, less the last before its first lease), `goal_mb`; the last row is the coordinator's:
rounds published, submissions accepted and refused, its own anonymous memory, seconds.

`--set` changes a setting of the rounds, as inner.masters=bf16; the lowest rungs that a run may allow, but for a
trained trunk, are the default.
`--quick`: five million parameters; what it takes is then the libraries' more than the model's. The whole takes 9 GB of
memory, 25 GB of disk and three quarters of an hour on two cores, all estimated. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import structlog

from benchmarks import billion_processes as processes
from benchmarks.billion import WatchedProcess, heard
from benchmarks.billion_processes import BillionShape
from benchmarks.coordinator_memory import anonymous_mb
from benchmarks.report import Cell, Row, machine, print_rows, write_results
from benchmarks.sized_runs import invited
from coordinator.run.folder import RunFolder
from moe.layout import Layout
from moe.rungs import RUNGS
from protocol.ids import TRUNK
from simulator.processes.launcher import ProcessGroup

LARGE = BillionShape(hidden_size=1024, expert_size=512, layers=12, heads=16, experts=80)
LITTLE = BillionShape(hidden_size=128, expert_size=128, layers=4, heads=4, experts=24)
WORKERS = 2
COLUMNS = (
    {"heading": "who", "shows": "{who}"},
    {"heading": "columns held", "shows": "{columns}"},
    {"heading": "idle, MB", "shows": "{idle_mb:,.0f}"},
    {"heading": "planned, MB", "shows": "{planned_mb:,.0f}"},
    {"heading": "taken beyond idle, MB", "shows": "{taken_mb:,.0f}"},
    {"heading": "of the plan", "shows": "{of_plan:.2f}"},
    {"heading": "goal, MB", "shows": "{goal_mb:,.0f}"},
    {"heading": "versions", "shows": "{versions}"},
    {"heading": "accepted", "shows": "{accepted}"},
    {"heading": "held-out loss, before", "shows": "{first_loss:.3f}"},
    {"heading": "after", "shows": "{loss:.3f}"},
)
FIRST_RATES: Mapping[str, Any] = {"learning_rate": 0.002, "muon_learning_rate": 0.01}
"""Of a model's very first steps, which no warm-up makes short: at the usual ones, 8 times as long, two of them lower
the loss by a nat where half a step is taken, and break the model where all of it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPlan:
    """What is played; `benchmarks.billion_processes.begin` makes the run of it."""

    shape: BillionShape
    rounds: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the rounds' settings, `inner.masters` and the like."""

    @property
    def engine(self) -> Mapping[str, Any]:
        """Settings of the rounds."""
        # a trunk that is not trained is for a model that was trained before
        rungs = [rung for rung in RUNGS if rung.who == "run" and rung.name != "trunk"]
        lowest = {rung.name: list(rung.options)[-1] for rung in rungs}
        found: dict[str, Any] = {
            "gather_s": 0.0,
            "min_workers": WORKERS,
            "replicas": 1,
            "quorum": 1,
            "max_rounds": self.rounds,
            "checkpoint_every": 0,
            "validate_every": 1,
            "lease_ttl_s": 2400.0,
            "round_deadline_s": 3000.0,
            "fetch_s": 900.0,
            "audits": {"budget": 0.0},
            "inner": {"inner_steps": 2, "batch_sequences": 4, "warmup_steps": 0, **FIRST_RATES, **lowest},
        }
        for key, value in self.changes.items():
            place = found
            *parents, name = key.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = value
        return found


class WatchedWorker(WatchedProcess):
    """Besides, what it took just before its first lease, and what it said."""

    def __init__(self, pid: int, log: Path) -> None:
        self.idle_mb = 0.0
        self._log, self._leased = log, False
        super().__init__(pid)

    def looked(self, now_mb: float) -> None:
        """Until the first lease all of it is idle."""
        if not self._leased:
            self.idle_mb = now_mb
            self._leased = any(self.told("lease_granted"))

    @property
    def last(self) -> str:
        """What it said last."""
        return self._log.read_text().rstrip().rpartition("\n")[2] if self._log.is_file() else "nothing"

    def told(self, event: str) -> list[dict[str, Any]]:
        """Its news of one kind."""
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        news = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [one for one in news if one.get("event") == event]


def goal_bytes(cut: Layout) -> int:
    """A third of the model in bf16, and the trunk in bf16."""
    return cut.total_bytes // 2 // 3 + cut.block_bytes(TRUNK) // 2


def play(folder: Path, plan: LadderPlan, memory_bytes: int | None) -> list[Row]:
    """The whole run."""
    began_s, group = time.monotonic(), ProcessGroup()
    try:
        ours, theirs = group.pipe()
        group.start("init", folder / "prepare.log", processes.begin, folder, plan, theirs)
        theirs.close()
        heard(ours, folder)
        run = RunFolder.open(folder / "run")
        ours, theirs = group.pipe()
        server = group.start("coordinator", folder / "coordinator.log", processes.serve, run.root, plan.rounds, theirs)
        assert server.pid is not None
        coordinator, port = WatchedProcess(server.pid), heard(ours, folder)
        workers: list[WatchedWorker] = []
        children: list[BaseProcess] = []
        cut = run.layout()
        for number in range(WORKERS):
            home = folder / f"worker-{number}"
            log = folder / f"{home.name}.log"
            child = group.start(home.name, log, work, home, invited(run, port), memory_bytes or 0, goal_bytes(cut))
            assert child.pid is not None
            children.append(child)
            workers.append(WatchedWorker(child.pid, log))
        while not ours.poll(1.0):
            ended = [child.exitcode for child in children]
            if None not in ended and (any(ended) or not server.is_alive()):
                raise SystemExit("\n".join(f"{one.last}" for one in workers) + "\nno worker is left: see above why")
        told: dict[str, Cell] = heard(ours, folder)
    finally:
        group.stop(grace_s=0.0)
    return [
        *(_row(number, worker, cut) for number, worker in enumerate(workers)),
        {
            "who": "coordinator", **told, "parameters": cut.parameters, "taken_mb": coordinator.peak_mb,
            "seconds": time.monotonic() - began_s,
        },
    ]  # fmt: skip


def _row(number: int, worker: WatchedWorker, cut: Layout) -> Row:
    scheduled = worker.told("scheduled")
    planned_mb = max((one["needed_bytes"] / 1e6 for one in scheduled), default=None)
    taken_mb, goal_mb = worker.peak_mb - worker.idle_mb, goal_bytes(cut) / 1e6
    return {
        "who": f"worker {number}", "columns": worker.told("planned")[0]["columns"],
        "leases": len(worker.told("lease_granted")), "idle_mb": worker.idle_mb,
        "planned_mb": planned_mb, "taken_mb": taken_mb,
        "of_plan": None if planned_mb is None else taken_mb / planned_mb, "goal_mb": goal_mb,
        "met": taken_mb <= goal_mb, "how": scheduled[-1]["text"] if scheduled else "",
    }  # fmt: skip


def work(home: Path, link: str, memory_bytes: int, goal: int) -> None:
    """A real worker, until the run is over; without `memory_bytes` it may take the goal beyond what it has now."""
    import os

    import torch

    from protocol.allocator import keep_little
    from worker.join import WorkerOptions, run_worker

    keep_little()
    torch.set_num_threads(1)
    own_bytes = int(anonymous_mb(os.getpid()) * 1e6)
    options = WorkerOptions(
        link=link, home=home, name=home.name, device="cpu", threads=1, measure_speed=False, measures=False,
        output="json", memory_bytes=memory_bytes or own_bytes + goal,
        batch_hook=lambda _lease, sequences_NL: sequences_NL,  # with a hook it trains in this process, which is watched
    )  # fmt: skip
    sys.exit(run_worker(options))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: five million parameters")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--experts", type=int, default=None, help="columns of 19 million parameters each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", type=int, default=None, help="a worker's whole process, in bytes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the rounds")
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    shape = LITTLE if args.quick else LARGE
    if args.experts is not None:
        import dataclasses

        shape = dataclasses.replace(shape, experts=args.experts)
    changes = {key: _value(text) for key, _, text in (one.partition("=") for one in args.set)}
    memory = args.memory if args.memory is not None or not args.quick else 1 << 30
    with tempfile.TemporaryDirectory(prefix="barnraise-ladder-") as folder:
        rows = play(Path(folder), LadderPlan(shape=shape, rounds=args.rounds, changes=changes), memory)
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_results(
            args.json, rows, command="python -m benchmarks.ladder", columns=COLUMNS, beside="beside other work"
        )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
