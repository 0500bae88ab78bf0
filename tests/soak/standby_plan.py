"""Which deaths of a standby's processes are still to come, and when in a reign each can."""

from __future__ import annotations

import random

from tests.soak.dooms import Doom
from tests.soak.standby_dooms import PROMOTIONS, all_standby_dooms

AT_A_START = ("CoordinatorResumed", "CommandFailed", "cutting", "cut")
"""Come once in a life, or are prepared for at its start."""


class Plan:
    """Which deaths are still to come: every kind of place in turn, in an order that the seed draws."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.unmet = {f"{who}: {doom}" for who, dooms in all_standby_dooms().items() for doom in dooms}
        self._left: dict[str, list[tuple[str, Doom]]] = {"reign": [], "promotion": []}

    def next(self, when: str) -> tuple[str, Doom]:
        """Who dies next in a reign or in a promotion, and where."""
        if not self._left[when]:
            found = [
                (who, one) for who, dooms in all_standby_dooms().items() for one in dooms if when in _times(who, one)
            ]
            self._draw.shuffle(found)
            found.sort(key=lambda pair: f"{pair[0]}: {pair[1]}" not in self.unmet, reverse=True)
            self._left[when] = found  # what nobody has met comes first
        who, doom = self._left[when].pop()
        nth = 1 if (doom.kind or doom.moment) in AT_A_START or when == "promotion" else self._draw.choice((1, 1, 2))
        return who, Doom(moment=doom.moment, kind=doom.kind, nth=nth)


def _times(who: str, doom: Doom) -> tuple[str, ...]:
    if doom.moment in PROMOTIONS:
        return ("promotion",)
    return ("reign", "promotion") if who == "witness" else ("reign",)
