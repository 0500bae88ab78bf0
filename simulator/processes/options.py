"""What a researcher chooses about a simulated swarm: one frozen model, validated once, everything else follows from it.

Touches nothing. The recipe's numbers are the small CPU swarm's; `barnraise demo` has its own in `demo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregation.names import EXPECTED, RULES
from coordinator.engine.config import InnerRecipe
from protocol.errors import ConfigError
from protocol.residency import FROZEN
from simulator.adversaries.files import attack_named, whole_name


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """One simulation. Placement, data order, dropouts and attackers are functions of `seed`."""

    out: Path
    workers: int = 4
    rounds: int = 5
    dropout: float = 0.0
    """Probability that a worker is killed in mid-lease in a round."""
    byzantine: int = 0
    trusted: int = 0
    """How many of the honest ones have an invite that says `--trusted`: founders, who may audit."""
    attack: str = "sign-flip"
    attack_strength: float | None = None
    """None: the attack's own default (simulator/adversaries/table.py)."""
    seed: int = 0
    lone: bool = False
    http: str | None = None
    """Where the run's page is shown meanwhile, as `HOST:PORT`; None: nowhere."""
    keep_homes: bool = False
    """Leave the workers' own folders, with the blocks that they downloaded, behind."""
    undefended: bool = False
    """Plain mean, no screening, no clipping: what the attackers would do to a trusting system."""

    preset: str | None = None
    checkpoint: Path | None = None
    """A Hugging Face folder to go on with, at a quarter of the usual rates. None of both is the preset `tiny`."""
    data: str = "stdlib"
    residency: str = FROZEN
    column_parts: int = 1
    codec: str | None = None
    """None: as a run has it where nothing is said."""
    sequence_length: int = 128
    columns_per_worker: int | None = None
    """None: as many as fit, which for a small model is all of them."""
    inner: InnerRecipe = field(default_factory=InnerRecipe)
    rule: str = "trimmed_mean"
    replicas: int = 3
    quorum: int = 2
    heldout_sequences: int = 128
    validate_every: int = 1
    checkpoint_every: int = 5

    engine: Mapping[str, Any] = field(default_factory=dict)
    """Any other setting of the engine, as in a run's settings; stands above all of the above."""

    heartbeat_interval_s: float = 1.0
    min_lease_s: float = 20.0
    lease_ttl_s: float = 300.0
    round_deadline_s: float = 300.0
    time_limit_s: float = 3600.0
    """The simulation gives up after this long and reports what it has."""

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated, with the reason."""
        if self.preset is not None and self.checkpoint is not None:
            raise ConfigError("a swarm begins with --preset or with --checkpoint, not with both")
        if self.preset is None and self.checkpoint is None:
            object.__setattr__(self, "preset", "tiny")
        if self.workers < 1:
            raise ConfigError(f"a swarm needs at least 1 worker, got {self.workers}")
        if self.rounds < 1:
            raise ConfigError(f"a simulation needs at least 1 round, got {self.rounds}")
        if "max_rounds" in self.engine:
            raise ConfigError("--set max_rounds: a simulation's rounds are planned with --rounds")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"--dropout {self.dropout:g}: give a probability from 0 to below 1, as 0.2")
        if not 0 <= self.byzantine <= self.workers:
            raise ConfigError(f"{self.byzantine} Byzantine workers of {self.workers}: at most all of them can lie")
        if not 0 <= self.trusted <= self.workers - self.byzantine:
            raise ConfigError(
                f"--trusted {self.trusted}: at most all honest workers, which are {self.workers - self.byzantine}, "
                "can be founders"
            )
        object.__setattr__(self, "attack", whole_name(self.attack))
        if only_virtual := attack_named(self.attack).conduct.only_virtual:
            raise ConfigError(
                f"attack {self.attack!r} is for the virtual swarm alone ({only_virtual}): real workers cannot do it; "
                f"see `python -m benchmarks.byzantine --attacks {self.attack}`"
            )
        strength = self.attack_strength
        if strength is not None and not (math.isfinite(strength) and strength > 0):
            raise ConfigError(f"--attack-strength {strength:g}: give a number above 0")
        if self.rule not in RULES:
            raise ConfigError(f"unknown rule {self.rule!r}; expected {EXPECTED}")

    @property
    def work(self) -> Path:
        """Where the run folder, the workers' homes and their logs lie."""
        return self.out / "work"

    @property
    def homes(self) -> Path:
        """Where each worker keeps its key, its blocks and its unsent work."""
        return self.work / "workers"
