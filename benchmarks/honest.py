"""How many honest submissions are refused, at every length of a lease: real training in virtual time, and its attacks.

    python -m benchmarks.honest [--quick] [--json FILE]

Micro models (50,000 parameters) are trained by the real engine, executor and trainer under a virtual clock: eight
workers whose speeds differ up to twentyfold, every second one with three of four columns, micro-batches of two sizes,
30 % of leases lost to dropouts; and one worker alone. Rows: optimizer, inner steps, screening sequences, workers;
submissions judged, refused and why; workers whom a sequential test doubts; the loss at the end. The last rows are of
the sequential tests alone: places drawn from a seed for workers that are as their peers, `rate` being the probability
that the settings state, and `refused` those who were ever doubted.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from coordinator.engine.sequential import RankTest, after_place, is_doubted

SEQUENCE_LENGTH = 64
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_experts": 4}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
SLOWEST = 20.0
DROPOUT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class HonestCase:
    """One row."""

    steps: int
    rounds: int
    seed: int
    optimizer: str = "muon"
    sequences: int = 64
    workers: int = 8


QUICK = (
    HonestCase(steps=4, rounds=12, seed=1),
    HonestCase(steps=4, rounds=12, seed=2, sequences=16),
    HonestCase(steps=10, rounds=6, seed=3),
    HonestCase(steps=4, rounds=15, seed=4, workers=1),
)
CASES = (
    HonestCase(steps=4, rounds=30, seed=1),
    HonestCase(steps=4, rounds=30, seed=2, sequences=16),
    HonestCase(steps=4, rounds=30, seed=3, optimizer="adamw"),
    HonestCase(steps=10, rounds=15, seed=4),
    HonestCase(steps=50, rounds=6, seed=5),
    HonestCase(steps=200, rounds=3, seed=6),
    HonestCase(steps=4, rounds=30, seed=7, workers=1),
    HonestCase(steps=50, rounds=8, seed=8, workers=1),
)


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    import torch

    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory(prefix="barnraise-honest-") as folder:
        micro = Micro(Path(folder))
        for number, case in enumerate(QUICK if args.quick else CASES):
            rows.append(micro.row(case, Path(folder) / f"run{number}"))
            print(rows[-1], flush=True)
    rows += [by_chance(rate, 2_000 if args.quick else 5_000) for rate in (1e-2, 1e-3)]
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


class Micro:
    """Data and first weights of all rows."""

    def __init__(self, folder: Path) -> None:
        from coordinator.datasets import Dataset, prepare
        from moe.config import config_from_json, config_to_json
        from moe.export import export_checkpoint
        from moe.full import initial_blocks
        from moe.layout import layout
        from moe.presets import preset

        self.data, self.checkpoint = folder / "data", folder / "micro"
        prepare([str(Path(__file__).parents[1])], self.data)
        config = config_from_json({**config_to_json(preset("tiny")), **SHAPE, **HEADS})
        cut = layout(config, "frozen")
        companions = Dataset.open(self.data).companions
        export_checkpoint(initial_blocks(config, cut, 1), cut, self.checkpoint, companions=companions, dtype="fp32")

    def row(self, case: HonestCase, folder: Path) -> dict[str, Cell]:
        """Play one run to its end."""
        from coordinator.run.folder import RunFolder, init_run
        from coordinator.run.opened import OpenedRun
        from simulator.virtual.inner import PureLeases, Shards
        from simulator.virtual.swarm import STILL, VirtualSwarm

        init_run(folder, self._settings(case))
        run = OpenedRun.open(RunFolder.open(folder), STILL)
        crew = volunteers(case)
        by_size = [PureLeases(Shards(run.layout), micro_batch=size) for size in (None, 4)]
        order = {volunteer.worker: place for place, volunteer in enumerate(crew)}
        VirtualSwarm(run, crew, lambda worker, *rest: by_size[order[worker] % 2](worker, *rest), seed=case.seed).play()
        state = run.engine.state
        run.close()
        why = Counter(state.totals.submissions_rejected)
        why.pop("late", None)
        judged = state.totals.submissions_accepted + sum(why.values())
        return {
            "optimizer": case.optimizer,
            "inner_steps": case.steps,
            "sequences": case.sequences,
            "workers": case.workers,
            "judged": judged,
            "refused": sum(why.values()),
            "why": ", ".join(f"{key} {count}" for key, count in sorted(why.items())),
            "doubted": sum(map(is_doubted, state.workers.values())),
            "val_loss": state.validations[-1].val_loss,
        }

    def _settings(self, case: HonestCase) -> Any:
        from coordinator.settings import RunSettings

        rates = {"learning_rate": 0.016} if case.optimizer == "muon" else {"learning_rate": 0.008, "warmup_steps": 3}
        inner = {"inner_steps": case.steps, "batch_sequences": 8, "optimizer": case.optimizer, "warmup_rounds": 0}
        return RunSettings(
            codec="ternary",  # what keeps most back
            checkpoint=str(self.checkpoint),
            data=str(self.data),
            sequence_length=SEQUENCE_LENGTH,
            seed=case.seed,
            heldout_limit=128,
            screening_sequences=case.sequences,
            sim_secret_from_seed=True,
            engine={
                "max_rounds": case.rounds,
                "min_workers": case.workers,
                "gather_s": 0.0,
                "validate_every": 0,
                "checkpoint_every": 0,
                "heartbeat_interval_s": 5.0,
                "lease_ttl_s": 1e6,
                "round_deadline_s": 1e7,
                "inner": {**inner, **rates, "muon_learning_rate": 0.08},
            },
        )


def volunteers(case: HonestCase) -> list[Any]:
    """From the fastest to the slowest, evenly on a logarithmic scale."""
    from simulator.virtual.volunteer import Volunteer

    return [
        Volunteer(
            name=f"{case.seed}.{place}",
            step_s=SLOWEST ** (place / max(1, case.workers - 1)),
            max_columns=3 * (place % 2),
            dropout=DROPOUT if case.workers > 1 else 0.0,
        )
        for place in range(case.workers)
    ]


def by_chance(rate: float, workers: int) -> dict[str, Cell]:
    """How many of so many workers, whose place is that of chance among 4 to 16 in 200 rounds, are ever doubted."""
    draw, found = random.Random(f"places {rate}"), 0
    for _ in range(workers):
        test = RankTest()
        for _ in range(200):
            places = draw.randint(4, 16)
            test = after_place(test, below=draw.randrange(places), places=places, rate=rate)
            if test.found:
                found += 1
                break
    return {"rate": rate, "workers": workers, "judged": 200, "refused": found}


if __name__ == "__main__":
    main()
