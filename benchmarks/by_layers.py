"""What steps that go layer by layer cost in time, and what they save of the gradients' memory, beside a bare loop.

    python -m benchmarks.by_layers [--quick] [--json FILE]

All train the same lease on the same `ShardModel` from the same weights, AdamW and fp32; they take turns, and the bare
PyTorch loop, which takes its batch at once, takes one with each of them. A ratio is the median over turns, 1.0 being
the bare loop. Seconds on a CPU are the processor's, which other programs hardly stretch. The gradients' peak is counted
in a step of its own: the bytes of all that are there whenever one has been added to.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks import report
from benchmarks.worker import Bench, WorkerCase
from moe.config import config_from_json, config_to_json
from moe.presets import preset
from worker.train.trainer import train_shard

MIDDLE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CASE = WorkerCase(residency="frozen", columns=4, inner_steps=2, batch_sequences=16)
COLUMNS = (
    {"heading": "steps", "shows": "{step}"},
    {"heading": "sequences at a time", "shows": "{at_a_time}"},
    {"heading": "tokens a second", "shows": "{tokens_per_s:,.0f}"},
    {"heading": "over the bare loop", "shows": "{ratio:.3f}"},
    {"heading": "gradients at once, MiB", "shows": "{gradient_mib:.1f}"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedWay:
    """One way to take the same steps."""

    name: str
    micro_batch: int
    recomputed: bool = False
    by_layers: bool = False
    clipping: str = "whole"


WAYS = (
    SteppedWay(name="usual", micro_batch=16),
    SteppedWay(name="usual", micro_batch=4),
    SteppedWay(name="activations recomputed", micro_batch=4, recomputed=True),
    SteppedWay(name="by layers", micro_batch=4, by_layers=True),
    SteppedWay(name="by layers, each clipped by itself", micro_batch=4, by_layers=True, clipping="layer"),
)


def main() -> None:
    """Print the rows, and write them where asked."""
    options = report.parse_args(__doc__ or "")
    print(f"{report.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    bench = Bench(CASE, config_from_json({**config_to_json(preset("tiny")), **MIDDLE}))
    rows = measure(bench, pairs=3 if options.quick else 7)
    report.print_rows(rows)
    if options.json is not None:
        report.write_results(
            options.json,
            rows,
            command="python -m benchmarks.by_layers" + (" --quick" if options.quick else ""),
            columns=COLUMNS,
            beside="shared with others",
            software=f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        )


def measure(bench: Bench, pairs: int) -> list[report.Row]:
    """A row for each way, and one for the bare loop."""
    bench.bare()  # warms caches and allocators up, for all
    bare_s: list[float] = []
    ratios: dict[SteppedWay, list[float]] = {way: [] for way in WAYS}
    seconds: dict[SteppedWay, list[float]] = {way: [] for way in WAYS}
    for pair in range(pairs):
        for way in WAYS if pair % 2 else reversed(WAYS):
            turn = {
                bare: spent_s(bench, None if bare else way) for bare in ((True, False) if pair % 2 else (False, True))
            }
            bare_s.append(turn[True])
            seconds[way].append(turn[False])
            ratios[way].append(turn[True] / turn[False])
    tokens = bench.case.inner_steps * bench.case.batch_sequences * bench.case.sequence_length
    rows: list[report.Row] = [
        {"step": "bare loop", "at_a_time": bench.case.batch_sequences, "tokens_per_s": tokens / _middle(bare_s)}
    ]
    for way in WAYS:
        rows.append(
            {
                "step": way.name,
                "at_a_time": way.micro_batch,
                "tokens_per_s": tokens / _middle(seconds[way]),
                "ratio": _middle(ratios[way]),
                "gradient_mib": gradient_bytes(bench, way) / 2**20,
            }
        )
    return rows


def spent_s(bench: Bench, way: SteppedWay | None) -> float:
    """Seconds of a lease's inner loop, or of the bare one; both load their weights first."""
    now_s = time.process_time if bench.device == "cpu" else bench.now_s
    started_s = now_s()
    if way is None:
        bench.bare()
    else:
        train(bench, way)
    return now_s() - started_s


def train(bench: Bench, way: SteppedWay) -> None:
    """The lease's inner loop."""
    shard = bench.shard
    shard.load(bench.blocks)
    shard.recompute(on=way.recomputed)
    train_shard(
        shard,
        dataclasses.replace(bench.lease, recipe=dataclasses.replace(bench.lease.recipe, clipping=way.clipping)),
        bench.tokens_NL,
        device=bench.device,
        micro_batch=way.micro_batch,
        by_layers=shard.layerwise() if way.by_layers else None,
    )
    shard.recompute(on=False)


def gradient_bytes(bench: Bench, way: SteppedWay) -> int:
    """Of all gradients that were there at once, at most."""
    parameters, most = list(bench.shard.parameters()), 0

    def on_added(_parameter: torch.Tensor) -> None:
        nonlocal most
        most = max(most, sum(one.grad.nbytes for one in parameters if one.grad is not None))

    hooks = [one.register_post_accumulate_grad_hook(on_added) for one in parameters]  # type: ignore[no-untyped-call]
    train(bench, way)
    for hook in hooks:
        hook.remove()
    return most


def _middle(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
