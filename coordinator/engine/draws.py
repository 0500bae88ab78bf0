"""Secret, repeatable randomness: HMAC-SHA256(secret, round, purpose) is a key, SHAKE-256 of it a stream of numbers.

Decides nothing. Holds always: the same secret, round and purpose give the same numbers on every machine, and nobody
without the secret can tell them in advance. Purposes are length-prefixed, so no two sequences of parts share a
stream. Source: RFC 2104 (HMAC) for the key, FIPS 202 for the expansion: a sponge that begins with a secret of 32 bytes
is a generator of its own, and one call of it gives what seventeen of HMAC did.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TypeVar

T = TypeVar("T")

_SEED_BITS = 63
"""Seeds fit a signed 64-bit integer: the narrowest that torch, SQLite and protobuf share."""
_BLOCK = struct.Struct(">17Q")
"""136 bytes: what SHAKE-256 gives for one permutation."""


class Stream:
    """Numbers drawn one after the other from one key."""

    def __init__(self, key: bytes) -> None:
        self._numbers = _numbers(key)

    def u64(self) -> int:
        """The next 64 bits."""
        return next(self._numbers)

    def u64s(self, number: int) -> list[int]:
        """The next `number` times 64 bits."""
        return list(islice(self._numbers, number))

    def below(self, bound: int) -> int:
        """Uniform in [0, bound); drawn anew where a remainder would favour small numbers."""
        if bound < 1:
            raise ValueError(f"bound must be 1 or more, got {bound}")
        limit = 2**64 - 2**64 % bound
        while (number := self.u64()) >= limit:
            pass
        return number % bound

    def sample(self, items: Sequence[T], number: int) -> list[T]:
        """The first `number` of a permutation of `items` (Fisher-Yates); as many draws."""
        mixed, number = list(items), min(number, len(items))
        for place in range(min(number, len(mixed) - 1)):
            other = place + self.below(len(mixed) - place)
            mixed[place], mixed[other] = mixed[other], mixed[place]
        return mixed[:number]


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


def _numbers(key: bytes) -> Iterator[int]:
    for counter in count():
        yield from _BLOCK.unpack(hashlib.shake_256(key + counter.to_bytes(8, "big")).digest(_BLOCK.size))
