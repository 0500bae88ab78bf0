"""The engine under a clock that only events move: what is planned, at its moment, and the engine's own timers between.

Decides the order alone: of two things at the same moment the engine's timer goes first, then what was planned first.
Knows no volunteers and no files: `handle` and `carry_out` are for whoever builds a swarm, a benchmark or a test on it.
Always: time never goes back, and nothing waits for real.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

from coordinator.engine.commands import Command
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event
from protocol.errors import LocalError

Deed = Callable[[], None]


class Agenda:
    """What time it is, and what happens next."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._order = itertools.count()
        self._planned: list[tuple[float, int, Event | Deed]] = []

    def __bool__(self) -> bool:
        return bool(self._planned)

    @property
    def next_s(self) -> float:
        """When the next thing is planned; infinity where nothing is."""
        return self._planned[0][0] if self._planned else math.inf

    def plan(self, event: Event) -> None:
        """`event` happens at its own time."""
        heapq.heappush(self._planned, (event.at_s, next(self._order), event))

    def after(self, wait_s: float, deed: Deed) -> None:
        """Do `deed` in `wait_s` seconds."""
        heapq.heappush(self._planned, (self.now_s + wait_s, next(self._order), deed))

    def take(self) -> Event | Deed:
        """The next thing, at whose time it is now."""
        at_s, _, planned = heapq.heappop(self._planned)
        self.wind_to(at_s)
        return planned

    def wind_to(self, at_s: float) -> None:
        """Let time pass."""
        self.now_s = max(self.now_s, at_s)

    def clear(self) -> None:
        """Nothing of what was planned happens."""
        self._planned.clear()


class EngineLoop:
    """One engine, driven by `advance`."""

    def __init__(self, engine: Engine, agenda: Agenda) -> None:
        self.engine = engine
        self.agenda = agenda

    @property
    def now_s(self) -> float:
        """Virtual time."""
        return self.agenda.now_s

    def handle(self, event: Event) -> list[Command]:
        """Apply `event`; what follows from it. To be overridden by whoever keeps a journal, or looks on."""
        return self.engine.handle(event)

    def carry_out(self, command: Command) -> None:
        """Do what the engine asks for. To be overridden."""

    def apply(self, event: Event) -> None:
        """Apply `event` now, and carry out what follows from it."""
        for command in self.handle(event):
            self.carry_out(command)

    def advance(self) -> None:
        """To the next moment at which something happens; LocalError where nothing ever will."""
        wakeup_s = self.engine.next_wakeup_s()
        if wakeup_s is not None and wakeup_s <= self.agenda.next_s:
            self._wake(wakeup_s)
        elif not self.agenda:
            raise LocalError(f"the swarm stands still in round {self.engine.state.round.round}: nobody has a next step")
        elif isinstance(planned := self.agenda.take(), Event):
            self.apply(planned)
        else:
            planned()

    def wind_to(self, at_s: float) -> None:
        """Let time pass until `at_s`, with what the engine's timers call for on the way."""
        while (wakeup_s := self.engine.next_wakeup_s()) is not None and wakeup_s <= at_s:
            self._wake(wakeup_s)
        self.agenda.wind_to(at_s)

    def _wake(self, wakeup_s: float) -> None:
        self.agenda.wind_to(wakeup_s)
        for event in self.engine.due(self.now_s):
            self.apply(event)
