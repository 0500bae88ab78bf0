"""Seeds a second of the deterministic simulation, and whether any of them breaks a promise.

    python -m benchmarks.seeds [--seeds N] [--first N] [--sharing] [--jobs N] [--quick] [--json FILE]
    python -m benchmarks.seeds --seed N [--trace]     one seed again, and what happened in it
    python -m benchmarks.seeds --planted              seeds needed to find each planted bug

A seed is one whole run under virtual time: workers, network, faults and restarts are drawn from it.
Leaves with 1 where an invariant broke, and names the first seeds that did it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report
from simulator.deterministic.outcome import Outcome
from simulator.deterministic.planted import PLANTED
from simulator.deterministic.scenario import scenario_of
from simulator.deterministic.world import run_seed
from simulator.holders import Gives

QUICK_SEEDS = 500
SEEDS = 2000
MOST_SEEDS_FOR_A_BUG = 1000
CHUNK = 50
COLLECT_EVERY = 10
SHOWN_FAILURES = 5
COLUMNS = (
    {"heading": "which", "shows": "{which}"},
    {"heading": "seeds", "shows": "{seeds:,}"},
    {"heading": "of", "shows": "{of:,}"},
    {"heading": "from", "shows": "{first:,}"},
    {"heading": "violations", "shows": "{violations}"},
    {"heading": "seeds in which blocks came from workers", "shows": "{sharing:,}"},
    {"heading": "such blocks", "shows": "{blocks_between_workers:,}"},
    {"heading": "events", "shows": "{events:,}"},
    {"heading": "outer steps", "shows": "{outer_steps:,}"},
    {"heading": "acknowledged submissions", "shows": "{acknowledged:,}"},
    {"heading": "kills of the coordinator", "shows": "{coordinator_kills:,}"},
    {"heading": "of workers", "shows": "{worker_kills:,}"},
    {"heading": "virtual hours", "shows": "{virtual_hours:,.0f}"},
    {"heading": "seeds a second", "shows": "{seeds_per_s:.1f}"},
)
PLANTED_COLUMNS = (
    {"heading": "bug", "shows": "{what}"},
    {"heading": "seeds needed", "shows": "{seeds_needed}"},
)


def main() -> int:
    """Run what was asked for; 1 where an invariant broke."""
    options = _options()
    if options.seed is not None:
        return show(options.seed, trace=options.trace)
    print(report.machine())
    rows = planted_rows() if options.planted else [seeds_row(options)]
    report.print_rows(rows)
    if options.json is not None:
        columns = PLANTED_COLUMNS if options.planted else COLUMNS
        report.write_results(options.json, rows, command=_command(rows, options), columns=columns)
    return int(any(row["violations"] != row["expected"] for row in rows))


def _command(rows: Sequence[report.Row], options: argparse.Namespace) -> str:
    asked = "--planted" if options.planted else f"--first {options.first} --seeds {rows[0]['of']}"
    asked += " --sharing" * options.sharing
    return f"python -m benchmarks.seeds {asked}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--seeds", type=int, default=None, help=f"how many (default {SEEDS})")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--sharing", action="store_true", help="of these, those in which workers give blocks to others")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=None, help="this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happened")
    parser.add_argument("--planted", action="store_true", help="find the planted bugs instead")
    options: argparse.Namespace = parser.parse_args()
    return options


def show(seed: int, *, trace: bool) -> int:
    """One seed again."""
    outcome = run_seed(seed, trace=trace)
    for line in outcome.trace:
        print(line)
    print(
        f"seed {seed}: {outcome.violation or 'no violation'} ({outcome.events} events, {outcome.versions} versions, "
        f"{outcome.virtual_s:.0f} virtual seconds, history {outcome.history[:16]})"
    )
    return int(outcome.violation is not None)


def seeds_row(options: argparse.Namespace) -> report.Row:
    """All seeds, in as many processes as asked."""
    count = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    begin = time.perf_counter()
    drawn = range(options.first, options.first + count)
    outcomes = list(_outcomes([seed for seed in drawn if not options.sharing or _shares(seed)], options.jobs))
    wall_s = time.perf_counter() - begin
    broken = [outcome for outcome in outcomes if outcome.violation is not None]
    for outcome in broken[:SHOWN_FAILURES]:
        print(f"seed {outcome.seed}: {outcome.violation}\n  python -m benchmarks.seeds --seed {outcome.seed} --trace")
    return {
        "which": "those in which workers share" if options.sharing else "all",
        "seeds": len(outcomes),
        "of": count,
        "first": options.first,
        "jobs": options.jobs,
        "violations": len(broken),
        "expected": 0,
        "seeds_per_s": len(outcomes) / wall_s,
        "wall_s": wall_s,
        "events": sum(outcome.events for outcome in outcomes),
        "outer_steps": sum(outcome.versions for outcome in outcomes),
        "acknowledged": sum(outcome.acknowledged for outcome in outcomes),
        "coordinator_kills": sum(outcome.coordinator_kills for outcome in outcomes),
        "worker_kills": sum(outcome.worker_kills for outcome in outcomes),
        "sharing": sum(outcome.blocks_between_workers > 0 for outcome in outcomes),
        "blocks_between_workers": sum(outcome.blocks_between_workers for outcome in outcomes),
        "virtual_hours": sum(outcome.virtual_s for outcome in outcomes) / 3600,
    }


def _shares(seed: int) -> bool:
    """Whether workers give blocks to others in that world."""
    return any(volunteer.gives is not Gives.NOTHING for volunteer in scenario_of(seed).volunteers)


def _outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if jobs <= 1:
        for chunk in chunks:
            yield from _run_chunk(chunk)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcomes in pool.imap(_run_chunk, chunks):
            yield from outcomes


def _run_chunk(seeds: Sequence[int]) -> list[Outcome]:
    """Garbage is collected between seeds only, and what the program itself consists of is not looked through."""
    if not gc.get_freeze_count():
        gc.freeze()
    gc.disable()
    outcomes = []
    for seed in seeds:
        outcomes.append(run_seed(seed))
        if len(outcomes) % COLLECT_EVERY == 0 or len(outcomes) == len(seeds):
            gc.collect()
    gc.enable()
    return outcomes


def planted_rows() -> list[report.Row]:
    """For each planted bug, the first seed that finds it."""
    return [find(bug.name) for bug in PLANTED]


def find(name: str, most_seeds: int = MOST_SEEDS_FOR_A_BUG) -> report.Row:
    """The first seed that finds one planted bug."""
    bug = next(bug for bug in PLANTED if bug.name == name)
    begin = time.perf_counter()
    found: Outcome | None = None
    with bug.plant():
        for seed in range(most_seeds):
            outcome = run_seed(seed)
            if outcome.violation is not None:
                found = outcome
                break
    return {
        "planted": name,
        "what": bug.what,
        "violations": int(found is not None),
        "expected": 1,
        "seeds_needed": None if found is None else found.seed + 1,
        "wall_s": time.perf_counter() - begin,
        "told": None if found is None or found.violation is None else found.violation[:80],
    }


if __name__ == "__main__":
    sys.exit(main())
