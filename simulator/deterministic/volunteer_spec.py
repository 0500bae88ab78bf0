"""What a simulated volunteer is: its machine, its hours, and whether and as whom it lies. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.arithmetic import EVERYBODYS_ARITHMETIC
from simulator.deterministic.work import Spoils
from simulator.holders import Gives


@dataclass(frozen=True, slots=True, kw_only=True)
class VolunteerSpec:
    """One simulated volunteer."""

    max_columns: int
    step_s: float
    """Seconds for one inner step."""
    arrives_s: float
    liar: bool
    """Sends bytes that are not what training gives."""
    owner: str
    """Whom the invite names; empty: nobody."""
    spoils: Spoils = Spoils.NOTHING
    """What its submissions do to an outer step."""
    lies_from: int = 1
    """The first round whose leases it lies about, where others find that by computing them again."""
    trusted: bool = False
    """Came with `--trusted`: it may be asked to compute leases of others again."""
    lies_as_auditor: bool = False
    """Where it is asked for that, it sends something else."""
    measures: bool = False
    """It offers to measure others' submissions for the coordinator: of use where it is trusted."""
    lies_measuring: bool = False
    """Of every other one it says something else than it measured."""
    arithmetic: str = str(EVERYBODYS_ARITHMETIC)
    """The class in which it computes, and says that it does."""
    frame_s: float = 0.0
    """Seconds that a frame takes down its line, besides the usual."""
    hiccup_s: float = 0.0
    """Every few seconds its processes stand still for up to so long, as on a machine that swaps."""
    gives: Gives = Gives.NOTHING
    """What it gives to other workers that ask it for blocks."""
    pauses: tuple[tuple[float, float, bool], ...] = ()
    """(from, to, whether training is stopped): when the volunteer's policy wants no work."""
