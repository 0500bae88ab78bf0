"""What a simulation leaves behind in figures: the schema of `report.json`.

Decides which keys there are and writes them atomically. Losses are nats a token (a byte, with the default tokenizer).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from coordinator.edge.status import rounds_as_plain
from coordinator.engine.history import RoundRecord

REPORT_NAME = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """Everything that `report.json` holds. `outcome` is `finished`, `interrupted` or `failed`."""

    outcome: str
    why: str
    workers: int
    byzantine: int
    byzantine_workers: tuple[str, ...]
    trusted_workers: tuple[str, ...]
    """Founders, as the coordinator has it."""
    attack: str | None
    attack_strength: float | None
    undefended: bool
    dropout: float
    dropouts: int
    seed: int
    rounds_planned: int
    rounds_closed: int
    inner_steps: int
    batch_sequences: int
    sequence_length: int
    val_loss: tuple[float, ...]
    """Held-out loss of each validated version, in order; the first is version 0's."""
    val_loss_first: float | None
    val_loss_last: float | None
    lone_val_loss: float | None
    lone_margin: float | None
    """lone_val_loss - val_loss_last: positive where the swarm is better than one honest worker alone."""
    leases_granted: int
    leases_expired: int
    leases_returned: int
    submissions_accepted: int
    submissions_rejected: Mapping[str, int]
    byzantine_accepted: int
    byzantine_rejected: int
    honest_rejected: int
    bytes_up: int
    bytes_down: int
    coordinator_peak_bytes: int | None
    """The most memory that the coordinator's process held; None where nobody could look."""
    worker_peak_bytes: int | None
    """The most that any one worker's process held."""
    wall_s: float
    lone_wall_s: float | None
    train_wall_s: float | None
    """From the first lease to the last close."""
    checkpoint: str | None
    health: Mapping[str, object] | None = None
    """How the last version's experts are doing, in short (moe.health); the whole is in `health.json`."""
    rounds: tuple[RoundRecord, ...] = ()
    """Those of the last status, written as a status writes them."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write `report.json` into `folder`: a reader sees the old file or the whole new one."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / REPORT_NAME
        temporary = path.with_suffix(".json.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(self.as_dict(), file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return path

    def as_dict(self) -> dict[str, object]:
        """The same, as plain data."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**plain, "rounds": rounds_as_plain(self.rounds)}
