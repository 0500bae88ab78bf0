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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.commands import MeasureSubmission
from coordinator.engine.draws import Stream
from moe.full import mean_and_error, sequence_losses
from protocol.ids import Digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.datasets import Dataset

Load = Callable[[float], Any]
"""The base with so much of the submission taken, as a model, which the next call changes; 0 is the base itself."""

SHARE_FOR_ALL = 4
"""One of so many held-out sequences is for all of it: what spoils a model shows on few."""
FEWEST_TO_DIVIDE = 32
"""Held-out sequences; fewer serve both ends."""
WHERE_IN_DOUBT = 4
"""So many times the sequences, where those of the part speak against a submission by more than their error."""
OWN_SHARE = 8
"""Of the lease's own, an eighth as many as of the held-out."""
TERRIBLE = -1e9
"""A model that overflows is as bad as a model can be; an infinite loss would not survive the journal's JSON."""
CACHED_BASELINES = 64


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
    """Sequences that go through the model at a time."""
    evaluation_device: str
    keep_checkpoints: int
    """Exported versions that stay; older ones are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Held-out losses before minus after, nats a token, and their standard errors."""

    part: float = 0.0
    part_se: float = 0.0
    full: float = 0.0
    full_se: float = 0.0
    own: float | None = None


class GainMeasure:
    """Measures submissions; keeps the losses of the versions that they start from."""

    def __init__(self, dataset: Dataset, settings: WorkSettings) -> None:
        self._dataset = dataset
        self._settings = settings
        self._baselines: OrderedDict[tuple[Digest, int, int], Tensor] = OrderedDict()

    def of(self, command: MeasureSubmission, digest: Digest, load: Load) -> Gains:
        """Of the command's submission, which starts from the version whose manifest is `digest`."""
        tokens_NL = self._drawn(command, 1)
        before_N = self._before(command, 1, tokens_NL, digest, load)
        for_all = slice(0, len(tokens_NL) // SHARE_FOR_ALL if len(tokens_NL) >= FEWEST_TO_DIVIDE else None)
        for_part = slice(for_all.stop or 0, None)
        own_NL = self._own(command)
        own_before_N = self._losses(load(0.0), own_NL) if len(own_NL) else torch.empty(0)
        model = load(command.taken)
        all_NL = np.concatenate([tokens_NL[for_all], own_NL])
        after_N = self._losses(model, all_NL)
        cut = len(all_NL) - len(own_NL)
        full = mean_and_error(before_N[for_all] - after_N[:cut])
        own = float((own_before_N - after_N[cut:]).mean()) if len(own_NL) else None
        model = load(command.part)
        part_N = before_N[for_part] - self._losses(model, tokens_NL[for_part])
        part = mean_and_error(part_N)
        if part[0] + (part[1] if math.isfinite(part[1]) else 0.0) < 0.0:
            more_NL = self._drawn(command, WHERE_IN_DOUBT)[len(tokens_NL) :]
            if len(more_NL):
                after_N = self._losses(model, more_NL)
                before_N = self._before(command, WHERE_IN_DOUBT, more_NL, digest, load)
                part = mean_and_error(torch.cat([part_N, before_N - after_N]))
        if not all(map(math.isfinite, (*part[:1], *full[:1], own or 0.0))):
            return Gains(part=TERRIBLE, full=TERRIBLE, own=None if own is None else TERRIBLE)
        return Gains(part=part[0], part_se=_known(part[1]), full=full[0], full_se=_known(full[1]), own=own)

    def _drawn(self, command: MeasureSubmission, times: int) -> NDArray[Any]:
        """The round's sequences [N, L+1]; with `times`, more that begin with the same."""
        count = times * self._settings.screening_sequences
        length = self._settings.sequence_length
        return self._dataset.screening_batch(command.heldout_seed, count, length, command.lease.round)

    def _own(self, command: MeasureSubmission) -> NDArray[Any]:
        """Some sequences of the lease, by a draw that follows from the round's secret one; [0, L+1] where not asked."""
        data, length = command.lease.data, self._settings.sequence_length
        wanted = max(1, self._settings.screening_sequences // OWN_SHARE) if command.own_data else 0
        draw = Stream(f"{command.heldout_seed} {command.lease.lease_id}".encode())
        rows = draw.sample(range(data.count), wanted)
        found = [self._dataset.sequences(data.seed, data.start + row, 1, length) for row in rows]
        return np.concatenate([self._dataset.sequences(data.seed, data.start, 0, length), *found])

    def _before(
        self,
        command: MeasureSubmission,
        times: int,
        tokens_NL: NDArray[Any],
        digest: Digest,
        load: Load,
    ) -> Tensor:
        key = digest, command.heldout_seed, times
        if key not in self._baselines:
            self._baselines[key] = self._losses(load(0.0), tokens_NL)
            while len(self._baselines) > CACHED_BASELINES:
                self._baselines.popitem(last=False)
        return self._baselines[key]

    def _losses(self, model: Any, tokens_NL: NDArray[Any]) -> Tensor:
        return sequence_losses(model, torch.from_numpy(tokens_NL.astype("int64")), self._settings.evaluation_batch)


def _known(error: float) -> float:
    """The error of a single sequence is not known."""
    return error if math.isfinite(error) else 0.0
