"""What the volunteer rules, at the moment, about how their machine computes. Decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from worker.machine.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """Each is asked whenever something begins."""

    threads: Callable[[], int] = lambda: 0
    """0: nothing."""
    memory_bytes: Callable[[str], int | None] = lambda _kind: None
    """On a `cpu` or a `cuda` device; None: nothing."""

    def of_now(self, machine: Machine) -> Machine:
        """`machine` as the next lease may use it. On a CPU the cap is the probe's: it is for processes, and not only
        for what is planned."""
        machine = dataclasses.replace(machine, threads=self.threads() or machine.threads)
        cap = self.memory_bytes(machine.kind)
        if machine.gpu is None or cap is None:
            return machine
        least = min(cap, machine.memory_cap_bytes or cap)
        return dataclasses.replace(machine, memory_bytes=min(machine.memory_bytes, least), memory_cap_bytes=least)
