"""One seed for a whole simulation: every other seed is a pure function of it and of what it is for.

Decides nothing else and touches nothing. Two purposes never share a stream, so that more attackers leave the same
machines dropping out in the same rounds.
"""

from __future__ import annotations

import hashlib
import random


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for `purpose`, from the simulation's `seed`."""
    text = "\x1f".join(("barnraise-simulation", str(seed), *(str(part) for part in purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_stream(seed: int, *purpose: object) -> random.Random:
    """A stream of random numbers for `purpose`; the same on every machine and Python version that we support."""
    return random.Random(derived_seed(seed, *purpose))
