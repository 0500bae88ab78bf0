"""What is measured on which sequences, where others may do it; and what their figures say, and are worth.

Decides the order of an item's sequences and losses, which the coordinator and whoever measures for it have in common: N
sequences, those for all of a submission, those for a part of it, and some of the lease's own; a loss of each before,
and of each part's after. A version's item is the held-out sequences that every version is validated on, which are
public, and a loss of each. Holds always: a gain is that of paired sequences. Touches the dataset alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import Item, MeasureSubmission, ValidateVersion
from coordinator.engine.draws import Stream
from coordinator.engine.events import SubmissionMeasured, VersionValidated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.datasets import Dataset

SHARE_FOR_ALL = 4
"""One of so many held-out sequences is for all of it: what spoils a model shows on few."""
FEWEST_TO_DIVIDE = 32
"""Held-out sequences; fewer serve both ends."""
OWN_SHARE = 8
"""Of the lease's own, an eighth as many as of the held-out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Sequences `start` to `stop`, the last not included, before and after so much of the submission."""

    share: float
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Held-out losses before minus after, nats a token, and their standard errors."""

    part: float = 0.0
    part_se: float = 0.0
    full: float = 0.0
    full_se: float = 0.0
    own: float | None = None
    part_spread: float = 0.0
    """Standard deviation over sequences."""
    part_sequences: int = 0
    full_sequences: int = 0
    """Behind the two."""


def divided(count: int) -> tuple[slice, slice]:
    """Of `count` sequences, those for all of a submission, and those for a part of it."""
    cut = count // SHARE_FOR_ALL
    return (slice(0, cut), slice(cut, count)) if count >= FEWEST_TO_DIVIDE else (slice(0, count), slice(0, count))


def parts_of(command: Item) -> tuple[Part, ...]:
    """What is to be measured of a submission, on its `rows` and some of its lease's own; of a version nothing."""
    if isinstance(command, ValidateVersion):
        return ()
    assert command.rows is not None
    count = command.rows.count
    full, part = divided(count)
    parts = (
        Part(share=command.taken, start=full.start, stop=full.stop),
        Part(share=command.part, start=part.start, stop=part.stop),
    )
    own = len(own_rows(command, count))
    return (*parts, Part(share=command.taken, start=count, stop=count + own)) if own else parts


def sequences_of(dataset: Dataset, command: Item, length: int, heldout_limit: int) -> NDArray[Any]:
    """[N, `length` + 1]: what an item is measured on; at most `heldout_limit` where it is a version."""
    if isinstance(command, ValidateVersion):
        return dataset.heldout_all(length, heldout_limit)
    rows, data = command.rows, command.lease.data
    assert rows is not None
    found = [dataset.sequences(rows.seed, rows.start, rows.count, length)]
    found += [dataset.sequences(data.seed, data.start + row, 1, length) for row in own_rows(command, rows.count)]
    return np.concatenate(found)


def own_rows(command: MeasureSubmission, heldout: int) -> list[int]:
    """Some sequences of the lease, by a draw that follows from the round's secret one; none where they are not asked
    for. `heldout`: how many others the submission is measured on."""
    wanted = max(1, heldout // OWN_SHARE) if command.own_data else 0
    draw = Stream(f"{command.heldout_seed} {command.lease.lease_id}".encode())
    return draw.sample(range(command.lease.data.count), wanted)


def gains_from(command: MeasureSubmission, before: Sequence[float], after: Sequence[float]) -> Gains:
    """What losses of an item say: `before` of its N sequences, `after` of its parts'. All are finite."""
    gains: list[list[float]] = []
    rest = list(after)
    for part in parts_of(command):
        own, rest = rest[: part.stop - part.start], rest[part.stop - part.start :]
        gains.append([old - new for old, new in zip(before[part.start : part.stop], own, strict=True)])
    full, part_, *own_ = gains
    return Gains(
        part=fmean(part_),
        part_se=_error(part_),
        full=fmean(full),
        full_se=_error(full),
        own=fmean(own_[0]) if own_ else None,
        part_spread=_error(part_) * math.sqrt(len(part_)),
        part_sequences=len(part_),
        full_sequences=len(full),
    )


def believed(command: MeasureSubmission, answers: Sequence[GainAnswer]) -> Gains | None:
    """What trusted workers say that it gains; None where it is to be measured here."""
    first = _first_of_enough(command, answers)
    return None if first is None else gains_from(command, first.before, first.after)


def validated(command: ValidateVersion, answers: Sequence[GainAnswer], *, at_s: float) -> VersionValidated | None:
    """What trusted workers say of a version; None where it is to be measured here."""
    first = _first_of_enough(command, answers)
    if first is None:
        return None
    return VersionValidated(
        at_s=at_s,
        command_id=command.command_id,
        version=command.version,
        val_loss=fmean(first.before),
        val_loss_se=_error(first.before),
        measured_by=first.worker,
        answers=tuple(answers),
    )


def _first_of_enough(command: Item, answers: Sequence[GainAnswer]) -> GainAnswer | None:
    """The first, where there are as many as the command wants, and all agree."""
    if len(answers) < 1 + command.check:
        return None
    first, *others = answers
    alike = all(agree(first, other.before, other.after, command.tolerance) for other in others)
    return first if alike else None


def with_gains(
    event: SubmissionMeasured, gains: Gains, answers: Sequence[GainAnswer], *, at_s: float
) -> SubmissionMeasured:
    """What was decoded here, with what others measured: the first of `answers` is taken."""
    return replace(carrying(event, gains), at_s=at_s, measured_by=answers[0].worker, answers=tuple(answers))


def carrying(event: SubmissionMeasured, gains: Gains) -> SubmissionMeasured:
    """The event with these gains."""
    return replace(
        event,
        heldout_gain=gains.part,
        heldout_gain_se=gains.part_se,
        full_gain=gains.full,
        full_gain_se=gains.full_se,
        own_gain=gains.own,
        part_spread=gains.part_spread,
        part_sequences=gains.part_sequences,
        full_sequences=gains.full_sequences,
    )


def sizes_of(command: Item, dataset: Dataset, length: int, heldout_limit: int) -> tuple[int, int]:
    """Losses that an answer has: before, and after; the rest as in `sequences_of`."""
    if isinstance(command, ValidateVersion):
        return min(dataset.heldout_sequences(length), heldout_limit), 0
    parts = parts_of(command)
    return max(part.stop for part in parts), sum(part.stop - part.start for part in parts)


def agree(answer: GainAnswer, before: Sequence[float], after: Sequence[float], tolerance: float) -> bool:
    """Whether each loss of an answer is as near to another's as two honest machines come."""
    pairs = (zip(answer.before, before, strict=True), zip(answer.after, after, strict=True))
    return all(abs(one - other) <= tolerance for both in pairs for one, other in both)


def _error(gains: Sequence[float]) -> float:
    """Standard error; that of a single sequence is not known, and 0 here."""
    return stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
