"""How often a coordinator's process looks for unreachable cycles.

Decides three numbers. The engine's records are frozen and have no cycles: they are freed as they are replaced, and
every look at all of them is in vain. With Python's own numbers those looks take a third of the engine's time, and one
of them with 10,000 workers a quarter of a second (`python -m benchmarks.scale`). What does have cycles, in calls and
tasks, is young when it is dropped, and the frequent looks at young objects find it.
"""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 20_000, 50, 100
"""Allocations between looks at the youngest; looks of one generation between looks at the next. Python: 700, 10, 10."""


def collect_rarely() -> None:
    """For the whole process: call it once, from what starts one that serves a run."""
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
