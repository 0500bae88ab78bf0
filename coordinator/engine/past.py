"""What a rollback needs of the rounds behind: their outer steps, whose submissions and starting versions are kept.

Decides how far back that reaches. Holds always: nothing is kept where rollback is off; the payloads and versions that
these steps name stay on disk for as long as they stand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coordinator.engine.commands import AggregateRound
from coordinator.engine.reasons import Reason
from protocol.ids import Digest, RoundNumber, Version, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PastStep:
    """An outer step that was published."""

    attempt: AggregateRound
    update_norm_l2: float
    has_start: bool = True
    """Whether the version that it starts from is one of the run's; not so where a rollback made it in passing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRollback:
    """It begins when the present round ends."""

    without: tuple[WorkerId, ...]
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRecord:
    """What came of one."""

    round: RoundNumber
    """At whose end it was."""
    without: tuple[WorkerId, ...]
    by: str
    why: str
    from_version: Version | None
    """From where the steps were taken again; None: nothing of those workers is in what can be taken back."""
    version: Version | None
    """What it made; None: the model would have changed too little, or it could not be made."""
    change_l2: float
    """Of the difference that leaving them out makes."""
    update_norm_l2: float
    """Of a usual round's update, to compare it with."""
    given_up: Reason | None = None


def kept(steps: Sequence[PastStep], most: int) -> tuple[PastStep, ...]:
    """The latest `most`, from the first on that has a version to start from."""
    latest = list(steps[-most:] if most > 0 else ())
    while latest and not latest[0].has_start:
        del latest[0]
    return tuple(latest)


def submissions_of(steps: Iterable[PastStep]) -> set[Digest]:
    """Payloads that the steps are made of."""
    return {one.digest for step in steps for one in step.attempt.contributions}


def involves(step: PastStep, workers: Iterable[WorkerId]) -> bool:
    """Whether any of these workers' submissions are in it."""
    return not {one.worker for one in step.attempt.contributions}.isdisjoint(workers)


def from_first_of(steps: Sequence[PastStep], workers: Iterable[WorkerId]) -> tuple[PastStep, ...]:
    """The steps from the first with anything of these workers on, and before it as far as a version to start from."""
    first = next((index for index, step in enumerate(steps) if involves(step, workers)), None)
    if first is None:
        return ()
    while not steps[first].has_start:
        first -= 1  # the first that is kept has one
    return tuple(steps[first:])
