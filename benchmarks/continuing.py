"""Going on with a checkpoint: a model is pre-trained in one place, exported, and a swarm takes it up.

    python -m benchmarks.continuing [--quick] [--json FILE]

What it shows: held-out loss of the checkpoint and after each of the swarm's rounds. `bump_percent` is how far the worst
round lies above the checkpoint (goal: under 2), `first_round_percent` what the first round changed (goal: below 0).
The checkpoint goes through the disk as an ordinary Hugging Face folder, and the swarm is the real engine, executor and
trainer under a virtual clock (simulator/virtual/swarm.py): half of the columns each, the others frozen.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from pathlib import Path

import structlog
import torch

from barnraise.pretrain.warm_start import WarmStart, warm_start
from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from coordinator.datasets import Dataset, prepare
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from simulator.seeds import derived_seed
from simulator.virtual.inner import PureLeases, Shards
from simulator.virtual.swarm import STILL, VirtualSwarm
from simulator.virtual.volunteer import Volunteer

SEEDS = (11, 12, 13)
WORKERS, HELD = 6, 4
SEQUENCE_LENGTH = 128


def losses_by_round(
    dataset: Dataset, seed: int, steps: int, rounds: int, inner_steps: int, folder: Path
) -> list[float]:
    """Held-out losses of version 0 (the checkpoint) and of every version that the swarm made of it."""
    checkpoint = folder / "checkpoint"
    wanted = WarmStart(steps=steps, batch_sequences=64, sequence_length=SEQUENCE_LENGTH, seed=seed)
    warm_start(wanted, dataset, checkpoint)
    settings = RunSettings(
        codec="ternary",  # what keeps most back
        name="continuing",
        checkpoint=str(checkpoint),
        data=str(dataset.folder),
        sequence_length=SEQUENCE_LENGTH,
        seed=derived_seed(seed, "continuing"),
        heldout_limit=512,
        sim_secret_from_seed=True,
        engine={
            "max_rounds": rounds,
            "min_workers": WORKERS,
            "gather_s": 0.0,
            "heartbeat_interval_s": 5.0,
            "checkpoint_every": 0,
            "inner": {"inner_steps": inner_steps},
        },
    )
    opened = OpenedRun.open(init_run(folder / "run", settings), STILL)
    try:
        crew = [Volunteer(name=str(number), max_columns=HELD) for number in range(WORKERS)]
        VirtualSwarm(opened, crew, PureLeases(Shards(opened.layout)), seed=seed).play()
        found = {validation.version: validation.val_loss for validation in opened.engine.state.validations}
        return [found[version] for version in sorted(found)]
    finally:
        opened.close()


def row(seed: int, losses: list[float]) -> dict[str, Cell]:
    """What became of one checkpoint."""
    start = losses[0]
    return {
        "seed": seed,
        "checkpoint_loss": start,
        "first_round_loss": losses[1],
        "final_loss": losses[-1],
        "first_round_percent": 100.0 * (losses[1] / start - 1.0),
        "bump_percent": 100.0 * (max(losses[1:]) / start - 1.0),
        "rounds": len(losses) - 1,
    }


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))
    seeds, steps, rounds, inner_steps = ((11,), 30, 4, 5) if args.quick else (SEEDS, 150, 8, 10)
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="barnraise-continuing-") as scratch:
        dataset = prepare(["stdlib"], Path(scratch) / "data")
        for seed in seeds:
            losses = losses_by_round(dataset, seed, steps, rounds, inner_steps, Path(scratch) / str(seed))
            print(f"seed {seed}: {' '.join(f'{loss:.3f}' for loss in losses)}", flush=True)
            rows.append(row(seed, losses))
    if len(rows) > 1:
        rows.append(_mean(rows))
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


def _mean(rows: list[dict[str, Cell]]) -> dict[str, Cell]:
    mean: dict[str, Cell] = {"seed": "mean"}
    for key in rows[0]:
        values = [float(value) for each in rows if isinstance(value := each[key], int | float)]
        if key != "seed" and values and all(map(math.isfinite, values)):
            mean[key] = statistics.fmean(values)
    return mean


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
