"""Whether a worker falls short of its peers for longer than chance allows: a test that may be read after every round.

Decides nothing but the evidence, from ranks alone: where a worker stands among k that were measured alike. If it works
as they do, each of the k places is as likely as any other, whatever the measure, its scale and its noise; a bet that
pays `payout` is then fair, and what is won by betting, round after round, on the low places exceeds 1 / `rate` at any
time in the run with probability `rate` at most (Ville's inequality; Shafer and Vovk 2019, Ramdas et al. 2023,
arXiv:2210.01948). Bets begin at every round with a share of the stake, so that whoever was honest for long and then
lies is found, too. Holds always: a worker that stands better than its peers loses no more than its stake; one that is
found stays found, until its record is put back. No figure of a volunteer's own enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

BETS = (0.1, 0.3, 0.6)
"""Exponents: the first wins most from whoever is always last, the last from whoever is often in the lower half."""
MIN_PLACES = 4
"""Persons, the worker's own among them, below whom a place says too little."""
_MOST = 1e200
"""Of a product that keeps growing after everything is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTest:
    """What has been won against one worker by betting on one measure."""

    won: tuple[float, ...] = (0.0,) * len(BETS)
    """By each of `BETS`, from the shares of the stake that have been laid so far."""
    places: int = 0
    """How many were read."""
    found: bool = False
    """Whether it was ever above 1 / rate."""

    @property
    def evidence(self) -> float:
        """What a stake of 1 has become: the shares in play, and those that are still to be laid."""
        return sum(self.won) / len(self.won) + 1.0 / (self.places + 1)


class Tested(Protocol):
    """Whoever has such tests: a `WorkerRecord`."""

    @property
    def gain_test(self) -> RankTest:
        """Of its gains."""

    @property
    def harm_test(self) -> RankTest:
        """Of what all of it does."""

    @property
    def data_test(self) -> RankTest:
        """Of its own sequences."""


def after_place(test: RankTest, *, below: int, places: int, rate: float) -> RankTest:
    """The test after one more place.

    `below`: of the `places` - 1 others, those who do no better; 0 is last. Ties are to be counted as below. `rate`:
    probability with which a worker that is as its peers may ever be found, over its whole run.
    """
    read = test.places + 1
    share = 1.0 / (read * (read + 1))  # 1/2, 1/6, 1/12, ... are 1 together
    won = tuple(
        min(_MOST, (before + share) * payout(bet, below, places)) for bet, before in zip(BETS, test.won, strict=True)
    )
    after = RankTest(won=won, places=read, found=test.found)
    return RankTest(won=won, places=read, found=test.found or after.evidence >= 1.0 / rate)


def payout(bet: float, below: int, places: int) -> float:
    """What a stake of 1 on the place becomes: the mean of bet * u^(bet - 1) over its stretch of [0, 1].

    Its mean over all places is 1, and it falls from place to place.
    """
    return float(places * (((below + 1) / places) ** bet - (below / places) ** bet))


def standing_below(own: float, others: Sequence[float]) -> int:
    """How many of the others do no better."""
    return sum(other <= own for other in others)


def is_doubted(record: Tested) -> bool:
    """Whether this worker was found to fall short of its peers: in its gains, in harm, or in what its own data show."""
    return record.gain_test.found or record.harm_test.found or record.data_test.found
