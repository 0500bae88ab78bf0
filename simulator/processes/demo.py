"""The demonstration's fixed settings: what `make demo` shows, the same on every machine.

Decides numbers only. Sized for two CPU cores and under six minutes.
"""

from __future__ import annotations

from pathlib import Path

from coordinator.engine.config import InnerRecipe
from simulator.processes.options import SimulationOptions

PROMPT = "def "
SAMPLE_TOKENS = 240


def demo_options(out: Path, *, seed: int, undefended: bool = False) -> SimulationOptions:
    """Eight workers, 20 % dropout a round, two sign-flippers, and one honest worker alone to compare with."""
    return SimulationOptions(
        out=out,
        workers=8,
        rounds=20,
        dropout=0.2,
        byzantine=2,
        attack="sign-flip",
        seed=seed,
        lone=True,
        undefended=undefended,
        inner=InnerRecipe(inner_steps=20),
        checkpoint_every=10,
    )
