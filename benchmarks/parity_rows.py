"""The rows of `benchmarks.parity`: what each of them trains, and which other row it is measured against.

Decides what is compared with what, the recipes that a row has for itself, and what its swarm is made of and begins
with; runs no swarm.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WORKERS = 6
CENTRAL: Mapping[str, Any] = {"learning_rate": 0.012, "muon_learning_rate": 0.05}
"""Where central training's recipe differs from the swarm's: the best of those tried, with other seeds; docs/log.md."""

DROPOUT = 0.3
QUICK_TO_NOTICE: Mapping[str, Any] = {"heartbeat_interval_s": 1.0}
"""A lease lasts ten seconds here: whoever vanishes has to be missed well within that, as with the default heartbeat in
rounds of minutes. Otherwise a dropout costs its worker the next round, too."""

ADAMW: Mapping[str, Any] = {"optimizer": "adamw", "learning_rate": 8e-3, "final_lr_share": 0.1, "warmup_steps": 3}
"""The best found without Muon."""


HELD: Mapping[str, Any] = {"schedule": "linear", "decay_share": 0.4}
"""The full rate for three fifths of the way, then down in a line (arXiv:2404.06395)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One row of the table."""

    name: str
    setting: str
    """`central`, `lone`, `diloco`, `half_frozen` or `half_absent`."""
    against: str
    """The row that it is compared with."""
    codec: str = "bf16"
    """What submissions are encoded in."""
    dropout: float = 0.0
    moments: str = "fresh"
    eager: bool = False
    """Whether nobody waits for the last round's version (simulator.virtual.inner.EagerLeases)."""
    slowest: float = 1.0
    """How many times longer the slowest worker's steps take than the fastest's; the others lie between."""
    engine: Mapping[str, Any] | None = None
    """Settings that this row alone has."""
    base: float = 0.0
    """Length of the central training that it goes on from, in lengths of its own; 0: it begins with random weights."""
    rounds: float = 1.0
    """How many times as many rounds: where leases are lost or short, equal tokens take more of them."""


def _losing_leases(row: str, setting: str) -> tuple[ParityCase, ParityCase]:
    """A row with dropouts: over as many rounds, and over as many more as bring it to equal tokens."""
    losing = ParityCase(name=f"{row} dropout", setting=setting, against=row, dropout=DROPOUT, engine=QUICK_TO_NOTICE)
    return losing, replace(losing, name=f"{losing.name}, equal tokens", rounds=1.0 / (1.0 - DROPOUT))


CASES = (
    ParityCase(name="central", setting="central", against="central"),
    ParityCase(name="lone", setting="lone", against="central"),
    ParityCase(name="diloco", setting="diloco", against="central"),
    ParityCase(name="diloco kept moments", setting="diloco", against="diloco", moments="kept"),
    ParityCase(name="diloco eager", setting="diloco", against="diloco", eager=True),
    ParityCase(name="diloco outer momentum", setting="diloco", against="diloco", engine={"outer_momentum": 0.3}),
    *_losing_leases("diloco", "diloco"),
    ParityCase(name="diloco uneven", setting="diloco", against="diloco", slowest=4.0),
    ParityCase(name="diloco uneven, equal tokens", setting="diloco", against="diloco", slowest=4.0, rounds=0.87),
    ParityCase(
        name="diloco uneven, recipe at most",
        setting="diloco",
        against="diloco",
        slowest=4.0,
        engine={"most_steps_share": 1.0},
    ),
    ParityCase(name="half frozen", setting="half_frozen", against="diloco"),
    ParityCase(
        name="half frozen outer momentum", setting="half_frozen", against="half frozen", engine={"outer_momentum": 0.3}
    ),
    *_losing_leases("half frozen", "half_frozen"),
    ParityCase(name="half absent", setting="half_absent", against="diloco"),
    *_losing_leases("half absent", "half_absent"),
    ParityCase(name="diloco 20 steps", setting="diloco", against="diloco", engine={"inner": {"inner_steps": 20}}),
    ParityCase(name="central adamw", setting="central", against="central", engine={"inner": ADAMW}),
    ParityCase(name="diloco adamw", setting="diloco", against="central adamw", engine={"inner": ADAMW}),
    ParityCase(name="central, rates held", setting="central", against="central", engine={"inner": {**CENTRAL, **HELD}}),
    ParityCase(name="diloco, rates held", setting="diloco", against="diloco", engine={"inner": HELD}),
    ParityCase(name="half frozen, rates held", setting="half_frozen", against="half frozen", engine={"inner": HELD}),
)


