"""Turns a simulation's options into a run's settings, and its folder into a clean place to work in.

Decides the settings of a simulated swarm's coordinator; removes an earlier simulation's files, and only those.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coordinator.engine.config import InnerRecipe
from coordinator.settings import RunSettings, describe, merged
from protocol.errors import ConfigError
from protocol.ids import RunId
from simulator.options import SimulationOptions
from simulator.seeds import derived_seed

MARKER = ".barnraise-simulation"
RESULTS = ("report.json", "loss.png", "health.json", "health.png", "events.jsonl", "checkpoint")


def run_settings(options: SimulationOptions) -> RunSettings:
    """Settings of the run that a simulation with these options makes. Raises ConfigError naming what is wrong."""
    try:
        return RunSettings(
            name=f"simulation {options.seed}",
            preset=options.preset,
            data=options.data,
            residency=options.residency,  # type: ignore[arg-type]  # pydantic checks it
            codec=options.codec,  # type: ignore[arg-type]
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
        "inner": dataclasses.asdict(options.inner),
        "rule": options.rule,
        "validate_every": options.validate_every,
        "checkpoint_every": options.checkpoint_every,
    }
    if options.undefended:
        table |= {"rule": "mean", "clip_to_median": False, "screening": {"enabled": False}}
    return merged(table, options.engine)


def clean_folder(out: Path) -> None:
    """Make `out` ready: an earlier simulation's results go; files that no simulation left there are refused."""
    work = out / "work"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder")
    found = [name for name in (*RESULTS, "work") if (out / name).exists()]
    if found and not (work / MARKER).exists():
        raise ConfigError(f"{out} holds {', '.join(found)} that no simulation left there: choose another folder")
    for name in (*RESULTS, "work"):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    work.mkdir(parents=True)
    (work / MARKER).touch()
