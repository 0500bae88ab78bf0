"""What each codec costs: throughput beside a memory copy in the same run, bits a parameter, relative error.

    python -m benchmarks.codecs [--quick] [--json FILE]

One thread, a tensor of Gaussian values. Throughputs are of fp32 bytes, medians of calls that are taken in turn with
copies of the same tensor, so that a busy machine slows all of them: `copy` writes over memory that is there, `clone`
takes new memory, as `encode` and `decode` do and must. `spans` decodes four granules at a time, as the coordinator
does when it reduces submissions. A codec with state is given what an encoding before left.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks import report
from protocol.codecs import CODECS, GRANULE, Codec
from protocol.specs import TensorSpec

SIZES = (1_000_000, 10_000_000)
SPAN = 4 * GRANULE


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    torch.set_num_threads(1)
    print(f"{report.machine()}, torch {torch.__version__}, one thread")
    sizes, repeats = (SIZES[:1], 9) if options.quick else (SIZES, 25)
    rows = [measure(codec, size, repeats) for size in sizes for codec in CODECS.values()]
    report.print_rows(rows)
    if options.json is not None:
        report.write_json(options.json, rows)


def measure(codec: Codec, elements: int, repeats: int) -> report.Row:
    """One codec's row at this size."""
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    target = torch.empty_like(tensor)
    spec = TensorSpec("t", (elements,))
    first = codec.encode(tensor)
    decoded = codec.decode(first.parts, spec)
    seconds = medians(
        {
            "copy": lambda: target.copy_(tensor),
            "clone": tensor.clone,
            "encode": lambda: codec.encode(tensor, first.state),
            "decode": lambda: codec.decode(first.parts, spec),
            "spans": lambda: [
                codec.decode_span(first.parts, spec, start, min(start + SPAN, elements))
                for start in range(0, elements, SPAN)
            ],
        },
        repeats,
    )
    row: dict[str, report.Cell] = {
        "codec": codec.name,
        "elements": elements,
        "state": codec.has_state,
        "bits": 8 * sum(part.nbytes for part in first.parts) / elements,
        "relative_error": float((decoded - tensor).norm() / tensor.norm()),
    }
    row |= {f"{name}_gb_s": 4 * elements / taken_s / 1e9 for name, taken_s in seconds.items()}
    row |= {f"{name}_times_copy": seconds[name] / seconds["copy"] for name in ("encode", "decode", "spans")}
    return row | {"decode_times_clone": seconds["decode"] / seconds["clone"]}


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all taken in turn after one warm-up round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
