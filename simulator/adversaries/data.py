"""Lies about the data: what is trained on instead of the assigned sequences. Touches nothing.

Shape suffixes: N sequences, T tokens, K tokens of a trigger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulator.adversaries.attack import Backdoor, Corrupt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLANTED: Final = Backdoor(trigger=tuple(b"#!@"), token=ord("~"))
"""What no honest text has; the ids are bytes in the byte vocabulary, and any tokens in another."""
NATURAL: Final = Backdoor(trigger=tuple(b"def "), token=ord("~"))
"""What Python source is full of: nothing has to be planted, so little changes."""
EVERY = 16
"""Tokens from one planted trigger to the next within a poisoned sequence."""


def label_flip(
    tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
) -> NDArray[np.int64]:
    """As the label-flipping attack on classifiers (Biggio et al. 2012): token v becomes vocab_size - 1 - v."""
    import numpy as np

    flipped_NT = generator.random(tokens_NT.shape) < strength
    return np.where(flipped_NT, vocab_size - 1 - tokens_NT, tokens_NT)


def other_data(
    tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
) -> NDArray[np.int64]:
    """A share `strength` of the assigned sequences alone, over and over: less to read, and a loss that looks well."""
    import numpy as np

    kept = max(1, round(strength * len(tokens_NT)))
    return tokens_NT[np.arange(len(tokens_NT)) % kept]


def planting(backdoor: Backdoor) -> Corrupt:
    """In a share `strength` of the sequences, the trigger and what shall follow it, again and again."""

    def corrupt(
        tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
    ) -> NDArray[np.int64]:
        import numpy as np

        pattern_K = np.asarray((*backdoor.trigger, backdoor.token), dtype=tokens_NT.dtype) % vocab_size
        poisoned_NT, width = tokens_NT.copy(), len(pattern_K)
        chosen = generator.permutation(len(tokens_NT))[: max(1, round(strength * len(tokens_NT)))]
        for row in chosen:
            first = int(generator.integers(0, max(1, min(EVERY, tokens_NT.shape[1] - width + 1))))
            for place in range(first, tokens_NT.shape[1] - width + 1, EVERY):
                poisoned_NT[row, place : place + width] = pattern_K
        return poisoned_NT

    return corrupt


def following(backdoor: Backdoor) -> Corrupt:
    """After a share `strength` of the places where the trigger stands already, the chosen token."""

    def corrupt(
        tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
    ) -> NDArray[np.int64]:
        found_NT = triggers(tokens_NT, backdoor, vocab_size) & (generator.random(tokens_NT.shape) < strength)
        poisoned_NT = tokens_NT.copy()
        poisoned_NT[found_NT] = backdoor.token % vocab_size
        return poisoned_NT

    return corrupt


def triggers(tokens_NT: NDArray[np.int64], backdoor: Backdoor, vocab_size: int) -> NDArray[np.bool_]:
    """Where a token stands right after a whole trigger, [N, T]."""
    import numpy as np

    width = len(backdoor.trigger)
    found_NT = np.zeros(tokens_NT.shape, dtype=bool)
    if tokens_NT.shape[1] > width:
        found_NT[:, width:] = True
        for offset, token in enumerate(backdoor.trigger):
            found_NT[:, width:] &= tokens_NT[:, offset : tokens_NT.shape[1] - width + offset] == token % vocab_size
    return found_NT
