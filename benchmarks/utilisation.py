"""What share of their time volunteers' machines train: the real engine in virtual time, by line and by what is moved.

Run with `python -m benchmarks.utilisation [--quick] [--json FILE] [--coordinator-s S]`. Nothing is trained and no byte
is moved: payload sizes are the codecs' exact ones for the model's layout, up, and of the steps and frozen columns of
the run's `down` configuration; times follow from sizes and lines, an inner step's time from 25 TFLOP/s sustained (6
operations a parameter and token). A lease's tokens are those that `init` works out for int4 submissions on the line
20/100, and the same for every system and line.

Systems: `before` (version in fp32, submission in bf16, the next lease asked for once the last byte is up); the next
lease asked for as soon as the submission is committed to, and versions as a run has them by default: `bf16`,
`int4` (what a run sends in unless told), `ternary`; `frugal` (ternary, and 2 bits of a step down, frozen columns every
12 versions); `bound`: what is left, of int4, of a round in which training, one submission and one version's steps
follow each other and nobody waits for anybody, which no synchronous round can beat, since a version is made of what was
sent. `mixed` swarms have all lines in equal parts. Machines differ by 2 % from lease to lease. `int4, screened`: the
coordinator takes for its own work at a round's end what `benchmarks.round_end` measured last (results/round_end.json,
a later round of the 100M preset on two cores). `500 steps`: leases as long as `init` makes them at most, of 32
sequences of 1,024 tokens a step.
A round's first download of the whole model is left out, and the first rounds, in which the engine learns who is who.

Columns: tokens of a lease; bytes a lease up and down, seconds that they take and that training takes, and how they
compare; what the coordinator takes at a round's end; the share of workers' time in training, in the mean and of the
least busy one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.report import Cell, print_rows, write_json
from benchmarks.utilised_swarm import SimulatedMachine, UtilisedLoop
from coordinator.engine.config import EngineConfig, InnerRecipe
from coordinator.engine.down_config import WHOLE, DownConfig
from coordinator.run.lease_length import MOST_STEPS, RATIO, AssumedLine, LeaseBytes, step_s, traffic_of
from moe.layout import Layout, layout
from moe.presets import preset
from protocol.ids import RunId, WorkerId
from protocol.residency import FROZEN

LINES = ("10/50", "20/100", "50/200", "100/400")
USUAL = "20/100"
ASSUMED = AssumedLine.parse(USUAL)
DOWN = DownConfig()
SPARING = DownConfig(codec="two_bit", frozen_codec="int4", frozen_every=12)
"""What a run may choose where lines are slow."""
MEASURED = Path(__file__).parents[1] / "results" / "round_end.json"
STEPS = 200
"""Inner steps a lease; how many tokens each has follows from the lease's."""
LARGE_BATCH = 32 * 1024
"""Tokens of a step, where steps are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is trained, and how many columns of it a worker holds."""

    name: str
    columns: int
    workers: int

    @property
    def layout(self) -> Layout:
        """Its cut."""
        return layout(preset(self.name), FROZEN)


MODELS = (Model(name="100m", columns=16, workers=16), Model(name="olmoe-7b", columns=8, workers=24))


def config_of(model: Model, lease_s: float, rounds: int) -> EngineConfig:
    """The defaults of a run, with deadlines that no line here misses."""
    return EngineConfig(
        run_id=RunId("utilisation"),
        columns=model.layout.columns,
        train_sequences=10**9,
        max_rounds=rounds,
        min_workers=model.workers,
        gather_s=0.0,
        lease_ttl_s=1e3 * lease_s,
        round_deadline_s=1e4 * lease_s,
        fetch_s=1e2 * lease_s,
        checkpoint_every=0,
        validate_every=0,
        inner=InnerRecipe(inner_steps=STEPS),
    )


def row(
    model: Model, system: str, line: str, traffic: LeaseBytes, lease_s: float, *, rounds: int, coordinator_s: float
) -> dict[str, Cell]:
    """One system on one line, or on all of them."""
    lines = [AssumedLine.parse(one) for one in (LINES if line == "mixed" else (line,))]
    transfer_s = fmean(traffic.transfer_s(one) for one in lines)
    found: dict[str, Cell] = {
        "model": model.name,
        "columns": model.columns,
        "line": line,
        "system": system,
        "tokens": round(lease_s / step_s(model.layout, 1)),
        "up_mb": traffic.up_bytes / 1e6,
        "down_mb": traffic.down_bytes / 1e6,
        "transfer_s": transfer_s,
        "lease_s": lease_s,
        "ratio": lease_s / transfer_s,
        "coordinator_s": coordinator_s,
    }
    if system == "bound":
        share = fmean(lease_s / (lease_s + traffic.transfer_s(one)) for one in lines)
        return {**found, "coordinator_s": 0.0, "training": share, "least": None}
    machines = [
        SimulatedMachine(worker=WorkerId(f"{number:064x}"), line=lines[number % len(lines)], step_s=lease_s / STEPS)
        for number in range(model.workers)
    ]
    loop = UtilisedLoop(
        machines,
        config_of(model, lease_s, rounds),
        traffic,
        max_columns=model.columns,
        overlap=system != "before",
        coordinator_s=coordinator_s,
    )
    loop.run()
    shares = loop.shares()
    return {**found, "training": fmean(shares), "least": min(shares)}


def systems(model: Model) -> dict[str, LeaseBytes]:
    """By name, what a lease moves."""

    def of(codec: str, down: DownConfig) -> LeaseBytes:
        return traffic_of(model.layout, codec, model.columns, down)

    return {
        "before": of("bf16", WHOLE),
        "bf16": of("bf16", DOWN),
        "int4": of("int4", DOWN),
        "ternary": of("ternary", DOWN),
        "frugal": of("ternary", SPARING),
        "bound": of("int4", DOWN),
    }


def rows_of(*, quick: bool, coordinator_s: float) -> Iterator[dict[str, Cell]]:
    """Every model, line and system."""
    rounds = 8 if quick else 20
    for model in MODELS[:1] if quick else MODELS:
        moved = systems(model)
        lease_s = RATIO * moved["int4"].transfer_s(ASSUMED)
        for line in (*LINES, "mixed"):
            for system, traffic in moved.items():
                yield row(model, system, line, traffic, lease_s, rounds=rounds, coordinator_s=coordinator_s)
        if model.name == "100m":
            took_s = measured_round_end_s()
            yield row(model, "int4, screened", USUAL, moved["int4"], lease_s, rounds=rounds, coordinator_s=took_s)
        most_s = MOST_STEPS * step_s(model.layout, LARGE_BATCH)
        for system in ("int4", "ternary", "frugal"):
            name = f"{system}, {MOST_STEPS} steps"
            yield row(model, name, USUAL, moved[system], most_s, rounds=rounds, coordinator_s=coordinator_s)


def measured_round_end_s() -> float:
    """Seconds that a coordinator on two cores took for a later round's end of the 100M preset, nothing else running."""
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    return next(
        float(row["wall_s"])
        for row in rows
        if (row["model"], row["way"], row["stage"]) == ("100m", "later round", "all")
    )


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one model, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--coordinator-s", type=float, default=0.0, help="the coordinator's own work for a round")
    args = parser.parse_args()
    rows = list(rows_of(quick=args.quick, coordinator_s=args.coordinator_s))
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
