"""Thousands of kills in one simulated run, and what they cost the model that is trained in it.

    python -m benchmarks.kills [--kills N] [--rounds N] [--seed S] [--seeds N] [--quorum N] [--quick] [--json FILE]

Each seed is run twice, undisturbed and with its coordinator and workers killed at every place where they can die; what
was not synced is lost with half of the coordinator's deaths. The engine, pump, sessions, training, aggregation and
validation are real, only time and the network are simulated. Leaves with 1 where a promise was broken (a submission
that was acknowledged is lost, an outer step is taken twice, ...), fewer kills struck than asked, or the final held-out
loss ends more than 1 % above the undisturbed one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import report
from simulator.deterministic.kills import REPLICAS, KillOutcome, run_with_kills

KILLS, ROUNDS = 2000, 100
QUICK_KILLS, QUICK_ROUNDS = 60, 6
MOST_DIFFERENCE_PERCENT = 1.0
SHOW_EVERY = 10
_MEMORY = Path("/dev/shm")


def main() -> int:
    """Run what was asked for; 1 where it was not borne out."""
    options = _options()
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    print(report.machine())
    rows, places, cut = [], Counter[str](), Counter[str]()
    for seed in range(options.seed, options.seed + options.seeds):
        begin = time.perf_counter()
        quiet, killed = (run(seed, rounds, times, options.quorum) for times in (0, kills))
        places += killed.places
        cut += killed.interrupted
        rows.append(row(seed, rounds, quiet, killed, time.perf_counter() - begin))
    report.print_rows([{"killed": place, "times": times} for place, times in sorted(places.items())])
    report.print_rows([{"cut_short": what, "kills": times} for what, times in cut.most_common()])
    report.print_rows([{"figure": key, **{f"seed {one['seed']}": one[key] for one in rows}} for key in rows[0]])
    if len(rows) > 1:
        percents = [float(str(one["difference_percent"])) for one in rows]
        print(f"difference: mean {statistics.mean(percents):+.3f} %, deviation {statistics.stdev(percents):.3f} %")
    if options.json is not None:
        report.write_json(options.json, rows)
    return int(not all(is_borne_out(one, kills, rounds) for one in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills in {QUICK_ROUNDS} rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--kills", type=int, default=None, help=f"in each run (default {KILLS})")
    parser.add_argument("--rounds", type=int, default=None, help=f"of each run (default {ROUNDS})")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    told = "accepted submissions that close a column (default: all replicas)"
    parser.add_argument("--quorum", type=int, default=REPLICAS, choices=range(1, REPLICAS + 1), help=told)
    options: argparse.Namespace = parser.parse_args()
    return options


def run(seed: int, rounds: int, kills: int, quorum: int = REPLICAS) -> KillOutcome:
    """One run, in a folder that is gone afterwards; a line for every few rounds."""
    shown: set[int] = set()

    def progress(version: int, loss: float, struck: int) -> None:
        if version % SHOW_EVERY == 0 and version not in shown:
            shown.add(version)
            told = f"{struck} of {kills} kills" if kills else "undisturbed"
            print(f"seed {seed}, {told}: version {version} of {rounds}, held-out loss {loss:.4f}", file=sys.stderr)

    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        outcome = run_with_kills(
            seed, rounds=rounds, kills=kills, folder=Path(folder), quorum=quorum, progress=progress
        )
    if outcome.outcome.violation is not None:
        print(f"seed {seed}, {kills} kills: {outcome.outcome.violation}")
    return outcome


def row(seed: int, rounds: int, quiet: KillOutcome, killed: KillOutcome, wall_s: float) -> report.Row:
    """Both runs of one seed side by side."""
    fates, outcome = killed.fates, killed.outcome
    begin, end, end_killed = quiet.val_losses[0], quiet.val_losses.get(rounds), killed.val_losses.get(rounds)
    difference = None if end is None or end_killed is None else 100.0 * (end_killed - end) / end
    return {
        "seed": seed,
        "rounds": rounds,
        "kills": killed.kills,
        "coordinator_kills": outcome.coordinator_kills,
        "worker_kills": outcome.worker_kills,
        "cut_nothing": killed.interrupted["nothing"],
        "acknowledged": outcome.acknowledged,
        "counted": fates["counted"],
        "refused": sum(times for fate, times in fates.items() if fate.startswith("refused")),
        "acknowledged_lost": fates["open"],
        "outer_steps": outcome.versions,
        "outer_steps_repeated": max(0, outcome.versions - rounds),
        "leases_expired": killed.leases_lost,
        "leases_taken_up": killed.taken_up,
        "leases_begun_anew": killed.retrained,
        "virtual_h": outcome.virtual_s / 3600,
        "virtual_h_undisturbed": quiet.outcome.virtual_s / 3600,
        "tokens": killed.tokens_trained,
        "tokens_undisturbed": quiet.tokens_trained,
        "entropy": quiet.entropy,
        "loss_begin": begin,
        "loss_undisturbed": end,
        "loss_killed": end_killed,
        "difference_percent": difference,
        "violation": quiet.outcome.violation or outcome.violation,
        "wall_s": wall_s,
    }


def is_borne_out(one: report.Row, kills: int, rounds: int) -> bool:
    """Whether a row says what is claimed."""
    difference = one["difference_percent"]
    return (
        one["violation"] is None
        and (one["kills"], one["outer_steps"], one["acknowledged_lost"]) == (kills, rounds, 0)
        and isinstance(difference, float)
        and difference <= MOST_DIFFERENCE_PERCENT
    )


if __name__ == "__main__":
    sys.exit(main())
