"""The soak: as many inputs as asked for, one decoder after the other, with the rate at which they went.

    python -m tests.fuzz [--inputs 1000000] [--target NAME] [--seconds N] [--seed N]

Every 64th input has its memory traced; all are under an alarm. Stops at the first input that breaks something.
"""

from __future__ import annotations

import argparse
import time
from random import Random

from tests.fuzz.check import alarm, check, check_memory
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

_BATCH = 64
"""Inputs under one alarm, of which the first has its memory traced: tracing costs several times the decoding."""


def soak(target: Target, *, inputs: int, seed: int, seconds: float = float("inf")) -> tuple[int, int, float]:
    """Inputs tried, inputs taken, seconds that it took."""
    random, samples = Random(f"{seed} {target.name}"), target.samples()
    for sample in samples:  # what is made once and kept does not count as an input's
        check(target, sample)
    started_s, tried, taken = time.monotonic(), 0, 0
    while tried < inputs and time.monotonic() - started_s < seconds:
        with alarm(most_s=30.0):
            taken += check_memory(target, mutated(random, samples))
            for _ in range(min(_BATCH, inputs - tried) - 1):
                taken += check(target, mutated(random, samples))
        tried += min(_BATCH, inputs - tried)
    return tried, taken, time.monotonic() - started_s


def main() -> None:
    """Run and print one line for each decoder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--target", choices=list(TARGETS), default=None)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most time for each decoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in [args.target] if args.target else TARGETS:
        tried, taken, took_s = soak(TARGETS[name], inputs=args.inputs, seed=args.seed, seconds=args.seconds)
        million_s = 1e6 * took_s / max(1, tried)
        print(
            f"{name}: {tried} inputs, {taken} taken, {tried / took_s:.0f} a second; a million take {million_s:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
