"""Two ports of a simulated volunteer's worker: its rules about when to work, and where blocking work runs.

Decides nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from worker.policy import Circumstances, Permission

Result = TypeVar("Result")


class Rules:
    """A volunteer's rules about when to work; a `worker.policy.Policy`."""

    look_again_s: float | None = 3.0

    def __init__(self, pauses: tuple[tuple[float, float, bool], ...]) -> None:
        self._pauses = pauses

    def may_work(self, now: Circumstances) -> Permission:
        """Not in a pause."""
        for from_s, to_s, stops_training in self._pauses:
            if from_s <= now.wall_s < to_s:
                return Permission(allowed=False, reason="not now", stops_training=stops_training)
        return Permission(allowed=True)


class Inline:
    """A `worker.ports.Background` that blocks."""

    busy = False

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """At once."""
        return function(*arguments)
