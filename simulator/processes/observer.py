"""Takes in the coordinator's status, moment by moment, and keeps what the live view and the report need of it.

Decides nothing. The only place in this room that knows the schema of the status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from simulator.processes.options import SimulationOptions
from simulator.processes.report import RoundRecord
from simulator.processes.view import SwarmView, WorkerView

FIRST_GUESS_S = 4.0
"""A round's length before one has closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What the simulation itself knows of a worker."""

    index: int
    name: str
    byzantine: bool
    alive: bool
    dropouts: int
    away_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the coordinator says of a worker."""

    name: str
    state: str
    why: str
    accepted: int
    rejected: int


class Observation:
    """The latest of everything."""

    def __init__(self, options: SimulationOptions) -> None:
        self._options = options
        self._status: Mapping[str, Any] = {}

    def take(self, status: Mapping[str, Any]) -> None:
        """A new status (coordinator.edge.status.RunStatus as plain data); it replaces the one before."""
        self._status = status

    @property
    def val_loss(self) -> tuple[float, ...]:
        """Held-out loss of each validated version, in order."""
        found = sorted(self._status.get("validations", ()), key=lambda one: int(one["version"]))
        return tuple(float(one["val_loss"]) for one in found)

    @property
    def rounds(self) -> tuple[RoundRecord, ...]:
        """Closed rounds, in order."""
        return tuple(_round_record(one) for one in self._status.get("history", ()))

    @property
    def workers(self) -> tuple[Standing, ...]:
        """What the coordinator says of each worker that it knows."""
        return tuple(_standing(one) for one in self._status.get("workers", ()))

    @property
    def rejections(self) -> dict[str, int]:
        """Reason key to number of submissions."""
        return {str(key): int(count) for key, count in self._status.get("submissions_rejected", {}).items()}

    @property
    def bytes_up(self) -> int:
        """From the workers to the coordinator."""
        return self.counter("bytes_up")

    @property
    def bytes_down(self) -> int:
        """From the coordinator to the workers."""
        return self.counter("bytes_down")

    def counter(self, name: str) -> int:
        """One of the status's counters; 0 before the first status."""
        return int(self._status.get(name, 0))

    @property
    def typical_round_s(self) -> float:
        """Median duration of the closed rounds: how long "a lease's time" is on this machine."""
        durations = [record.duration_s for record in self.rounds if record.duration_s is not None]
        return median(durations) if durations else FIRST_GUESS_S

    @property
    def train_wall_s(self) -> float | None:
        """From the first round's opening to the last one's close, by the calendar."""
        history = self._status.get("history", ())
        return float(history[-1]["closed_at_s"] - history[0]["opened_at_s"]) if history else None

    def view(self, stage: str, *, elapsed_s: float, crew: Sequence[Glance]) -> SwarmView:
        """Everything, for the live view."""
        standings = {standing.name: standing for standing in self.workers}
        workers = tuple(_worker_view(glance, standings.get(glance.name)) for glance in crew)
        return SwarmView(
            stage=stage,
            round=min(int(self._status.get("round", 0)), self._options.rounds),
            rounds=self._options.rounds,
            phase=str(self._status.get("phase", "")),
            elapsed_s=elapsed_s,
            val_loss=self.val_loss,
            waits=tuple(f"{wait['subject']}: {wait['reason']}" for wait in self._status.get("waits", ())),
            workers=workers,
            history=self.rounds,
        )


def _round_record(one: Mapping[str, Any]) -> RoundRecord:
    return RoundRecord(
        round=int(one["round"]),
        val_loss=one["val_loss"],
        accepted=int(one["accepted"]),
        rejected=int(one["rejected"]),
        expired=int(one["expired"]),
        duration_s=round(float(one["lasted_s"]), 3),
        why_closed=str(one["close_reason"]),
    )


def _standing(one: Mapping[str, Any]) -> Standing:
    steps = f", step {one['inner_step']} of {one['inner_steps']}" if one["state"] == "training" else ""
    return Standing(
        name=str(one["name"]),
        state=str(one["state"]),
        why=str(one["why"]) + steps,
        accepted=int(one["accepted"]),
        rejected=sum(one["rejected"].values()),
    )


def _worker_view(glance: Glance, standing: Standing | None) -> WorkerView:
    state, why = (standing.state, standing.why) if standing is not None else ("starting", "has not enrolled yet")
    if not glance.alive:
        away = "" if glance.away_s is None else f"comes back in {glance.away_s:.0f} s"
        state, why = ("gone", away) if glance.away_s is not None else ("left", "the process has ended")
    return WorkerView(
        index=glance.index,
        name=glance.name,
        byzantine=glance.byzantine,
        alive=glance.alive,
        state=state,
        why=why,
        accepted=standing.accepted if standing else 0,
        rejected=standing.rejected if standing else 0,
        dropouts=glance.dropouts,
    )
