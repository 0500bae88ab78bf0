"""What a submission does to held-out loss: after a part of what a round may take of it, and after all of it.

Decides on which sequences, none of which its worker can know: the round's draw has a share for the part and a share for
all of it, the same for all submissions of the round, whose gains can then be compared; more are drawn where the first
speak against a submission; and some of the lease's own where it is asked. Holds always: a gain is that of paired
sequences, so most of their spread is common to before and after; it is finite. Touches the dataset alone.

N sequences, L+1 tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.enough import EarlyStop, Enough, looked
from coordinator.work.measured import (
    FEWEST_TO_DIVIDE,
    Gains,
    agree,
    divided,
    gains_from,
    own_rows,
    parts_of,
    sequences_of,
)
from moe.full import mean_and_error, sequence_losses
from moe.passing import sequences_at_once
from protocol.ids import Digest, WorkerId
from protocol.lease import DataRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.datasets import Dataset
    from moe.layout import Layout

Load = Callable[[float], Any]
"""The base with so much of the submission taken, as a model, which the next call changes; 0 is the base itself."""

FIRST_OF_ALL = 2
FIRST_OF_PART = 4
"""Sequences of the first look, where measuring may stop early: a tenth of the usual draw."""
WHERE_IN_DOUBT = 4
"""So many times the sequences, where those of the part speak against a submission by more than their error."""
TERRIBLE = -1e9
"""A model that overflows is as bad as a model can be; an infinite loss would not survive the journal's JSON."""
CACHED_BASELINES = 64
PASSING_BYTES = 256 << 20
"""For what held-out sequences make on their way through the model: with a vocabulary of 50,000, thirty-two of 1,024
tokens at a time made logits of 6.6 GB, and the copies that a loss takes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """What slow work must know of a run's settings."""

    sequence_length: int
    """Tokens of a sequence, in training and in measuring."""
    heldout_limit: int
    """Held-out sequences that a version is validated on, at most."""
    screening_sequences: int
    """Sequences, of those that no lease names, that a submission's gain is measured on."""
    evaluation_batch: int
    """Sequences that go through the model at a time, at most."""
    evaluation_device: str
    keep_checkpoints: int
    """Exported versions that stay; older ones are deleted."""

    def bounded(self, layout: Layout) -> WorkSettings:
        """With no more sequences at a time than `PASSING_BYTES` hold. On a GPU they are the operator's to count."""
        if self.evaluation_device != "cpu":
            return self
        batch = sequences_at_once(layout, self.evaluation_batch, self.sequence_length, PASSING_BYTES)
        return replace(self, evaluation_batch=batch)


class GainMeasure:
    """Measures submissions; keeps the losses of the versions that they start from."""

    def __init__(self, dataset: Dataset, settings: WorkSettings) -> None:
        self._dataset = dataset
        self._settings = settings
        self._baselines: OrderedDict[tuple[Digest, int, DataRange | None, int, int], Tensor] = OrderedDict()

    def measured(self, command: MeasureSubmission, digest: Digest, load: Load) -> tuple[Gains, tuple[WorkerId, ...]]:
        """Of the command's submission, which starts from the version whose manifest is `digest`; and whose `answers`
        are something else. Nothing where no gain is wanted."""
        if not command.measure_gain:
            return Gains(), ()
        if command.answers:
            return self.held_against(command, load)
        return self.of(command, digest, load), ()

    def of(self, command: MeasureSubmission, digest: Digest, load: Load) -> Gains:
        """On as many sequences as it takes."""
        one = _Measuring(self, command, digest, load)
        count = len(one.tokens_NL)
        all_of, part_of = divided(count)
        early = command.early if count >= FEWEST_TO_DIVIDE else None
        own = one.of_own(self._own(command))
        # what its own sequences show is compared with what the whole of the others do
        full_N = one.of_all(all_of, None if command.own_data else early)
        part_N = one.of_part(part_of, early)
        part, full = mean_and_error(part_N), mean_and_error(full_N)
        sizes = {"part_sequences": len(part_N), "full_sequences": len(full_N)}
        if not all(map(math.isfinite, (part[0], full[0], own or 0.0))):
            return Gains(part=TERRIBLE, full=TERRIBLE, own=None if own is None else TERRIBLE, **sizes)
        spread = early.spread if early is not None else 0.0
        return Gains(
            part=part[0],
            part_se=_error(part[1], len(part_N), spread, count - part_of.start),
            full=full[0],
            full_se=_error(full[1], len(full_N), spread * command.taken / command.part, all_of.stop),
            own=own,
            part_spread=_known(part[1]) * math.sqrt(len(part_N)),
            **sizes,
        )

    def held_against(self, command: MeasureSubmission, load: Load) -> tuple[Gains, tuple[WorkerId, ...]]:
        """The same on the whole of the command's `rows`; and whose `answers` are something else."""
        tokens_NL = sequences_of(self._dataset, command, self._settings.sequence_length, self._settings.heldout_limit)
        before = self.losses(load(0.0), tokens_NL).tolist()
        after: list[float] = []
        for part in parts_of(command):
            after += self.losses(load(part.share), tokens_NL[part.start : part.stop]).tolist()
        false = [one.worker for one in command.answers if not agree(one, before, after, command.tolerance)]
        if not all(map(math.isfinite, (*before, *after))):
            own = TERRIBLE if command.own_data else None
            return Gains(part=TERRIBLE, full=TERRIBLE, own=own), tuple(false)
        return gains_from(command, before, after), tuple(false)

    def drawn(self, command: MeasureSubmission, times: int) -> NDArray[Any]:
        """The round's sequences [N, L+1]; with `times`, more that begin with the same."""
        length, rows = self._settings.sequence_length, command.rows
        if rows is not None and times == 1:
            return self._dataset.sequences(rows.seed, rows.start, rows.count, length)
        count = times * self._settings.screening_sequences
        return self._dataset.screening_batch(command.heldout_seed, count, length, command.lease.round)

    def _own(self, command: MeasureSubmission) -> NDArray[Any]:
        """Some sequences of the lease; [0, L+1] where not asked."""
        data, length = command.lease.data, self._settings.sequence_length
        rows = own_rows(command, command.rows.count if command.rows else self._settings.screening_sequences)
        found = [self._dataset.sequences(data.seed, data.start + row, 1, length) for row in rows]
        return np.concatenate([self._dataset.sequences(data.seed, data.start, 0, length), *found])

    def before(
        self, command: MeasureSubmission, digest: Digest, load: Load, tokens_NL: NDArray[Any], start: int
    ) -> Tensor:
        """Losses of the round's sequences from `start` on, under the version that they all start from."""
        key = digest, command.heldout_seed, command.rows, start, len(tokens_NL)
        if key not in self._baselines:
            self._baselines[key] = self.losses(load(0.0), tokens_NL)
            while len(self._baselines) > CACHED_BASELINES:
                self._baselines.popitem(last=False)
        return self._baselines[key]

    def losses(self, model: Any, tokens_NL: NDArray[Any]) -> Tensor:
        """Of each sequence."""
        return sequence_losses(model, torch.from_numpy(tokens_NL.astype("int64")), self._settings.evaluation_batch)


