"""Votes on one block of a round: whose come in time, whose are here, and whether these are above half.

Decides what above half means: of the owners whose vote is here or in time, and of the sequences that were assigned to
them, where no vote counts for more than `max_ratio` times the median one, nor one owner for more than `max_share` of
all. Holds always: putting a vote in and out again leaves no trace; asking costs no more however many votes there are,
since leases differ in few numbers of sequences (pacing gives eighths).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ROUNDING = 1e-9
"""Half of the sequences is not above half in spite of it."""


def vote_limit(votes: Mapping[float, int], max_ratio: float, max_share: float) -> float:
    """The most that one vote may count for; `votes` says how many there are of each weight.

    No more than `max_ratio` times the median; and so that, with all votes cut to the limit, none is above `max_share`
    of the whole. Where there are too few votes for that (1 / max_share and fewer), the median alone limits.
    """
    weights, count = sorted(votes, reverse=True), sum(votes.values())
    if not count:
        return math.inf
    limit = max_ratio * _median(votes, weights, count)
    if count * max_share <= 1.0:
        return limit
    total = sum(min(weight, limit) * number for weight, number in votes.items())
    above = 0
    for weight in weights:  # those above the limit sought, heaviest first
        cut, number = min(weight, limit), votes[weight]
        for _ in range(number):
            share_limit = max_share * total / (1.0 - above * max_share)
            if cut <= share_limit * (1.0 + _ROUNDING):
                return limit if not above else share_limit
            above, total = above + 1, total - cut
    raise AssertionError(f"{count} votes, {above} of them above a share of {max_share}")


def limited_weights(weights: Iterable[float], limit: float) -> list[float]:
    """Each weight, or the limit where that is less."""
    return [min(weight, limit) for weight in weights]


@dataclass(slots=True)
class Ballot:
    """One block's votes. A vote is due while its lease is in time, and stays so when it is given."""

    due: dict[float, int] = field(default_factory=dict)
    """How many of each weight, in sequences."""
    given: dict[float, int] = field(default_factory=dict)
    due_count: int = 0
    given_count: int = 0

    def put(self, sequences: float, by: int, *, given: bool) -> None:
        """A vote comes in (`by` 1) or goes again (`by` -1): one that is due, and given or not."""
        self.due_count += by
        _add(self.due, sequences, by)
        if given:
            self.given_count += by
            _add(self.given, sequences, by)

    @property
    def awaited(self) -> int:
        """Votes that are due and not given yet."""
        return self.due_count - self.given_count

    def has_majority(self, max_ratio: float, max_share: float) -> bool:
        """Whether what is given is above half of what is due, by owners and by sequences; of nothing, nothing is."""
        if 2 * self.given_count <= self.due_count:
            return False
        if not self.awaited:
            return True
        limit = vote_limit(self.due, max_ratio, max_share)
        given, due = (_total(votes, limit) for votes in (self.given, self.due))
        return 2.0 * given > due * (1.0 + _ROUNDING)


@dataclass(slots=True)
class TrunkBallot:
    """Votes on the trunk: of each owner one, however many leases it has, as heavy as the heaviest of them."""

    ballot: Ballot = field(default_factory=Ballot)
    _due: dict[str, dict[float, int]] = field(default_factory=dict)
    _given: dict[str, dict[float, int]] = field(default_factory=dict)

    def put(self, person: str, sequences: float, by: int, *, given: bool) -> None:
        """One of the person's leases comes in or goes again."""
        self._count(person, -1)
        for votes in (self._due, self._given) if given else (self._due,):
            _add(votes.setdefault(person, {}), sequences, by)
            if not votes[person]:
                del votes[person]
        self._count(person, 1)

    def _count(self, person: str, by: int) -> None:
        if person in self._due:
            # whoever has given a vote gives no second: what else it holds is not waited for on the trunk
            votes = self._given.get(person) or self._due[person]
            self.ballot.put(max(votes), by, given=person in self._given)


def _median(votes: Mapping[float, int], descending: list[float], count: int) -> float:
    """Of the weights, each as often as there are votes of it."""
    low, high, seen = (count - 1) // 2, count // 2, 0
    found: list[float] = []
    for weight in reversed(descending):
        seen += votes[weight]
        while len(found) < 2 and (low, high)[len(found)] < seen:
            found.append(weight)
    return sum(found) / 2


def _total(votes: Mapping[float, int], limit: float) -> float:
    return sum(min(weight, limit) * number for weight, number in votes.items())


def _add(votes: dict[float, int], weight: float, by: int) -> None:
    left = votes.get(weight, 0) + by
    if left:
        votes[weight] = left
    else:
        votes.pop(weight, None)
