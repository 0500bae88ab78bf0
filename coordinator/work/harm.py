"""Which contributions of a round make the model worse: looked for in halves, by measuring models made of some of them.

Decides which groups are measured, in which order, and what a measurement says of a group; what follows is the
engine's. The whole is known to be worse. Each half is made a model of and measured *alone*, the worse first, and
halved again while it is worse than the parent: whoever is doubted most comes first, so that liars fall into one half.
Where no group harms alone, models *without* the most doubtful 1, 2, 4, … of them are measured, up to half. Holds
always: at most `FindHarmful.passes` models are measured; nothing is written; the same command and files give the same
answer. Adaptive group testing: Hwang 1972, "A method for detecting all defective members in a population by group
testing".
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from coordinator.engine.commands import FindHarmful
from coordinator.engine.events import VersionComparison
from coordinator.engine.trust_region import is_worse
from moe.full import mean_and_error
from protocol.ids import LeaseId, Version

LeaseGroup = tuple[LeaseId, ...]
Measure = Callable[[LeaseGroup], VersionComparison]
"""A model made of these contributions alone, against the parent."""

DOUBT_MARGIN = 2.0
"""Standard errors beyond which a group is looked into. Whoever is found within the command's margins is not blamed."""
HOPELESS = 1e9
"""A rise of the loss that stands for one which is no number: an infinite one would not survive the journal's JSON."""


@dataclass(frozen=True, slots=True)
class Harmful:
    """What a search came to."""

    harmful: LeaseGroup
    suspected: LeaseGroup
    passes: int


def compared(version: Version, before_N: Tensor, after_N: Tensor) -> VersionComparison:
    """The losses of N sequences under an older version and a newer model, as a comparison of the two."""
    gain, gain_se = mean_and_error(before_N - after_N)
    loss, count = float(before_N.mean()), len(before_N)
    if not (math.isfinite(gain) and math.isfinite(gain_se) and math.isfinite(loss)):
        better = bool(after_N.isfinite().all()) and not bool(before_N.isfinite().all())
        gain, gain_se, loss = HOPELESS if better else -HOPELESS, 0.0, 0.0
    return VersionComparison(version=version, gain=gain, gain_se=gain_se, loss=loss, sequences=count)


def search(command: FindHarmful, measure: Measure) -> Harmful:
    """Who of `command.suspects` harms."""
    return _Search(command, measure).run()


class _Search:
    """One search; lives for one command."""

    def __init__(self, command: FindHarmful, measure: Measure) -> None:
        self._command, self._measure = command, measure
        self._passes = 0
        self._order = itertools.count()
        self._worse: list[tuple[float, int, LeaseGroup, bool]] = []
        """Groups that harm, the worst first: gain, order, members, and whether it is beyond the command's margins."""

    def run(self) -> Harmful:
        """See `search`."""
        suspects, harmful, suspected = self._command.suspects, list[LeaseId](), list[LeaseId]()
        if len(suspects) < 2:
            return Harmful(suspects, (), 0)
        self._look_into(suspects)
        while self._worse:
            _, _, group, is_sure = heapq.heappop(self._worse)
            if len(group) == 1:
                (harmful if is_sure else suspected).extend(group)
            elif self._left() < 2:
                suspected.extend(group)
            else:
                before = len(self._worse)
                self._look_into(group)
                if len(self._worse) == before:  # only together
                    suspected.extend(group)
        if not harmful and not suspected:
            suspected.extend(self._most_doubtful())
        return Harmful(tuple(harmful), tuple(suspected), self._passes)

    def _left(self) -> int:
        return self._command.passes - self._passes

    def _look_into(self, group: LeaseGroup) -> None:
        """Measure both halves, and note which of them harm."""
        middle = (len(group) + 1) // 2
        for half in (group[:middle], group[middle:]):
            if not self._left():
                return
            found = self._measured(half)
            if found.gain < -DOUBT_MARGIN * found.gain_se:
                sure = is_worse(self._command.margin, self._command.tolerance, found)
                heapq.heappush(self._worse, (found.gain, next(self._order), half, sure))

    def _most_doubtful(self) -> Sequence[LeaseId]:
        """The shortest beginning of the suspects without which the model is not worse."""
        suspects, count = self._command.suspects, 1
        while 2 * count <= len(suspects) and self._left():
            found = self._measured(suspects[count:])
            if not is_worse(self._command.margin, self._command.tolerance, found):
                return suspects[:count]
            count *= 2
        return ()

    def _measured(self, group: LeaseGroup) -> VersionComparison:
        self._passes += 1
        return self._measure(group)