class _Measuring:
    """One submission's measuring; lives for one command."""

    def __init__(self, measure: GainMeasure, command: MeasureSubmission, digest: Digest, load: Load) -> None:
        self._measure, self._command, self._digest, self._load = measure, command, digest, load
        self._loaded: tuple[float, Any] | None = None
        self.tokens_NL = measure.drawn(command, 1)

    def of_own(self, own_NL: NDArray[Any]) -> float | None:
        """What all of it gains on the lease's own sequences, None without any."""
        if not len(own_NL):
            return None
        before_N = self._measure.losses(self._model(0.0), own_NL)
        return float((before_N - self._measure.losses(self._model(self._command.taken), own_NL)).mean())

    def of_all(self, which: slice, early: EarlyStop | None) -> Tensor:
        """[n] gains of all of it: on the first of the round's sequences `which`, or as many as are enough."""
        command, least, spread = self._command, 0.0, 0.0
        if early is not None:  # the usual spread is a part's, and grows with it, to first order
            least, spread = early.full_least, early.spread * command.taken / command.part
        return self._looked_at(command.taken, which, FIRST_OF_ALL, early, least, spread)[0]

    def of_part(self, which: slice, early: EarlyStop | None) -> Tensor:
        """[n] gains of a part of it; on more than `which`, where these speak against it and leave doubt."""
        share, count = self._command.part, len(self.tokens_NL)
        least, spread = (early.least, early.spread) if early is not None else (0.0, 0.0)
        gains_N, found = self._looked_at(share, which, FIRST_OF_PART, early, least, spread)
        mean, error = mean_and_error(gains_N)
        if found is not Enough.UNDECIDED or mean + _known(error) >= 0.0:
            return gains_N
        more_NL = self._measure.drawn(self._command, WHERE_IN_DOUBT)[count:]  # never of what others were given
        return torch.cat([gains_N, self._gains(share, more_NL, count)]) if len(more_NL) else gains_N

    def _looked_at(
        self, share: float, which: slice, first: int, early: EarlyStop | None, least: float, spread: float
    ) -> tuple[Tensor, Enough]:
        gains_N, found, whole = torch.empty(0, dtype=torch.float64), Enough.UNDECIDED, which.stop - which.start
        for count in _looks(first, whole, early):
            start = which.start + len(gains_N)
            gains_N = torch.cat([gains_N, self._gains(share, self.tokens_NL[start : which.start + count], start)])
            if early is not None:
                mean, error = mean_and_error(gains_N)
                sd = error * math.sqrt(count)
                found = looked(early, least=least, spread=spread, mean=mean, sd=sd, count=count, whole=whole)
            if found is not Enough.UNDECIDED:
                break
        return gains_N, found

    def _gains(self, share: float, tokens_NL: NDArray[Any], start: int) -> Tensor:
        before_N = self._measure.before(self._command, self._digest, self._model, tokens_NL, start)
        return before_N - self._measure.losses(self._model(share), tokens_NL)

    def _model(self, share: float) -> Any:
        if self._loaded is None or self._loaded[0] != share:
            self._loaded = share, self._load(share)
        return self._loaded[1]


def _looks(first: int, whole: int, early: EarlyStop | None) -> Iterator[int]:
    """After how many sequences there is a look: each time twice as many, and all."""
    count = first
    while early is not None and count < whole:
        yield count
        count *= 2
    yield whole


def _error(own: float, count: int, usual: float, whole: int) -> float:
    """Standard error of `count` sequences: not below that of the usual spread where these are not all of the draw.

    So what was enough to stop is enough for the verdict, which forgives its errors.
    """
    return max(_known(own), usual / math.sqrt(count)) if count < whole else _known(own)


def _known(error: float) -> float:
    """The error of a single sequence is not known."""
    return error if math.isfinite(error) else 0.0
