"""Secret, repeatable randomness: HMAC-SHA256(secret, round, purpose), in counter mode, as a stream of numbers.

Decides nothing. Holds always: the same secret, round and purpose give the same numbers on every machine, and nobody
without the secret can tell them in advance. Purposes are length-prefixed, so no two sequences of parts share a
stream.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_SEED_BITS = 63
"""Seeds fit a signed 64-bit integer: the narrowest that torch, SQLite and protobuf share."""


class Stream:
    """Numbers drawn one after the other from one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def u64(self) -> int:
        """The next 64 bits."""
        block = hmac.digest(self._key, self._counter.to_bytes(8, "big"), hashlib.sha256)
        self._counter += 1
        return int.from_bytes(block[:8], "big")

    def below(self, bound: int) -> int:
        """Uniform in [0, bound); drawn anew where a remainder would favour small numbers."""
        if bound < 1:
            raise ValueError(f"bound must be 1 or more, got {bound}")
        limit = 2**64 - 2**64 % bound
        while (number := self.u64()) >= limit:
            pass
        return number % bound

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A permutation of `items` (Fisher-Yates)."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed


class Draws:
    """All draws of one run."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError(f"the secret of a run has 16 bytes or more, got {len(secret)}")
        self._secret = secret

    def stream(self, round_number: int, *purpose: str | int) -> Stream:
        """The stream of one purpose in one round."""
        parts = [str(round_number), *map(str, purpose)]
        message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return Stream(hmac.digest(self._secret, b"barnraise-draw-v1" + message, hashlib.sha256))

    def seed(self, round_number: int, *purpose: str | int) -> int:
        """One number for others to seed their generators with."""
        return self.stream(round_number, *purpose).u64() >> (64 - _SEED_BITS)
