"""The order in which a virtual swarm's events and the engine's timers come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from coordinator.engine.events import Event, Ticked
from protocol.errors import LocalError
from simulator.virtual.engine_loop import Agenda, EngineLoop


@dataclass
class Timers:
    """An engine that only knows when it wants to be woken."""

    moments: list[float]
    handled: list[float] = field(default_factory=list)
    state: Any = None

    def next_wakeup_s(self) -> float | None:
        return self.moments[0] if self.moments else None

    def due(self, now_s: float) -> list[Event]:
        self.moments.pop(0)
        return [Ticked(at_s=now_s)]

    def handle(self, event: Event) -> list[Any]:
        self.handled.append(event.at_s)
        return []


def loop(*moments: float) -> tuple[EngineLoop, Timers]:
    timers = Timers(list(moments))
    return EngineLoop(cast(Any, timers), Agenda()), timers


def test_a_timer_goes_before_what_is_planned_for_the_same_moment() -> None:
    driven, timers = loop(2.0, 5.0)
    order: list[str] = []
    driven.agenda.after(2.0, lambda: order.append(f"deed after {timers.handled}"))
    driven.agenda.plan(Ticked(at_s=3.0))
    driven.agenda.after(3.0, lambda: order.append(f"deed after {timers.handled}"))
    while driven.agenda:
        driven.advance()
    assert order == ["deed after [2.0]", "deed after [2.0, 3.0]"]  # of one moment: what was planned first
    assert driven.now_s == 3.0
    driven.wind_to(7.0)
    assert (timers.handled, driven.now_s) == ([2.0, 3.0, 5.0], 7.0)


def test_what_a_timer_plans_comes_before_what_is_later() -> None:
    """A swarm that had taken its next event before it looked at the timers got this one out of order."""
    driven, timers = loop(1.0)
    due = timers.due

    def planning(now_s: float) -> list[Event]:
        driven.agenda.plan(Ticked(at_s=2.0))
        return due(now_s)

    cast(Any, timers).due = planning
    driven.agenda.plan(Ticked(at_s=9.0))
    while driven.agenda:
        driven.advance()
    assert timers.handled == [1.0, 2.0, 9.0]


def test_time_never_goes_back() -> None:
    driven, timers = loop(float("-inf"))
    driven.agenda.wind_to(4.0)
    driven.advance()  # a wave of leases that goes on at once
    assert timers.handled == [4.0]
    driven.agenda.plan(Ticked(at_s=1.0))
    driven.advance()
    assert driven.now_s == 4.0


def test_a_swarm_with_nothing_to_come_is_told() -> None:
    driven, timers = loop()
    timers.state = cast(Any, type("State", (), {"round": type("Round", (), {"round": 3})}))
    with pytest.raises(LocalError, match="stands still in round 3"):
        driven.advance()
