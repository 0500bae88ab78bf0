"""How fast a machine trains under its volunteer's caps on heat and power: slower first, and a pause where that fails.

Decides the share of the time in which training works (a rung of `SHARES`), never a clock or a limit of a card. Near a
cap on heat, or above one on power, it goes one rung down; one up only where every cap leaves room for that, and later
than it went down, the later the less that did, so that it does not swing. Heat above its cap pauses (`Heat`,
judging.py); power above its cap on the lowest rung pauses for a while, since a card that rests says nothing of what it
would take. Pure; time is the look's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from worker.policy import Circumstances
from worker.rules.model import VolunteerRules
from worker.words import Words, joined, say

SHARES: Final = (1.0, 0.75, 0.5, 0.25)
NEAR_CELSIUS: Final = 3.0
"""So far below its cap a part is nearly too hot: a heat sink goes on warming for some seconds."""
SLOWER_AFTER_S: Final = 15.0
"""A rung shows in temperature and mean power after about so long."""
QUICKER_AFTER_S: Final = 60.0
SOON_S: Final = 300.0
"""Whoever has to slow down so soon after a try to be quicker waits twice as long for the next one,"""
LONGEST_S: Final = 1800.0
"""and at the most so long."""
MEAN_OVER_S: Final = 20.0
"""Training by turns draws by turns: what counts is the mean."""
ROOM: Final = 0.95
"""Of the cap on power: what the next rung up may be expected to take."""
POWER_PAUSE_S: Final = 600.0
_LONG_AGO_S: Final = float("-inf")
_SLOWER, _STAY, _QUICKER = 1, 0, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """What is remembered from one look to the next."""

    rung: int = 0
    changed_s: float = _LONG_AGO_S
    """When its rung last changed, or it began to train."""
    looked_s: float = _LONG_AGO_S
    watts: float | None = None
    """The mean on this rung, while it trained; None: not known yet."""
    quickened_s: float = _LONG_AGO_S
    patience_s: float = QUICKER_AFTER_S
    causes: tuple[str, ...] = ()
    """Which caps keep it slow."""
    pauses_until_s: float | None = None
    """The lowest rung took more power than the cap."""

    @property
    def share(self) -> float:
        """Of the time, in which it works."""
        return SHARES[self.rung]

    def after(self, rules: VolunteerRules, now: Circumstances) -> Tempo:
        """After another look."""
        tempo = self if self.looked_s <= now.wall_s else Tempo(rung=self.rung, causes=self.causes)  # a clock set back
        if tempo.pauses_until_s is not None and (not rules.gpu.most_watts or now.wall_s >= tempo.pauses_until_s):
            tempo = replace(tempo, pauses_until_s=None)
        if not now.is_training or tempo.pauses_until_s is not None or tempo.looked_s == _LONG_AGO_S:
            return replace(tempo, looked_s=now.wall_s, changed_s=now.wall_s, watts=None)
        tempo = replace(tempo, looked_s=now.wall_s, watts=tempo._mean_watts(now))
        return tempo._moved(dict(tempo._pressures(rules, now)), now.wall_s)

    def why(self, rules: VolunteerRules, now: Circumstances) -> Words:
        """Why it is slow."""
        told = {
            "gpu.most_celsius": lambda: _warm("slow.gpu_hot", now.gpu_celsius, rules.gpu.most_celsius),
            "cpu.most_celsius": lambda: _warm("slow.cpu_hot", now.cpu_celsius, rules.cpu.most_celsius),
            "gpu.most_watts": lambda: say("slow.gpu_power", most=f"{rules.gpu.most_watts:.0f}"),
        }
        return joined((told[cause]() for cause in self.causes), "; ")

    def _mean_watts(self, now: Circumstances) -> float | None:
        if now.gpu_watts is None or self.watts is None:
            return now.gpu_watts
        weight = 1.0 - math.exp((self.looked_s - now.wall_s) / MEAN_OVER_S)
        return self.watts + weight * (now.gpu_watts - self.watts)

    def _pressures(self, rules: VolunteerRules, now: Circumstances) -> Iterator[tuple[str, int]]:
        gpu, cpu = rules.gpu, rules.cpu
        if gpu.most_celsius and now.gpu_celsius is not None:
            yield "gpu.most_celsius", _of_heat(now.gpu_celsius, gpu.most_celsius, gpu.cool_by)
        if cpu.most_celsius and now.cpu_celsius is not None:
            yield "cpu.most_celsius", _of_heat(now.cpu_celsius, cpu.most_celsius, cpu.cool_by)
        if gpu.most_watts and self.watts is not None:
            quicker = self.watts * SHARES[max(0, self.rung - 1)] / self.share
            room = _QUICKER if quicker <= ROOM * gpu.most_watts else _STAY
            yield "gpu.most_watts", _SLOWER if self.watts > gpu.most_watts else room

    def _moved(self, pressures: dict[str, int], now_s: float) -> Tempo:
        if not pressures:
            return replace(self, rung=0, causes=())
        causes = tuple(cap for cap, pressure in pressures.items() if pressure > _QUICKER) or self.causes
        passed_s = now_s - self.changed_s
        if _SLOWER in pressures.values() and passed_s >= SLOWER_AFTER_S:
            if self.rung < len(SHARES) - 1:
                soon = now_s - self.quickened_s < SOON_S
                patience_s = min(LONGEST_S, 2.0 * self.patience_s) if soon else QUICKER_AFTER_S
                return self._on(self.rung + 1, now_s, causes, patience_s=patience_s)
            if pressures.get("gpu.most_watts") == _SLOWER and passed_s >= 2 * MEAN_OVER_S:
                return replace(self, pauses_until_s=now_s + POWER_PAUSE_S, causes=causes)
        elif set(pressures.values()) == {_QUICKER} and self.rung and passed_s >= self.patience_s:
            return self._on(self.rung - 1, now_s, causes, quickened_s=now_s)
        return replace(self, causes=causes)

    def _on(self, rung: int, now_s: float, causes: tuple[str, ...], **noted: float) -> Tempo:
        return replace(self, rung=rung, changed_s=now_s, watts=None, causes=causes, **noted)


FULL_TEMPO: Final = Tempo()


def _of_heat(celsius: float, cap: float, cool_by: float) -> int:
    if celsius > cap - min(NEAR_CELSIUS, cool_by / 2):
        return _SLOWER
    return _QUICKER if celsius <= cap - cool_by else _STAY


def _warm(name: str, celsius: float | None, cap: float) -> Words:
    return say(name, celsius=f"{celsius or 0:.0f}", most=f"{cap:.0f}")
