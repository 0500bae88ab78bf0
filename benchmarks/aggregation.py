"""Aggregation rules against one pass of `torch.sum` over the same tensor, paired in one run; byzfl's beside them.

    python -m benchmarks.aggregation [--quick] [--json FILE]

Rows with a `codec` lie on disk, encoded, and are decoded as the rule walks over them: all of that is in their time, and
`torch.sum` is over the same rows decoded. One thread. byzfl's geometric median and clipping take its own defaults of 3
steps and 1, ours run to the end and 3. Each timing is taken in turn with one of `torch.sum`, so that a busy machine
slows both; `times_sum` is the ratio of their medians. `extra_mb` is how far the process's peak memory rises above what
it held before the call, the result (4 MB for a million parameters) included, and pages of mapped files, too; Linux
only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aggregation.names import BASES, BUCKET_SIZE
from aggregation.pieces import Piece
from aggregation.reducers import trimmed_count
from aggregation.rules import aggregate, aggregate_pieces
from benchmarks import report
from coordinator.store.artifacts import ContentStore
from protocol.codecs import codec_named
from protocol.specs import TensorSpec
from protocol.tensors import encode_tensors, encoded_tensors
from simulator.adversaries.byzfl import byzfl_module

RuleCall = Callable[[Tensor], object]

QUICK_SIZES = ((8, 250_000), (16, 1_000_000))
SIZES = ((16, 1_000_000), (32, 1_000_000), (16, 10_000_000), (32, 10_000_000))
"""The sizes at which the peers' figures were taken."""

BY_COORDINATE = ("mean", "median", "trimmed_mean")
"""Rules that unequal weights make slower; to the others they are W more numbers."""

WITH_PRE_STEPS = ("nnm+trimmed_mean", "nnm+multi_krum", "bucketing+median", "bucketing+multi_krum")

CODECS_ON_DISK = ("int4", "ternary")
RULES_ON_DISK = ("mean", "median", "trimmed_mean", "multi_krum", "centered_clipping")

BYZFL_NNM_LIMIT = 20_000_000
"""Elements above which byzfl's mixing is left out: it gathers W x (W - f) rows at once, 7.7 GB at 16 x 1e7."""

SLOW_S = 3.0
"""A call that takes longer than this is timed once."""


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    torch.set_num_threads(1)
    print(f"{report.machine()}, torch {torch.__version__}, one thread")
    rows = [row for size in (QUICK_SIZES if options.quick else SIZES) for row in measure(*size, quick=options.quick)]
    report.print_rows(rows)
    if options.json is not None:
        report.write_json(options.json, rows)


def measure(workers: int, parameters: int, *, quick: bool) -> Iterator[report.Row]:
    """One row for each rule and implementation at this size."""
    stack_WP = torch.randn(workers, parameters, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        encoded = on_disk(stack_WP, Path(folder))
        yield from _measured([*calls(workers, parameters), *encoded], stack_WP, quick=quick)


def _measured(
    calls: Iterable[tuple[str, str, str, RuleCall]], stack_WP: Tensor, *, quick: bool
) -> Iterator[report.Row]:
    workers, parameters = stack_WP.shape
    for rule, weights, whose, call in calls:
        extra_mb = peak_extra_mb(call, stack_WP)
        rule_s, sum_s = paired_seconds(call, stack_WP, repeats=3 if quick else 5)
        implementation, _, codec = whose.partition(" ")
        yield {
            "rule": rule,
            "weights": weights,
            "implementation": implementation,
            "codec": codec or None,
            "workers": workers,
            "parameters": parameters,
            "seconds": rule_s,
            "sum_seconds": sum_s,
            "times_sum": rule_s / sum_s,
            "extra_mb": extra_mb,
        }


def calls(workers: int, parameters: int) -> Iterator[tuple[str, str, str, RuleCall]]:
    """Rule, kind of weights, implementation, and what to call with the stack."""
    equal = [1.0] * workers
    unequal = [1.0 + (worker % 3) / 2 for worker in range(workers)]
    for rule in (*BASES, *WITH_PRE_STEPS):
        yield rule, "equal", "barnraise", _ours(rule, equal)
        if rule in BY_COORDINATE:
            yield rule, "unequal", "barnraise", _ours(rule, unequal)
    yield from _byzfl(workers, parameters)


def on_disk(stack_WP: Tensor, folder: Path) -> Iterator[tuple[str, str, str, RuleCall]]:
    """The same of rows that lie there, in each of `CODECS_ON_DISK`."""
    store, spec = ContentStore(folder), TensorSpec("w", (stack_WP.shape[1],))
    for name in CODECS_ON_DISK:
        codec = codec_named(name)
        digests = [store.put(encode_tensors({spec.name: row_P}, codec)) for row_P in stack_WP]
        rows = [[encoded_tensors(store.view(digest), [spec], codec)[spec.name]] for digest in digests]
        for rule in RULES_ON_DISK:
            yield rule, "equal", f"barnraise {name}", _of_pieces(rows, rule)


def _of_pieces(rows: Sequence[Sequence[Piece]], rule: str) -> RuleCall:
    return lambda _: aggregate_pieces(rows, [1.0] * len(rows), rule, seed=1)


def _ours(rule: str, weights: list[float]) -> RuleCall:
    return lambda stack_WP: aggregate(stack_WP, weights, rule, seed=1)


def _byzfl(workers: int, parameters: int) -> Iterator[tuple[str, str, str, RuleCall]]:
    byzfl, f = byzfl_module("aggregators"), trimmed_count(workers)
    rules: dict[str, RuleCall] = {
        "mean": byzfl.Average(),
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f=f),
        "krum": byzfl.Krum(f=f),
        "multi_krum": byzfl.MultiKrum(f=f),
        "geometric_median": byzfl.GeometricMedian(),
        "centered_clipping": byzfl.CenteredClipping(),
        "bucketing+median": lambda stack_WP: byzfl.Median()(byzfl.Bucketing(s=BUCKET_SIZE)(stack_WP)),
    }
    if workers * parameters <= BYZFL_NNM_LIMIT:
        rules["nnm+trimmed_mean"] = lambda stack_WP: byzfl.TrMean(f=f)(byzfl.NNM(f=f)(stack_WP))
    for rule, call in rules.items():
        yield rule, "equal", "byzfl", call


def paired_seconds(call: RuleCall, stack_WP: Tensor, *, repeats: int) -> tuple[float, float]:
    """Median seconds of the call and of `torch.sum`, taken in turn after one warm-up of each."""
    call_s: list[float] = []
    sum_s: list[float] = []
    torch.sum(stack_WP, dim=0)
    if _seconds(call, stack_WP) > SLOW_S:
        repeats = 1
    for _ in range(repeats):
        sum_s.append(_seconds(lambda stack: torch.sum(stack, dim=0), stack_WP))
        call_s.append(_seconds(call, stack_WP))
    return statistics.median(call_s), statistics.median(sum_s)


def _seconds(call: RuleCall, stack_WP: Tensor) -> float:
    begin = time.perf_counter()
    call(stack_WP)
    return time.perf_counter() - begin


def peak_extra_mb(call: RuleCall, stack_WP: Tensor) -> float | None:
    """Rise of the peak resident size during the call, in 10^6 bytes; None where the system does not tell."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only: else memory freed earlier hides what is taken
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present size
        before_kib = _status_kib("VmRSS")
        call(stack_WP)
        return max(0, _status_kib("VmHWM") - before_kib) * 1024 / 1e6
    except OSError:
        return None


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