WHOLE: Mapping[str, Any] = {"codec": "fp32", "frozen_codec": "fp32", "frozen_every": 1}
"""Every block of every version whole, in fp32: what the encodings of the way down are measured against."""


HALVES = "half, whole, H 4"


def _sent_as(codec: str, rule: str, steps: int, against: str, *, dropout: float = 0.0) -> ParityCase:
    engine = {"inner": {"inner_steps": steps}, "rule": rule, "down": WHOLE, **(QUICK_TO_NOTICE if dropout else {})}
    name = f"{codec}, {rule}, H {steps}{', dropout' if dropout else ''}"
    return ParityCase(name=name, setting="diloco", against=against, codec=codec, engine=engine, dropout=dropout)


def _fetched_as(name: str, down: Mapping[str, Any], codec: str = "fp32") -> ParityCase:
    engine = {"inner": {"inner_steps": 4}, "down": down}
    return ParityCase(name=name, setting="half_frozen", against=HALVES, codec=codec, engine=engine)


EXCHANGED = "fp32, trimmed_mean, H 4"
LOSING = f"{EXCHANGED}, dropout"
CODEC_CASES = (
    _sent_as("fp32", "trimmed_mean", 4, EXCHANGED),
    _sent_as("int4", "trimmed_mean", 4, EXCHANGED),
    _sent_as("two_bit", "trimmed_mean", 4, EXCHANGED),
    _sent_as("ternary", "trimmed_mean", 4, EXCHANGED),
    _sent_as("ternary", "median", 4, EXCHANGED),
    _sent_as("ternary", "multi_krum", 4, EXCHANGED),
    _sent_as("ternary", "mean", 4, EXCHANGED),
    _sent_as("top_k", "mean", 4, EXCHANGED),
    *(_sent_as("fp32", rule, 4, EXCHANGED) for rule in ("median", "multi_krum", "mean")),
    *(_sent_as(codec, "trimmed_mean", 4, LOSING, dropout=DROPOUT) for codec in ("fp32", "int4", "ternary")),
    _sent_as("fp32", "trimmed_mean", 20, EXCHANGED),
    _sent_as("ternary", "trimmed_mean", 20, "fp32, trimmed_mean, H 20"),
    _fetched_as(HALVES, WHOLE),
    _fetched_as("half, int4 up, H 4", WHOLE, "int4"),
    _fetched_as("half, ternary up, H 4", WHOLE, "ternary"),
    _fetched_as("half, default, H 4", {}),
    _fetched_as("half, stale by 6, H 4", {**WHOLE, "frozen_codec": "int8", "frozen_every": 6}),
    _fetched_as("half, frozen int4, H 4", {**WHOLE, "frozen_codec": "int4"}),
    _fetched_as("half, steps int4, H 4", {**WHOLE, "codec": "int4"}),
    _fetched_as("half, frugal, H 4", {"codec": "two_bit", "frozen_codec": "int4", "frozen_every": 12}),
)
"""What fewer bytes cost, up by codec, rule and steps a round, and down: `benchmarks.parity --codecs`."""
CODEC_COLUMNS = (
    {"heading": "sent or fetched as", "shows": "{row}"},
    {"heading": "bits a parameter, up", "shows": "{bits:.3g}"},
    {"heading": "seeds", "shows": "{seeds}"},
    {"heading": "held-out loss", "shows": "{val_loss:.3f}"},
    {"heading": "over", "shows": "{over_percent:+.2f} %"},
    {"heading": "standard error", "shows": "{over_se:.2f}"},
    {"heading": "against", "shows": "{against}"},
    {"heading": "honest refused", "shows": "{rejected:g} of {sent:g}"},
)


def _trained_with(name: str, inner: Mapping[str, Any]) -> ParityCase:
    """Halves whose blocks come whole: what a rung costs, and no age of what is frozen."""
    engine = {"inner": {"inner_steps": 4, **inner}, "down": WHOLE}
    return ParityCase(name=name, setting="half_frozen", against=HALVES, codec="fp32", engine=engine)


