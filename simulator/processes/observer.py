"""Takes in the coordinator's status, moment by moment, and keeps what the live view and the report need of it.

Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from coordinator.edge.status import RunStatus, WorkerState, WorkerStatus
from coordinator.engine.history import RoundRecord
from simulator.processes.options import SimulationOptions
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
    trusted: bool
    state: str
    why: str
    accepted: int
    rejected: int


class Observation:
    """The latest of everything."""

    def __init__(self, options: SimulationOptions) -> None:
        self._options = options
        self._status: RunStatus | None = None

    def take(self, status: RunStatus) -> None:
        """A new status, with all its rows; it replaces the one before."""
        self._status = status

    @property
    def val_loss(self) -> tuple[float, ...]:
        """Held-out loss of each validated version, in order."""
        return tuple(one.val_loss for one in self._status.validations) if self._status else ()

    @property
    def rounds(self) -> tuple[RoundRecord, ...]:
        """Closed rounds, in order."""
        return self._status.history if self._status else ()

    @property
    def workers(self) -> tuple[Standing, ...]:
        """What the coordinator says of each worker that it knows."""
        return tuple(map(_standing, self._status.workers)) if self._status else ()

    @property
    def rejections(self) -> dict[str, int]:
        """Reason key to number of submissions."""
        return dict(self._status.submissions_rejected) if self._status else {}

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
        return int(getattr(self._status, name)) if self._status else 0

    @property
    def typical_round_s(self) -> float:
        """Median duration of the closed rounds: how long "a lease's time" is on this machine."""
        durations = [record.lasted_s for record in self.rounds]
        return median(durations) if durations else FIRST_GUESS_S

    @property
    def train_wall_s(self) -> float | None:
        """From the first round's opening to the last one's close, by the calendar."""
        return self.rounds[-1].closed_at_s - self.rounds[0].opened_at_s if self.rounds else None

    def view(self, stage: str, *, elapsed_s: float, crew: Sequence[Glance]) -> SwarmView:
        """Everything, for the live view."""
        standings = {standing.name: standing for standing in self.workers}
        status = self._status
        return SwarmView(
            stage=stage,
            round=min(status.round, self._options.rounds) if status else 0,
            rounds=self._options.rounds,
            phase=status.phase if status else "",
            elapsed_s=elapsed_s,
            val_loss=self.val_loss,
            waits=tuple(f"{wait.subject}: {wait.reason}" for wait in status.waits) if status else (),
            workers=tuple(_worker_view(glance, standings.get(glance.name)) for glance in crew),
            history=self.rounds,
        )


def _standing(one: WorkerStatus) -> Standing:
    steps = f", step {one.inner_step} of {one.inner_steps}" if one.state is WorkerState.TRAINING else ""
    return Standing(
        name=one.name,
        trusted=one.trusted,
        state=one.state,
        why=one.why + steps,
        accepted=one.accepted,
        rejected=sum(one.rejected.values()),
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
