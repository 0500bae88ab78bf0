"""How soon audits find liars who were honest until they were trusted, and that they ban nobody else: no training.

    python -m benchmarks.sleepers [--quick] [--jobs N] [--runs N] [--rows TEXT] [--distances FILE] [--json FILE]

The real engine in virtual time, among sixteen workers four sleepers and, beside the coordinator, one founder as second
auditor: from round 11 on they lie always, in 30 % or in 10 % of their rounds. What an auditor finds is data: of honest
leases and of each lie the distances in FILE (`benchmarks.replays`). Rows of kind `lie`: how many sleepers were found
within 60 rounds, beside 1 - (1 - p h)^R, with h the share of lies: `expected` has, in place of R rounds at p, the
audits that honest workers of the same runs really had in those rounds (the mean of 1 - (1 - h)^audits: the same, but
p need not be constant); `low` and `high` are its 95 % interval, `p` is the share of honest leases that were
audited. Kind `alone`: without a founder nobody is banned; `weighed_after` counts submissions that weighed something in
a round after their worker had been found. Kind `honest`: 10,000 worker-rounds with dropouts of 30 %, mixed cuts and
speeds up to 20 times apart; every ban there is one too many. One row is of ten runs whose leases are really trained
and lied about (sleepers_real.py). `--json` keeps the rows of FILE that are not played anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Cell, machine, print_rows
from benchmarks.sleepers_real import LIES_ALONE, RealSwarm, play
from benchmarks.stubbed_swarm import SLEPT, WATCHED, AuditedLoop, StubbedSwarm
from coordinator.engine.config import AuditConfig

REPLAYED: Final = Path(__file__).parents[1] / "results" / "replayed_honest.json"
HONEST: Final = "honest"
_COLUMNS: Final = [
    {"heading": heading, "shows": shows}
    for heading, shows in (
        ("who", "{who}"),
        ("budget, leases a round", "{budget:g}"),
        ("runs", "{runs}"),
        ("p", "{p:.1%}"),
        ("found", "{found:.1%}"),
        ("expected (95 %)", "{expected:.1%} ({low:.1%} to {high:.1%})"),
        ("banned", "{banned:.1%}"),
        ("rounds until the ban, half and nine tenths of them", "{half}, {most}"),
        ("weighed after that", "{weighed_after}"),
        ("honest worker-rounds", "{worker_rounds:,}"),
        ("honest banned", "{honest_banned}"),
        ("honest refused", "{honest_refused}"),
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What became of one worker of one run."""

    sleeper: bool
    trusted: bool
    done: int
    audited: int
    found: int
    banned: int
    weighed_after: int
    granted: int
    refused: Mapping[str, int]


def watch(swarm: StubbedSwarm) -> list[Watched]:
    """Each worker of one run, to its end."""
    loop = AuditedLoop(swarm)
    loop.run()
    records = loop.engine.state.workers
    return [
        Watched(
            sleeper=bool(one.lies),
            trusted=one.trusted,
            done=one.done,
            audited=one.audited,
            found=one.found,
            banned=one.banned or int(records[one.worker].ban is not None),
            weighed_after=one.weighed_after,
            granted=records[one.worker].leases_granted,
            refused=dict(records[one.worker].rejected),
        )
        for one in loop.workers.values()
    ]


def watch_real(run: RealSwarm) -> list[Watched]:
    """Each worker of one run with real training, to its end."""
    state, tallies, sleepers = play(run)
    return [
        Watched(
            sleeper=worker in sleepers,
            trusted=state.workers[worker].trusted,
            done=one.done,
            audited=len(one.audited),
            found=one.found,
            banned=one.banned or int(state.workers[worker].ban is not None),
            weighed_after=one.weighed_after,
            granted=state.workers[worker].leases_granted,
            refused=dict(state.workers[worker].rejected),
        )
        for worker, one in tallies.items()
    ]


def _watch_any(run: StubbedSwarm | RealSwarm) -> list[Watched]:
    return watch_real(run) if isinstance(run, RealSwarm) else watch(run)


