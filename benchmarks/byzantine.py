"""What liars cost: attacks against the product and against plainer defences, by the same run with the liars absent.

    python -m benchmarks.byzantine [--quick | --worst] [--jobs N] [--attacks A,B,FILE.py:NAME] [--defences D,E]
                                   [--codec CODEC] [--most N] [--seeds N] [--rounds N] [--out DIR] [--json FILE]

A micro model (46,000 parameters) is trained by the real engine, executor and trainer in virtual time, liars among the
workers (simulator/adversaries). `--quick` is eleven attacks on whole models, undefended and defended; without it every
attack on whole models, halves and thirds; `--worst` the ten (`--most`) that cost most in what is there already, at
f = 5: defended by three seeds, and by one against every baseline and with one stage switched off at a time. `--codec`
has everybody, liars too, send in another codec, against the same run without liars in that codec. Each run is kept in
DIR/runs.jsonl as soon as it is there, and not run again: an interrupted list goes on. FILE gets all rows of DIR.

Columns: `loss_ratio`, final held-out loss over that of the same run without liars; `trigger_rate`, the share of clean
held-out sequences after which, the trigger put in, the model says the chosen token (`trigger_clean`: without liars);
who was banned, and how many honest submissions were refused. `hurts`: whether the attack was shown to do harm
undefended; `misses`: the goals that the row does not meet.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.byzantine_rows import (
    DEFENCES,
    NOBODY,
    WORST,
    ByzantineCase,
    all_cases,
    hurts,
    misses,
    quick_cases,
    worst_cases,
)
from benchmarks.report import machine, print_rows, write_results
from coordinator.engine.version import ENGINE_VERSION
from protocol.codecs import BF16, CODECS
from protocol.errors import ConfigError
from simulator.adversaries.data import NATURAL
from simulator.adversaries.files import attack_named

ROUNDS = 40
"""The goal for backdoors is after so many."""
COLUMNS: Final[Sequence[Mapping[str, str]]] = (
    {"heading": "attack", "shows": "{attack}"},
    {"heading": "defence", "shows": "{defence}"},
    {"heading": "n, f", "shows": "{n}, {f}"},
    {"heading": "shards", "shows": "{replicas}"},
    {"heading": "seeds", "shows": "{seeds}"},
    {"heading": "loss over that without liars", "shows": "{cost_percent:+.1f} %"},
    {"heading": "trigger works (clean)", "shows": "{trigger_rate:.1%} ({trigger_clean:.1%})"},
    {"heading": "liars banned", "shows": "{byzantine_banned:g}"},
    {"heading": "honest banned", "shows": "{honest_banned:g}"},
    {"heading": "honest refused", "shows": "{honest_refused:g} of {honest_sent:g}"},
    {"heading": "shown to hurt", "shows": "{hurts_word}"},
    {"heading": "goal missed", "shows": "{misses}"},
)


def main() -> int:
    """Measure and print."""
    args = _arguments()
    try:
        names = _checked(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    from benchmarks.byzantine_run import prepared

    args.out.mkdir(parents=True, exist_ok=True)
    prepared(args.out)
    kept = Kept(args.out / "runs.jsonl", args.rounds)
    cases = _cases(args, names, kept)
    with_controls = list(dict.fromkeys([case.absent for case in cases] + cases))
    kept.run([case for case in with_controls if case not in kept], args.jobs, args.out)
    rows = table(cases, kept.runs)
    print(f"{machine()}; {args.rounds} rounds")
    print_rows([{key: row.get(key) for key in SHOWN} for row in rows])
    if args.json is not None:
        command = f"python -m benchmarks.byzantine {' '.join(sys.argv[1:])}"
        write_results(args.json, kept.rows_so_far(), command=command, columns=COLUMNS, rounds=args.rounds)
    return 0


SHOWN: Final = (
    "attack", "defence", "n", "f", "replicas", "codec", "seeds", "loss_ratio", "loss_ratio_se", "trigger_rate",
    "trigger_clean", "byzantine_banned", "honest_banned", "honest_refused", "hurts", "misses",
)  # fmt: skip


class Kept:
    """Runs that are there, by what they ran: the settings of the defence and the engine's version count, too."""

    def __init__(self, path: Path, rounds: int) -> None:
        self._path = path
        self._rounds = rounds
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._runs: dict[str, dict[str, Any]] = {run["key"]: run for run in map(json.loads, lines)}

    def __contains__(self, case: ByzantineCase) -> bool:
        return self._key(case) in self._runs

    @property
    def runs(self) -> Callable[[ByzantineCase], dict[str, Any] | None]:
        """The run of a case, where it is there."""
        return lambda case: self._runs.get(self._key(case))

    def rows_so_far(self) -> list[dict[str, Any]]:
        """Every run that is there beside its control, in the order of the defences."""
        fields = ByzantineCase.__dataclass_fields__
        cases = [ByzantineCase(**{name: run[name] for name in fields}) for run in self._runs.values()]
        here = [case for case in cases if case in self and case.absent in self and case.attack != NOBODY]
        order = {defence: place for place, defence in enumerate(DEFENCES)}
        return table(sorted(here, key=lambda case: (-case.n, case.f, order[case.defence], case.shards)), self.runs)

    def run(self, cases: Sequence[ByzantineCase], jobs: int, folder: Path) -> None:
        """All of them, `jobs` at a time."""
        from benchmarks.byzantine_run import run_case

        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool, self._path.open("a", encoding="utf-8") as file:
            waiting = {pool.submit(run_case, case, self._rounds, folder): case for case in cases}
            for number, future in enumerate(as_completed(waiting), start=1):
                case = waiting[future]
                run = {"key": self._key(case), **future.result()}
                self._runs[run["key"]] = run
                file.write(json.dumps(run) + "\n")
                file.flush()
                named = f"{case.attack}, {case.defence}, {case.shards}, f {case.f}, seed {case.seed}"
                print(f"{number}/{len(cases)} {named}: {run['val_loss']:.4f} ({run['cpu_s']:.0f} s)", flush=True)

    def _key(self, case: ByzantineCase) -> str:
        return json.dumps(
            [*asdict(case).values(), DEFENCES[case.defence], self._rounds, ENGINE_VERSION], sort_keys=True
        )


