"""Turns a simulation's options into a run's settings, and says what is wrong with them before anything is touched.

Decides the settings of a simulated swarm's coordinator. Reads configurations and cards; writes nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coordinator.beginning import merged
from coordinator.engine.config import InnerRecipe
from coordinator.run.beginning import check_beginning
from coordinator.settings import RunSettings, describe
from protocol.errors import ConfigError
from protocol.ids import RunId
from simulator.processes.options import SimulationOptions
from simulator.seeds import derived_seed


def run_settings(options: SimulationOptions) -> RunSettings:
    """Settings of the run that a simulation with these options makes. Raises ConfigError naming what is wrong."""
    codec: dict[str, Any] = {} if options.codec is None else {"codec": options.codec}
    try:
        settings = RunSettings(
            name=f"simulation {options.seed}",
            preset=options.preset,
            checkpoint=None if options.checkpoint is None else str(options.checkpoint),
            data=options.data,
            residency=options.residency,  # type: ignore[arg-type]  # pydantic checks it
            column_parts=options.column_parts,
            **codec,
            sequence_length=options.sequence_length,
            seed=derived_seed(options.seed, "run"),
            port=0,
            heldout_limit=options.heldout_sequences,
            keep_checkpoints=1,
            sim_secret_from_seed=True,
            engine=engine_table(options),
        )
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    return settings.as_begun()


def check_simulation(options: SimulationOptions) -> None:
    """ConfigError where such a run could not begin, or no worker could hold what it should: as `init` would say."""
    cut = check_beginning(run_settings(options))
    held = options.columns_per_worker
    if held is not None and not cut.min_columns <= held <= cut.columns:
        fewest = f"{cut.min_columns} to " if cut.min_columns > 1 else "at most "
        raise ConfigError(f"--columns {held}: a worker holds {fewest}{cut.columns} columns of this model")


def require_outside(options: SimulationOptions) -> None:
    """ConfigError where the new simulation would begin with what it replaces."""
    out = options.out.resolve()
    for option, given in (("--checkpoint", options.checkpoint), ("--data", options.data)):
        if given is not None and Path(given).expanduser().resolve().is_relative_to(out):
            raise ConfigError(f"{option} {given} lies in {options.out}, which --force replaces: choose another --out")


def recipe_of(options: SimulationOptions) -> InnerRecipe:
    """The inner recipe that the run will have, whatever set it."""
    settings = run_settings(options)
    return settings.engine_config(run_id=RunId("simulation"), columns=1, train_sequences=1).inner


def engine_table(options: SimulationOptions) -> dict[str, Any]:
    """The engine's settings: short silences and graces, because everything happens on one machine."""
    table: dict[str, Any] = {
        "max_rounds": options.rounds,
        "replicas": min(options.replicas, options.workers),
        "quorum": min(options.quorum, options.workers),
        "min_workers": options.workers,
        "gather_s": 0.0,  # min_workers is everybody
        "heartbeat_interval_s": options.heartbeat_interval_s,
        "heartbeat_misses": 4.0,
        "lease_ttl_s": options.lease_ttl_s,
        "min_lease_s": options.min_lease_s,
        "round_deadline_s": options.round_deadline_s,
        "inner": _chosen(options.inner),
        "rule": options.rule,
        "validate_every": options.validate_every,
        "checkpoint_every": options.checkpoint_every,
    }
    if options.undefended:
        table |= {"rule": "mean", "clip_to_median": False, "screening": {"enabled": False}}
    return merged(table, options.engine)


def _chosen(recipe: InnerRecipe) -> dict[str, Any]:
    """What somebody set to something else than a run's default: the rest is the run's to decide."""
    default = dataclasses.asdict(InnerRecipe())
    return {name: value for name, value in dataclasses.asdict(recipe).items() if value != default[name]}
