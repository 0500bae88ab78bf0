"""The sequences that submissions are measured on, which no lease ever names: drawn by the run's secret.

Decides which training sequences those are: whole stretches of `STRETCH` neighbours, so that few documents are split
between what is trained on and what is measured on. They are dealt into parts, and another part answers every
`ROUNDS_A_PART` rounds, so that what verdicts may have told of one part is not worth much for the next. Text that was
never published may be added; it is dealt in with the rest.

Holds always: how many sequences there are follows from sizes and settings, which of them from the secret as well. What
a lease's position stands for goes through a permutation that takes the secret, too: with one that a worker can compute,
the ranks of the sequences that it was sent would show where between them the missing ones lie.

What remains: whoever collects the text of every lease over a whole epoch, and has the corpus, can tell what was never
leased. Of colluders that see a share p of the leases, over e epochs, each sequence that they never saw is a screening
one with probability s / (s + (1 - s) (1 - p)^e), at a share s of such sequences.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.datasets.permutation import permuted
from protocol.errors import ConfigError

STRETCH = 16
"""Neighbouring sequences that are taken together. Of 1,024 tokens they hold several documents, of which two are cut; of
128 bytes they are a page of one document, the rest of which is trained on: near-duplicates stay what they are."""
MOST_SHARE = 0.1
"""Of the training sequences: what is measured on is not trained on."""
USUAL_SHARE = 0.01
MOST_PARTS = 8
ROUNDS_A_PART = 8
DRAWS = 4
"""So many rounds' sequences there are at the least, where a tenth of the data allows it: rotation needs several."""


@dataclass(frozen=True, slots=True)
class ScreeningSplit:
    """Which of `train` sequences, and of `unpublished` ones beside them, screening has for itself."""

    secret: bytes
    train: int
    """Sequences in the dataset's training part."""
    begins: NDArray[np.int64]
    """First sequences of the stretches that are never leased, ascending."""
    parts: tuple[NDArray[np.int64], ...]
    """Numbers of sequences, by part; from `train` on they are the unpublished ones."""

    @classmethod
    def drawn(cls, secret: bytes, *, train: int, share: float, a_round: int, unpublished: int = 0) -> ScreeningSplit:
        """The split of a run whose rounds are measured on `a_round` sequences; ConfigError where that is too many."""
        count = stretches(train, share, a_round)
        if count == 0:
            raise ConfigError(too_little(train, a_round))
        order_K = permuted(_seed(secret, b"stretches"), train // STRETCH, 0, count)
        numbers_S = (order_K[:, None] * STRETCH + np.arange(STRETCH)).reshape(-1)
        numbers_S = np.concatenate([numbers_S, np.arange(train, train + unpublished, dtype=np.int64)])
        dealt_S = np.arange(len(numbers_S)) // STRETCH
        parts = max(1, min(MOST_PARTS, len(numbers_S) // (a_round + STRETCH)))
        return cls(
            secret=secret,
            train=train,
            begins=np.sort(order_K) * STRETCH,
            parts=tuple(numbers_S[dealt_S % parts == part] for part in range(parts)),
        )

    @property
    def leased(self) -> int:
        """How many training sequences there are for leases."""
        return self.train - STRETCH * len(self.begins)

    def numbers(self, seed: int, start: int, count: int) -> NDArray[np.int64]:
        """Training sequences at a lease's positions [start, start + count): disjoint for disjoint ones of one seed."""
        ranks_N = permuted(_seed(self.secret, b"lease", seed), self.leased, start, count)
        # Before the j-th stretch that is left out there are j * STRETCH fewer ranks than numbers.
        ranks_K = self.begins - STRETCH * np.arange(len(self.begins))
        return ranks_N + STRETCH * np.searchsorted(ranks_K, ranks_N, side="right")

    def drawn_for(self, seed: int, count: int, round_: int | None) -> NDArray[np.int64]:
        """`count` different numbers of the round's part (of all parts without one); all where there are fewer."""
        part = np.concatenate(self.parts) if round_ is None else self.parts[round_ // ROUNDS_A_PART % len(self.parts)]
        return part[permuted(seed, len(part), 0, min(count, len(part)))]


def stretches(train: int, share: float, a_round: int) -> int:
    """How many stretches of `train` sequences screening takes; 0 where a tenth of them makes no round's draw."""
    most = int(train * MOST_SHARE) // STRETCH
    wanted = max(int(train * share), DRAWS * a_round)
    count = min(most, -(-wanted // STRETCH))
    return count if count * STRETCH >= a_round else 0


def too_little(train: int, a_round: int) -> str:
    """Why there is no split, and what to do."""
    return (
        f"a tenth of {train} training sequences is less than the {a_round} that a submission is measured on "
        f"(screening_sequences), in stretches of {STRETCH}: use more text, shorter sequences or fewer of them, or set "
        "screening_share to 0 to measure on the public held-out part"
    )


def _seed(secret: bytes, purpose: bytes, number: int = 0) -> int:
    digest = hmac.digest(secret, b"barnraise-screening-v1" + purpose + number.to_bytes(8, "big"), hashlib.sha256)
    return int.from_bytes(digest[:8], "big")
