"""The soak by hand: as many inputs as asked for, one decoder after the other, and a table of what they did.

    python -m tests.fuzz [--target NAME ...] [--inputs 1000000] [--seconds N] [--record FILE] [--json]

With `--record`, what was done is kept in FILE, and the next start goes on where it ended, until there are as many
inputs as asked for: a million in pieces. `--first N --inputs 1` tries one input again. Stops at the first input that
breaks something.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tests.fuzz.soak import HEADER, Result, as_json, row, soak
from tests.fuzz.targets import TARGETS

PIECE = 20_000
"""Inputs between two records."""


def main() -> None:
    """Run, and print the table."""
    args = _arguments()
    kept = _recorded(args.record)
    names = args.target or list(TARGETS)
    until_s = time.monotonic() + args.seconds
    for name in names:
        done = kept.get(name, Result())
        first = args.first or done.inputs
        while (missing := args.inputs + args.first - first) > 0 and time.monotonic() < until_s:
            piece = soak(
                TARGETS[name], inputs=min(PIECE, missing), seed=args.seed, first=first,
                seconds=until_s - time.monotonic(), trace_every=args.trace_every,
            )  # fmt: skip
            done, first = done.plus(piece), first + piece.inputs
            kept[name] = done
            if args.record is not None:
                _keep(args.record, {name: done})
    shown = {name: kept[name] for name in names if name in kept}
    if args.json:
        print(json.dumps(as_json(shown), indent=1))
    else:
        print("\n".join([HEADER, *(row(name, result) for name, result in shown.items())]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most time for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace-every", type=int, default=32, help="one input in so many has its memory traced")
    parser.add_argument("--record", type=Path, help="a file to go on from")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _recorded(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    return {name: Result(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}


def _keep(path: Path, done: dict[str, Result]) -> None:
    everything = {**_recorded(path), **done}
    path.write_text(json.dumps(as_json(everything), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