def _trunk_rows(base: float, of: str = "", rates: tuple[float, ...] = ()) -> Iterator[ParityCase]:
    """From one base, the trunk trained, at low rank, and not at all; against the first of them. `rates`: at low rank
    again, the factors' rate so many times the recipe's and not as it is by default."""
    ways: list[tuple[str, dict[str, Any]]] = [
        (f"{mode} trunk", {"trunk": mode}) for mode in ("trained", "lora", "frozen")
    ]
    ways += [(f"lora trunk, rate x{scale:g}", {"trunk": "lora", "lora_lr_scale": scale}) for scale in rates]
    for way, inner in ways:
        engine = {"inner": {"inner_steps": 4, **inner}, "down": WHOLE}
        against = f"trained trunk{of}"
        yield ParityCase(name=f"{way}{of}", setting="diloco", against=against, codec="fp32", engine=engine, base=base)


RUNG_CASES = (
    _trained_with(HALVES, {}),
    _trained_with("frozen experts in int8", {"frozen_dtype": "int8"}),
    _trained_with("frozen experts in int4", {"frozen_dtype": "int4"}),
    _trained_with("bf16 masters", {"masters": "bf16"}),
    _trained_with("bf16 masters, compact moments", {"masters": "bf16", "moments": "compact"}),
    _trained_with("clipping by layer", {"clipping": "layer"}),
    *_trunk_rows(0.5, rates=(3.0, 10.0)),
    *_trunk_rows(4.0, ", long base"),
)
"""What the rungs of the memory ladder cost that change what is computed: `benchmarks.parity --rungs`."""
RUNG_COLUMNS = (
    {"heading": "trained with", "shows": "{row}"},
    *CODEC_COLUMNS[2:-2],
    {"heading": "at most (95 %, one-sided)", "shows": "{over_upper:+.2f} %"},
    *CODEC_COLUMNS[-2:],
)

CASE_COLUMNS = (
    {"heading": "row", "shows": "{row}"},
    *CODEC_COLUMNS[2:-1],
    {"heading": "routing necessity", "shows": "{routing_percent:.0f} %"},
    CODEC_COLUMNS[-1],
)

TABLES = {"": (CASES, CASE_COLUMNS), "--codecs": (CODEC_CASES, CODEC_COLUMNS), "--rungs": (RUNG_CASES, RUNG_COLUMNS)}
"""By the option that asks for it: its rows, and its columns in the docs."""


def training_of(case: ParityCase, layout: Any) -> Any:
    """How the row's leases are trained."""
    from simulator.virtual.inner import EagerLeases, KeptMoments, PureLeases, Shards

    shards = Shards(layout)
    if case.moments == "kept":
        return KeptMoments(shards)
    pure = PureLeases(shards)
    return EagerLeases(pure, workers=WORKERS) if case.eager else pure


def volunteers(case: ParityCase, columns: int) -> Iterator[Any]:
    """The row's workers: speeds spread evenly on a logarithmic scale from 1 to `slowest`."""
    from simulator.virtual.volunteer import Volunteer

    held = columns if case.setting == "diloco" else columns // 2
    for number in range(WORKERS):
        slower = case.slowest ** (number / (WORKERS - 1))
        yield Volunteer(name=str(number), step_s=slower, max_columns=held, dropout=case.dropout)


def central_base(data: Path, seed: int, steps: int) -> Path:
    """A checkpoint of central training on all workers' batches, made once for a seed and a length, beside the data."""
    from barnraise.pretrain.warm_start import WarmStart, warm_start
    from coordinator.datasets import Dataset
    from coordinator.engine.config import InnerRecipe

    target = data.with_name(f"base-{seed}-{steps}")
    if not target.exists():
        partial, dataset = data.with_name(f".{target.name}.{os.getpid()}"), Dataset.open(data)
        batch = InnerRecipe().batch_sequences * WORKERS
        warm_start(WarmStart(steps=steps, batch_sequences=batch, seed=seed), dataset, partial)
        try:
            partial.rename(target)
        except OSError:  # another row's process was faster, and made the same
            shutil.rmtree(partial)
    return target
