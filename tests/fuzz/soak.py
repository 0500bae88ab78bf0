"""Many inputs for one decoder, by number, so that a long soak can be run in pieces; and what came of it, as a table.

Input number n of a target is always the same (but for keys and invites, which the product draws itself), so pieces add
up and whatever breaks can be tried again alone. All inputs are under an alarm, timed, and watched by the process's
resident memory, which sees what C and C++ allocate; one in `trace_every` is traced besides, which sees every Python
allocation and costs ten times the decoding.
"""

from __future__ import annotations

import gc
import resource
import time
from dataclasses import asdict, dataclass, replace

from tests.fuzz.check import MOST_S, Broken, alarm, check, check_memory
from tests.fuzz.target import Source, Target

BATCH = 64
"""Inputs under one alarm."""
WARM_INPUTS = 512
"""Decoded before memory is measured: what is made once and kept does not count as an input's."""
MOST_GROWTH_BYTES = 96 << 20
"""Resident memory may grow by this over a whole piece: caches that are bounded, fragments, torch's own pools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a target's inputs 0 to `inputs` did."""

    inputs: int = 0
    taken: int = 0
    traced: int = 0
    processor_s: float = 0.0
    """Processor time of all: a machine that others use too does not change it much."""
    peak_bytes: int = 0
    """Most that a traced input had allocated at once."""
    growth_bytes: int = 0
    """Most by which resident memory grew within one piece."""
    slowest_s: float = 0.0
    """Processor time of the slowest input."""
    slowest_input: int = 0

    def plus(self, later: Result) -> Result:
        """This piece and the one after it."""
        slower = later if later.slowest_s > self.slowest_s else self
        return Result(
            inputs=self.inputs + later.inputs,
            taken=self.taken + later.taken,
            traced=self.traced + later.traced,
            processor_s=self.processor_s + later.processor_s,
            peak_bytes=max(self.peak_bytes, later.peak_bytes),
            growth_bytes=max(self.growth_bytes, later.growth_bytes),
            slowest_s=slower.slowest_s,
            slowest_input=slower.slowest_input,
        )


def soak(
    target: Target, *, inputs: int, seed: int = 0, first: int = 0, seconds: float = float("inf"), trace_every: int = 32
) -> Result:
    """Try inputs `first` to `first + inputs`, or as many as there is time for. Raises `Broken` with the number."""
    source = Source(target, seed)
    _warm_up(target, source)
    grown_from, result, began_s = _resident_peak_bytes(), Result(), time.monotonic()
    processor_began_s = time.process_time()
    number = first
    while number < first + inputs and time.monotonic() - began_s < seconds:
        end = min(number + BATCH, first + inputs)
        result = result.plus(_batch(target, source, range(number, end), trace_every))
        number = end
        growth_bytes = _resident_peak_bytes() - grown_from
        if growth_bytes > MOST_GROWTH_BYTES + target.base_bytes:
            raise Broken(f"{target.name}: memory grew by {growth_bytes} bytes by input {number}")
        result = replace(result, growth_bytes=growth_bytes)
    return replace(result, processor_s=time.process_time() - processor_began_s)


def _warm_up(target: Target, source: Source) -> None:
    for sample in target.valid():
        check(target, sample)
    _batch(target, source, range(WARM_INPUTS), trace_every=WARM_INPUTS)
    gc.collect()


def _batch(target: Target, source: Source, numbers: range, trace_every: int) -> Result:
    taken = traced = peak_bytes = slowest_input = 0
    slowest_s = 0.0
    number = numbers.start
    gc.collect()  # what earlier inputs left to be collected is not this batch's
    try:
        with alarm(MOST_S * BATCH):
            for number in numbers:
                data = source[number]
                if number % trace_every == 0:
                    accepted, allocated_bytes = check_memory(target, data)
                    traced, peak_bytes = traced + 1, max(peak_bytes, allocated_bytes)
                else:
                    began_s = time.thread_time()
                    accepted = check(target, data)
                    took_s = time.thread_time() - began_s
                    if took_s > slowest_s:
                        slowest_s, slowest_input = took_s, number
                taken += accepted
    except Broken as error:
        raise Broken(f"input {number}: {error}") from error
    if slowest_s > MOST_S:
        raise Broken(f"input {slowest_input} of {target.name} took {slowest_s:.1f} s")
    return Result(
        inputs=len(numbers),
        taken=taken,
        traced=traced,
        peak_bytes=peak_bytes,
        slowest_s=slowest_s,
        slowest_input=slowest_input,
    )


def _resident_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(name: str, result: Result) -> str:
    """One line of the table."""
    rate = result.inputs / max(result.processor_s, 1e-9)
    share = 100 * result.taken / max(1, result.inputs)
    return (
        f"| {name} | {result.inputs:,} | {share:.1f} % | {rate:,.0f} | {result.peak_bytes / 1024:,.0f} |"
        f" {result.growth_bytes / 2**20:,.0f} | {1000 * result.slowest_s:,.1f} |"
    )


HEADER = """| decoder | inputs | taken | a second | most allocated, KiB | memory grew by, MiB | slowest, ms |
|---|---|---|---|---|---|---|"""


def as_json(results: dict[str, Result]) -> dict[str, dict[str, float]]:
    """For a machine, and for `--record`."""
    return {name: asdict(result) for name, result in results.items()}
