"""Cuts every guard of the edge out, one at a time, and shows that its test then fails.

    python -m tests.guards [--only WORDS ...] [--list] [--jobs N] [--json FILE] [--resume] [--timeout S]

The guards are in tests/guards/table.py, each under its line of docs/security.md. `--only` takes those whose line, cut
or test contains one of the words; `--resume` leaves out what FILE says was caught. Exit code 1 where a guard can be
cut out unnoticed, or is not where the table says, or the unmodified tests do not pass.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy is loaded: a process with threads is not to be forked

from tests.guards.guard import Guard  # noqa: E402
from tests.guards.runner import CAUGHT, Result, load_libraries, run_guards  # noqa: E402
from tests.guards.table import GUARDS  # noqa: E402


def main() -> int:
    """Run, and print one line for each guard."""
    args = _arguments()
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.resume and args.json.exists() else []
    before = [one for one in kept if one["outcome"] == CAUGHT]
    caught = {(*one["cuts"], *one["tests"]) for one in before}
    wanted = [guard for guard in GUARDS if _is_wanted(guard, args.only)]
    chosen = [one for one in wanted if one.key not in caught]
    if args.list or not chosen:
        print("\n".join(guard.name for guard in chosen))
        print(f"{len(chosen)} of {len(GUARDS)} guards")
        return 0 if chosen else 2
    began_s = time.monotonic()
    load_libraries()
    done: list[Result] = []

    def tell(result: Result) -> None:
        done.append(result)
        shown = result.guard.name if result.outcome == CAUGHT else f"{result.guard.name}\n    {result.why}"
        print(f"{len(done):3}/{len(chosen)}  {result.outcome:<8} {result.seconds:6.1f} s  {shown}", flush=True)
        if args.json:
            args.json.write_text(json.dumps([*before, *map(_as_json, done)], indent=1), encoding="utf-8")

    run_guards(chosen, jobs=args.jobs, timeout_s=args.timeout, on_result=tell)
    counts = Counter(result.outcome for result in done)
    print(f"{len(done)} guards in {time.monotonic() - began_s:.0f} s: {dict(counts)}")
    return 0 if set(counts) == {CAUGHT} else 1


def _is_wanted(guard: Guard, words: list[str] | None) -> bool:
    told = [guard.line, *guard.key]
    return not words or any(word in text for word in words for text in told)


def _as_json(result: Result) -> dict[str, object]:
    guard = result.guard
    return {
        "line": guard.line,
        "cuts": [cut.told() for cut in guard.cuts],
        "tests": list(guard.tests),
        "outcome": result.outcome,
        "seconds": round(result.seconds, 1),
        "why": result.why,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="guards of which one of these is part")
    parser.add_argument("--list", action="store_true", help="show them and cut nothing")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once, each on a copy of its own")
    parser.add_argument("--json", type=Path, help="write what came of each to this file")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the --json FILE")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one guard's tests")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
