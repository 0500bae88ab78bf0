"""Arithmetic classes of simulated machines, and what rounding makes of the same lease in two of them.

Decides how far honest work lies from honest work. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from protocol.arithmetic import ArithmeticClass, arithmetic_class

EVERYBODYS_ARITHMETIC: Final = ArithmeticClass(device="cpu", chip="simulated", torch="0", dtype="fp32", threads=1)
"""Where nothing else is said, all machines round alike."""
OTHERS: Final = (
    replace(EVERYBODYS_ARITHMETIC, threads=8),
    replace(EVERYBODYS_ARITHMETIC, chip="simulated otherwise"),
    replace(EVERYBODYS_ARITHMETIC, device="cuda", chip="simulated GPU", dtype="bf16", threads=0),
)
ROUNDING_GROWS_FROM: Final = 10
"""Inner steps after which rounding decides; with real training some hundred (results/replay_noise.json)."""
GROWN: Final = 0.5


def matched(wanted: str) -> str:
    """The class in which a simulated coordinator computes again: its worker's, where threads alone differ."""
    asked = arithmetic_class(wanted)
    alike = asked is not None and replace(asked, threads=EVERYBODYS_ARITHMETIC.threads) == EVERYBODYS_ARITHMETIC
    return wanted if alike else str(EVERYBODYS_ARITHMETIC)


def rounded_apart(one: str, other: str, inner_steps: int) -> float:
    """How far a lease computed honestly in one class is from the same in another."""
    kinds = [arithmetic_class(text) for text in (one, other)]
    if kinds[0] == kinds[1]:
        return 0.0
    plain = all(kind is not None and kind.dtype == EVERYBODYS_ARITHMETIC.dtype for kind in kinds)
    return 0.0 if plain and inner_steps <= ROUNDING_GROWS_FROM else GROWN
