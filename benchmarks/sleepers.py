"""How soon audits find liars who were honest until they were trusted, and that they ban nobody else: no training.

    python -m benchmarks.sleepers [--quick] [--jobs N] [--runs N] [--distances FILE] [--json FILE]

The real engine in virtual time, among sixteen workers four sleepers: from round 11 on they lie always, in 30 % or in
10 % of their rounds. What an auditor finds is data: for honest leases distances of honest replays, for each lie its own
(`DISTANCES` in stubbed_swarm.py, or a file with the same keys). Rows of kind `lie`: how many sleepers were found within
60 rounds, beside 1 - (1 - p1 h)(1 - p2 h)..., with h the share of rounds with lies and p the audit
probability that the engine gave at each of them (1 - (1 - p h)^R where p is constant); `low` and `high` are that
figure's 95 % interval over so many sleepers, `as_predicted` whether what was found lies within. Kind `honest`: 10,000
worker-rounds with dropouts of 30 % and speeds up to 20 times apart; every ban there is one too many.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.report import Cell, machine, print_rows, write_json
from benchmarks.stubbed_swarm import DISTANCES, SLEPT, WATCHED, AuditedLoop, StubbedSwarm


def found_by(swarm: StubbedSwarm) -> list[tuple[bool, bool, float]]:
    """Of each sleeper of one run: whether an audit told it, whether it was banned, and how likely that was."""
    loop = AuditedLoop(swarm)
    loop.run()
    records = loop.engine.state.workers
    liars = (one for one in loop.workers.values() if one.lies)
    return [(one.found, records[one.worker].ban is not None, 1.0 - one.unfound) for one in liars]


def honest_bans(swarm: StubbedSwarm) -> tuple[int, int, int]:
    """Worker-rounds, bans and failed audits of a swarm in which nobody lies."""
    loop = AuditedLoop(swarm)
    loop.run()
    records = list(loop.engine.state.workers.values())
    granted = sum(record.leases_granted for record in records)
    return granted, sum(record.ban is not None for record in records), sum(record.audits_failed for record in records)


def lie_row(lie: str, share: float, runs: Sequence[list[tuple[bool, bool, float]]]) -> dict[str, Cell]:
    """What became of all sleepers of one kind, beside what was to be expected."""
    every = [one for run in runs for one in run]
    expected = [likely for _, _, likely in every]
    mean = math.fsum(expected) / len(every)
    error = math.sqrt(math.fsum(p * (1.0 - p) for p in expected)) / len(every)
    found = sum(was for was, _, _ in every) / len(every)
    low, high = mean - 1.96 * error, mean + 1.96 * error
    return {
        "kind": "lie",
        "lie": lie,
        "share": share,
        "sleepers": len(every),
        "found": found,
        "expected": mean,
        "low": max(0.0, low),
        "high": min(1.0, high),
        "as_predicted": low - 1e-9 <= found <= high + 1e-9,
        "banned": sum(banned for _, banned, _ in every) / len(every),
    }


def main() -> None:
    """Play and print."""
    args = _arguments()
    distances = DISTANCES if args.distances is None else json.loads(args.distances.read_text(encoding="utf-8"))
    runs = args.runs or (5 if args.quick else 100)
    kinds = [(lie, share) for lie in distances if lie != "honest" for share in (1.0, 0.3, 0.1)]
    if args.quick:
        kinds = [(lie, share) for lie, share in kinds if lie in {"backdoor", "natural trigger"}]
    rows: list[dict[str, Cell]] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for lie, share in kinds:
            swarms = [
                StubbedSwarm(seed=seed, rounds=SLEPT + WATCHED, sleepers=4, lie=lie, share=share, distances=distances)
                for seed in range(runs)
            ]
            rows.append(lie_row(lie, share, list(pool.map(found_by, swarms))))
        honest = [
            StubbedSwarm(seed=seed, rounds=50, workers=20, dropout=0.3, fastest=20.0, distances=distances)
            for seed in range(2 if args.quick else 14)
        ]
        sums = [sum(column) for column in zip(*pool.map(honest_bans, honest), strict=True)]
    rows.append({"kind": "honest", "worker_rounds": sums[0], "banned": sums[1], "audits_failed": sums[2]})
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two lies, five runs each: under a minute")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=int, default=0, help="of each lie; 100 by default")
    parser.add_argument("--distances", type=Path, default=None, metavar="FILE", help="JSON: `honest` and lies to lists")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows to FILE, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
