"""How a worker vanishes in mid-lease: at an exact inner step, by SIGKILL, as a machine does that loses power.

Decides when, within one lease, and leaves a note for the simulation, so that a dropout is never mistaken for a crash.
The trainer takes the rows of an inner step from the lease's sequences as it comes to that step: the sequences
themselves tell where it is, and nothing in the worker needs to know about simulations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanishing:
    """One dropout that happened."""

    wall_s: float
    """Calendar time, in seconds since the epoch."""
    round: int
    step: int
    inner_steps: int


def note_vanishing(path: Path, vanishing: Vanishing) -> None:
    """Append to the worker's notes; on disk before the process dies, as far as the parent can see."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, json.dumps(asdict(vanishing)).encode() + b"\n")
    os.close(descriptor)


def read_vanishing(path: Path) -> Vanishing | None:
    """The latest note; None where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    return Vanishing(**json.loads(lines[-1])) if lines else None


class _EndingSequences(np.ndarray[Any, np.dtype[np.int64]]):
    """An array that calls `at_end` when a row at or after `end_row` is taken."""

    end_row: int
    at_end: Callable[[], None]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and (key.start or 0) >= self.end_row:
            self.at_end()
        return np.asarray(super().__getitem__(key))


def sequences_ending_at(tokens_NL: NDArray[np.int64], end_row: int, at_end: Callable[[], None]) -> NDArray[np.int64]:
    """The same sequences, which call `at_end` once the trainer asks for rows from `end_row` on."""
    watched = np.array(tokens_NL, copy=True).view(_EndingSequences)
    watched.end_row, watched.at_end = end_row, at_end
    return watched