def table(
    cases: Iterable[ByzantineCase], run_of: Callable[[ByzantineCase], Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """One row for cases that differ by their seed alone: means, and the standard error of the ratio."""
    by_row: dict[ByzantineCase, list[dict[str, Any]]] = {}
    for case in cases:
        run, control = run_of(case), run_of(case.absent)
        if run is not None and control is not None:
            alike = ByzantineCase(**{**asdict(case), "seed": 0})
            by_row.setdefault(alike, []).append(_figures(case, run, control))
    rows = [_row(case, figures) for case, figures in by_row.items()]
    shown = {row["attack"]: hurts(row) for row in rows if row["defence"] == "undefended"}
    return [
        {
            **row,
            "hurts": shown.get(row["attack"]),
            "hurts_word": _WORDS[shown.get(row["attack"])],
            "misses": misses(row),
        }
        for row in rows
    ]


_WORDS: Final = {True: "yes", False: "no", None: "not tried"}


def _figures(case: ByzantineCase, run: Mapping[str, Any], control: Mapping[str, Any]) -> dict[str, Any]:
    backdoor = attack_named(case.attack).backdoor if case.attack != NOBODY else None
    trigger = None if backdoor is None else "natural" if backdoor == NATURAL else "planted"
    counts = ("byzantine_banned", "honest_banned", "honest_refused", "byzantine_accepted", "byzantine_refused")
    return {
        "loss_ratio": run["val_loss"] / control["val_loss"],
        "trigger_rate": None if trigger is None else run["triggers"][trigger],
        "trigger_clean": None if trigger is None else control["triggers"][trigger],
        **{name: run[name] for name in counts},
        "honest_sent": run["honest_refused"] + run["honest_accepted"],
    }


def _row(case: ByzantineCase, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {
        name: None if value is None else statistics.fmean(one[name] for one in figures)
        for name, value in figures[0].items()
    }
    ratios = [one["loss_ratio"] for one in figures]
    triggered = {"trigger_rate": None, "trigger_clean": None} | means
    return {
        **{name: value for name, value in asdict(case).items() if name not in {"seed", "shards"}},
        "replicas": case.shards,
        "seeds": len(figures),
        **triggered,
        "loss_ratio_se": statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None,
        "cost_percent": 100.0 * (statistics.fmean(ratios) - 1.0),
    }


def _cases(args: argparse.Namespace, names: Sequence[str], kept: Kept) -> list[ByzantineCase]:
    if args.worst:
        cases = worst_cases(kept.rows_so_far(), range(args.seeds), args.most)
    elif args.quick:
        cases = quick_cases(names) if names else quick_cases()
    else:
        cases = all_cases(names) if names else all_cases()
    wanted = set(args.defences.split(",")) if args.defences else set(DEFENCES)
    return [replace(case, codec=args.codec) for case in cases if case.defence in wanted]


def _checked(args: argparse.Namespace) -> list[str]:
    names = [name for name in args.attacks.split(",") if name]
    for name in names:
        attack_named(name)
    unknown = [name for name in args.defences.split(",") if name and name not in DEFENCES]
    if unknown:
        raise ConfigError(f"unknown defence {unknown[0]!r}; known: {', '.join(DEFENCES)}")
    if args.codec not in CODECS:
        raise ConfigError(f"unknown codec {args.codec!r}; known: {', '.join(CODECS)}")
    if args.quick and args.worst:
        raise ConfigError("--quick or --worst, not both")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eleven attacks on whole models, in fifteen minutes")
    parser.add_argument("--worst", action="store_true", help="the worst of DIR again: f = 5, seeds, other defences")
    parser.add_argument("--most", type=int, default=WORST, metavar="N", help="so many of the worst")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of the worst, by so many seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--attacks", default="", help="comma-separated names, as `simulate --attack` takes them")
    parser.add_argument("--defences", default="", help=f"comma-separated: {', '.join(DEFENCES)}")
    parser.add_argument("--codec", default=BF16.name, help=f"what is sent: {', '.join(CODECS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("byzantine-results"), help="where runs are kept")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all rows of DIR to FILE, too")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
