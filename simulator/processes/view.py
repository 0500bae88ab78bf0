"""What can be seen of a running swarm at one moment: plain data, from `observer.py` to `live.py`.

Decides nothing and touches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.engine.history import RoundRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker, as an onlooker sees it."""

    index: int
    name: str
    byzantine: bool
    alive: bool
    state: str
    why: str
    accepted: int = 0
    rejected: int = 0
    dropouts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmView:
    """The whole swarm at one moment."""

    stage: str
    """What is being done, in words: preparing, training, alone, finished ..."""
    round: int
    rounds: int
    phase: str
    elapsed_s: float
    val_loss: tuple[float, ...] = ()
    waits: tuple[str, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    history: tuple[RoundRecord, ...] = ()
