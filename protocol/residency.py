"""What stands in for the expert columns that a shard does not hold: one word for the whole run, listed here."""

from __future__ import annotations

from typing import Final, Literal, get_args

Residency = Literal["frozen", "absent"]
RESIDENCIES: Final[tuple[Residency, ...]] = get_args(Residency)
FROZEN: Final = "frozen"
"""They are there, without gradients and moments."""
ABSENT: Final = "absent"
"""The shard is itself a smaller model, whose routers know only the held ones."""
