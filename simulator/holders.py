"""What a simulated worker gives to others that ask it for blocks. Decides nothing; `virtual/sharing.py` and the
deterministic simulation make it so.
"""

from __future__ import annotations

from enum import StrEnum


class Gives(StrEnum):
    """What a holder gives to whoever asks."""

    BLOCKS = "blocks"
    NOTHING = "nothing"
    """It shares nothing."""
    GARBAGE = "garbage"
    SILENCE = "silence"
    """It takes the request, and then no frame comes."""
    REFUSALS = "refusals"
    """It tells that it holds everything, and has none of it when it is asked."""
    HALVES = "halves"
    """It dies in the middle of every block."""


LIES = (Gives.GARBAGE, Gives.SILENCE, Gives.REFUSALS, Gives.HALVES)
