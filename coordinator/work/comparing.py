"""Versions of the model held against each other on held-out sequences, paired.

Decides how many of a draw are looked at: all, or as many as show that the new version would not be withheld
(`coordinator.engine.enough`). Holds always: what two versions are compared on is the same sequences, the first of one
draw; a version's loss on a sequence is measured once, as long as it is remembered. Touches the dataset, and models as
it is given them.

N sequences of a draw, L+1 tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coordinator.engine.commands import AggregateRound
from coordinator.engine.enough import FEWEST_TO_PUBLISH, RegionStop, Rise, is_publishable
from coordinator.engine.events import VersionComparison
from coordinator.work.gains import WorkSettings
from coordinator.work.harm import compared
from moe.full import sequence_losses
from protocol.ids import Digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.datasets import Dataset

REMEMBERED = 64
"""Versions; a window's rounds use two or three of them."""
ModelOf = Callable[[Digest], Any]
"""The model of a manifest's version, which the next call changes."""


class VersionLosses:
    """Compares versions; keeps their losses."""

    def __init__(self, dataset: Dataset, settings: WorkSettings, model_of: ModelOf) -> None:
        self._dataset, self._settings, self._model_of = dataset, settings, model_of
        self._known: OrderedDict[tuple[Digest, int], Tensor] = OrderedDict()

    def compared(self, command: AggregateRound, made: Digest) -> tuple[VersionComparison, ...]:
        """The version that the command has made against those that it names."""
        found: tuple[VersionComparison, ...] = ()
        if not command.compared_with:
            return found
        seed, whole = command.region_seed, len(self.drawn(command.region_seed))
        for count in _looks(whole, command.early):
            olds = [(old.version, self.losses(old.manifest, seed, count)) for old in command.compared_with]
            new_N = self.losses(made, seed, count)
            found = tuple(compared(version, old_N, new_N) for version, old_N in olds)
            rises = [Rise(gain=one.gain, sd=one.gain_se * math.sqrt(count), loss=one.loss) for one in found]
            if command.early is not None and is_publishable(command.early, rises, count=count, whole=whole):
                break
        return found

    def losses(self, manifest: Digest, seed: int, count: int | None = None) -> Tensor:
        """[count] losses, under a version, of the first sequences that `seed` draws; None: of all."""
        wanted_NL = self.drawn(seed)[:count]
        known_N = self._known.pop((manifest, seed), torch.empty(0, dtype=torch.float64))
        if len(known_N) < len(wanted_NL):
            more_N = self.of_model(self._model_of(manifest), wanted_NL[len(known_N) :])
            known_N = torch.cat([known_N, more_N])
        self._known[manifest, seed] = known_N
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known_N[: len(wanted_NL)]

    def of_model(self, model: Any, tokens_NL: NDArray[Any]) -> Tensor:
        """[N] losses of a model."""
        return sequence_losses(model, torch.from_numpy(tokens_NL.astype("int64")), self._settings.evaluation_batch)

    def drawn(self, seed: int) -> NDArray[Any]:
        """[N, L+1] that no lease names, of all rounds' parts."""
        return self._dataset.screening_batch(seed, self._settings.screening_sequences, self._settings.sequence_length)


def _looks(whole: int, early: RegionStop | None) -> Iterator[int]:
    """After how many sequences there is a look: each time twice as many, and all."""
    count = FEWEST_TO_PUBLISH
    while early is not None and count < whole:
        yield count
        count *= 2
    yield whole