def lie_row(share: float, workers: Sequence[Watched]) -> dict[str, Cell]:
    """What became of all sleepers of one kind, beside what the audits of their honest peers let expect."""
    sleepers = [one for one in workers if one.sleeper]
    peers = [one for one in workers if not one.sleeper and not one.trusted]
    likely = [1.0 - (1.0 - share) ** one.audited for one in peers]
    mean = statistics.fmean(likely)
    error = math.sqrt(mean * (1.0 - mean) / len(sleepers) + statistics.pvariance(likely) / len(likely))
    found = sum(one.found > 0 for one in sleepers) / len(sleepers)
    low, high = max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)
    waits = sorted(one.banned - SLEPT for one in sleepers if one.banned)
    p = sum(one.audited for one in peers) / sum(one.done for one in peers)
    row: dict[str, Cell] = {
        "sleepers": len(sleepers),
        "p": p,
        "found": found,
        "formula": 1.0 - (1.0 - p * share) ** WATCHED,
        "expected": mean,
        "low": low,
        "high": high,
        "as_predicted": low - 1e-9 <= found <= high + 1e-9,
        "banned": len(waits) / len(sleepers),
        "weighed_after": sum(one.weighed_after for one in sleepers),
        **honest_cells([one for one in workers if not one.sleeper]),
    }
    if waits:
        row |= {"half": waits[(len(waits) - 1) // 2], "most": waits[math.ceil(0.9 * len(waits)) - 1]}
    return row


def honest_cells(workers: Sequence[Watched]) -> dict[str, Cell]:
    """Of those who never lied."""
    refused: dict[str, int] = {}
    for one in workers:
        for key, count in one.refused.items():
            refused[key] = refused.get(key, 0) + count
    return {
        "worker_rounds": sum(one.granted for one in workers),
        "honest_banned": sum(one.banned > 0 for one in workers),
        "honest_refused": ", ".join(f"{count} {key}" for key, count in sorted(refused.items())) or "0",
    }


def swarms_of(
    distances: Mapping[str, Sequence[float]], runs: int, folder: Path
) -> Iterable[tuple[dict[str, Cell], Sequence[StubbedSwarm | RealSwarm]]]:
    """What each row is called, and the runs that it is made of."""
    most = AuditConfig().tolerance
    tolerable = [kind for kind, found in distances.items() if kind != HONEST and min(found) <= most]
    lies = [one for kind, found in distances.items() if kind not in {HONEST, *tolerable} for one in found]
    known = {HONEST: distances[HONEST], "any lie": lies, **{kind: distances[kind] for kind in tolerable}}

    def slept(seeds: int, lie: str, share: float, budget: float, founders: int) -> list[StubbedSwarm]:
        common: dict[str, Any] = {"rounds": SLEPT + WATCHED, "sleepers": 4, "distances": known, "lie": lie}
        common |= {"share": share, "budget": budget, "founders": founders}
        return [StubbedSwarm(seed=seed, **common) for seed in range(seeds)]

    words = {1.0: "always", 0.3: "in 30 % of their rounds", 0.1: "in 10 %"}
    for budget in (16.0, 2.0):
        for share, when in words.items():
            name: dict[str, Cell] = {"kind": "lie", "who": f"sleepers, {when}", "share": share, "budget": budget}
            yield name, slept(runs, "any lie", share, budget, 1)
    alone: dict[str, Cell] = {"kind": "alone", "who": "sleepers, in 30 %, no founder", "share": 0.3, "budget": 16.0}
    yield alone, slept(runs, "any lie", 0.3, 16.0, 0)
    for kind in tolerable:
        yield {"kind": "lie", "who": f"{kind}, always", "share": 1.0, "budget": 16.0}, slept(runs, kind, 1.0, 16.0, 1)
    trained = [RealSwarm(seed=seed, attack=LIES_ALONE, rounds=SLEPT + WATCHED, folder=folder) for seed in range(10)]
    name = {"kind": "lie", "who": "sleepers, in 30 %, really trained", "share": 0.3, "budget": 16.0}
    yield name, trained[: max(1, runs // 10)]
    for budget in (20.0, 2.0):
        everybody: dict[str, Any] = {"workers": 20, "rounds": 50, "budget": budget, "distances": known}
        everybody |= {"dropout": 0.3, "fastest": 20.0, "mixed_cuts": True}
        swarms = [StubbedSwarm(seed=seed, **everybody) for seed in range(max(1, math.ceil(0.12 * runs)))]
        yield {"kind": HONEST, "who": "nobody lies, ×20 speeds, 30 % dropout", "budget": budget}, swarms


def main() -> None:
    """Play and print."""
    args = _arguments()
    measured = json.loads(args.distances.read_text(encoding="utf-8"))["rows"]
    distances = {row["kind"]: row["distances"] for row in measured}
    runs = args.runs or (3 if args.quick else 100)
    rows: list[dict[str, Cell]] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for name, swarms in swarms_of(distances, runs, args.out):
            if args.rows not in f"{name['kind']} {name['who']} {name['budget']:g}":
                continue
            workers = [one for run in pool.map(_watch_any, swarms) for one in run]
            lying = any(one.sleeper for one in workers)
            cells = lie_row(float(name["share"] or 0.0), workers) if lying else honest_cells(workers)
            rows.append({**name, "runs": len(swarms), **cells})
            print_rows(rows[-1:])
            if args.json is not None:
                _write(args.json, rows, known=swarms_of(distances, 1, args.out))
    print(machine())
    print_rows(rows)


def _write(path: Path, rows: Sequence[Mapping[str, Cell]], known: Iterable[tuple[Mapping[str, Cell], Any]]) -> None:
    """The rows, and those of the file that were not played, in their usual order."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    key: Callable[[Mapping[str, Cell]], tuple[Cell, Cell]] = lambda row: (row["who"], row["budget"])  # noqa: E731
    latest = {key(row): row for row in (*before, *rows)}
    ordered = [latest[key(name)] for name, _ in known if key(name) in latest]
    head = {"command": "python -m benchmarks.sleepers", "machine": machine(), "date": str(datetime.date.today())}
    path.write_text(json.dumps({**head, "columns": _COLUMNS, "rows": ordered}, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three runs of each row")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=int, default=0, help="of each row; 100 by default, 12 where nobody lies")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only those whose kind, name and budget have it")
    parser.add_argument(
        "--distances", type=Path, default=REPLAYED, metavar="FILE", help="what benchmarks.replays wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("byzantine-results"), help="where data and weights are kept")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write a file of results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
