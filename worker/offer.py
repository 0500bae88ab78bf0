"""What a machine offers to a run, and the speed that was measured for it, kept for the next start.

Decides that a speed holds for the model, machine and columns that it was measured with. Touches the run's folder.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import ConfigError, StorageTrouble
from protocol.ids import Digest
from worker.home import RunHome

SPEED_FILE = "speed.json"


class Speed(BaseModel):
    """What a measurement gave, and for which model on which machine it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    basis: Digest
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What this machine offers to the run."""

    columns: int
    tokens_per_s: float
    measures: bool
    """Others' submissions, and versions, for the coordinator."""


def remembered_speed(home: RunHome, basis: Digest) -> Speed | None:
    """What was measured before; None where that was for something else."""
    try:
        speed = Speed.model_validate_json(home.kept(SPEED_FILE) or b"")
    except (ConfigError, ValidationError):
        return None
    return speed if speed.basis == basis else None


def remember_speed(home: RunHome, speed: Speed) -> None:
    """On a full disk it is measured again the next time."""
    with contextlib.suppress(StorageTrouble):
        home.keep(SPEED_FILE, speed.model_dump_json().encode())
