"""How often a process looks for unreachable cycles.

Decides three numbers, and what is never looked at. Reading a command's modules makes four hundred thousand objects and
no garbage: with Python's own numbers nine hundred looks at them take a sixth of the time in which a command starts. A
coordinator goes on with fewer looks: the engine's records are frozen and have no cycles, they are freed as they are
replaced, and every look at all of them is in vain. With Python's own numbers those looks take a third of the engine's
time, and one of them with 10,000 workers a quarter of a second (`python -m benchmarks.scale`). What does have cycles,
in calls and tasks, is young when it is dropped, and the frequent looks at young objects find it. A worker, whose cycles
may hold tensors, goes back to Python's own. Touches this process alone.
"""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 20_000, 50, 100
"""Allocations between looks at the youngest; looks of one generation between looks at the next."""
_USUAL = gc.get_threshold()
"""Python's own: 700, 10, 10."""


def collect_rarely() -> None:
    """From here on, until told otherwise: while a process starts, and for as long as it serves a run."""
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)


def keep_what_is_read() -> None:
    """The modules are there to stay, and are not looked at any more. Call it once, when all that is heavy is read."""
    gc.freeze()


def collect_as_usual() -> None:
    """As Python does by itself, from here on."""
    gc.set_threshold(*_USUAL)
