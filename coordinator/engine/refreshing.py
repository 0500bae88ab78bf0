"""When columns that a worker does not hold are encoded anew: what a round's number decides of it.

Pure functions of the configuration and the round. What a worker computes with in place of such a column is wrong by how
far the column has moved since it was encoded, and how far columns move goes with the rate. So they are encoded more
often where rates are high: of all ways to spread as many encodings over a run, the mean distance is least where their
number a round goes with the square root of the rate. Always: a run has no more encodings than one every
`down.frozen_every` versions.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from coordinator.engine.config import EngineConfig
from coordinator.engine.down_config import DownConfig
from coordinator.engine.schedules import learning_rate
from protocol.ids import RoundNumber

_MOST_PIECES = 4096
"""A run's rounds are looked at one by one, or, where there are more, at so many."""


def down_in(config: EngineConfig, round_number: RoundNumber) -> DownConfig:
    """`config.down` as it holds for the version that this round makes.

    Its `frozen_every` is how old, in versions, columns must be to be encoded anew in this version.
    """
    if config.down.frozen_every == 1:
        return config.down
    return replace(config.down, frozen_every=round_number - _spread(config).last(round_number) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    """A run's encodings: so many, each after as much wear as any other."""

    wear: tuple[float, ...]
    """Of the first 0, 1, 2 ... pieces."""
    piece: int
    """Rounds of each."""
    count: int

    def last(self, round_number: int) -> int:
        """The latest of the encodings' rounds up to this one; 0: the run's first version."""
        return self._round_of(bisect_right(range(1, self.count + 1), round_number, key=self._round_of))

    def _round_of(self, number: int) -> int:
        """In which round the encoding of this number is; of 0, the first version."""
        wanted = number * self.wear[-1] / (self.count + 1)
        return bisect_left(range((len(self.wear) - 1) * self.piece), wanted, key=self._worn)

    def _worn(self, round_number: int) -> float:
        whole, rest = divmod(round_number, self.piece)
        return self.wear[whole] + rest / self.piece * (self.wear[whole + 1] - self.wear[whole])


@lru_cache(maxsize=4)
def _spread(config: EngineConfig) -> _Spread:
    piece = -(-config.max_rounds // _MOST_PIECES)
    firsts = range(1, config.max_rounds + 1, piece)
    wear = accumulate((math.sqrt(learning_rate(config, RoundNumber(first))) for first in firsts), initial=0.0)
    return _Spread(wear=tuple(wear), piece=piece, count=config.max_rounds // config.down.frozen_every)
